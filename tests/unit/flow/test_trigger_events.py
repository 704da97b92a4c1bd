"""The information that a run has on the event that started it."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from aflow.flow import current as current_module
from aflow.flow.trigger_events import MetaflowEvent, Trigger

EVENT = {"name": "data", "id": "e1", "timestamp": 100.5, "type": "event"}
OTHER = {"name": "more", "id": "e2", "timestamp": 200, "type": "event"}
UNDATED = {"name": "old", "id": "e3", "timestamp": None, "type": "event"}
RUN = {"name": "metaflow.A.end", "id": "A/7/end/3", "timestamp": 150, "type": "run"}
AGAIN = {"name": "metaflow.A.end", "id": "A/7/end/4", "timestamp": 140, "type": "run"}
ANOTHER = {"name": "metaflow.B.end", "id": "B/1/end/2", "timestamp": 160, "type": "run"}


def found(pathspec: str) -> Any:
    return SimpleNamespace(pathspec=pathspec, path_components=pathspec.split("/"))


def test_events_are_there_the_latest_first() -> None:
    trigger = Trigger([UNDATED, EVENT, OTHER], found)

    assert ["more", "data", "old"] == [each.name for each in trigger]
    assert list(trigger) == trigger.events
    assert (
        MetaflowEvent("data", "e1", datetime.fromtimestamp(100.5, UTC), "event") == trigger["data"]
    )
    assert trigger.event is trigger["more"]
    assert trigger["old"].timestamp is None


def test_runs_are_objects_of_the_client_each_once() -> None:
    asked: list[str] = []

    def find(pathspec: str) -> Any:
        asked.append(pathspec)
        return found(pathspec)

    trigger = Trigger([RUN, AGAIN, ANOTHER], find)

    assert ["B/1", "A/7"] == [each.pathspec for each in trigger.runs or ()]
    assert trigger.run is trigger["B"]
    assert ("A/7", True) == (trigger["A"].pathspec, "A" in trigger)
    assert ["B/1", "A/7"] == asked, "each run is looked up once"
    assert 3 == len(trigger.events or ())


@pytest.mark.parametrize(("facts", "name"), [([EVENT], "A"), ([RUN], "data"), ([], "data")])
def test_what_did_not_start_the_run_is_not_there(facts: Any, name: str) -> None:
    trigger = Trigger(facts, found)

    assert name not in trigger
    with pytest.raises(KeyError, match=f"'{name}'"):
        trigger[name]


def test_a_run_that_nothing_started_has_none() -> None:
    trigger = Trigger([], found)

    assert (None, None, None, None) == (trigger.event, trigger.events, trigger.run, trigger.runs)
    assert None is Trigger([EVENT], found).run


def test_without_the_client_runs_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(current_module, "_find", None)

    with pytest.raises(AttributeError, match=r"current\.trigger needs the client"):
        Trigger([RUN]).run  # noqa: B018
