"""The actions of a schedule at a given time."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from aflow.errors import InvalidInput, MetadataUnavailable
from aflow.metadata.base import Batch, Document, RunUpdate
from aflow.metadata.sqlite import SqliteMetadata
from aflow.scheduler.states import RunState
from aflow.server.runs import Runs, RunsLocation
from aflow.server.schedules import (
    KIND,
    MOST_MISSED,
    Schedule,
    Scheduling,
    after_tick,
    changed,
    due,
    new,
    read,
    run_id,
    ticks,
    upcoming,
)
from aflow.storage.blobs import BlobStore
from aflow.storage.local import LocalStore
from tests.contracts.metadata_stores import a_run
from tests.support.clocks import FakeClock

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC).timestamp()
HOUR = 3600.0
HOURLY = Schedule("hourly", "0 * * * ? *", {"flow": "F"}, done_until=NOON - HOUR)


def test_a_tick_is_due_at_its_time_and_once() -> None:
    assert [] == due(HOURLY, NOON - 1)
    assert [NOON] == due(HOURLY, NOON)
    after = after_tick(HOURLY, NOON, "F/1")
    assert [] == due(after, NOON + 59)
    assert (NOON + HOUR, "F/1", 1, 0) == (
        upcoming(after, NOON), after.latest, after.started, after.skipped,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("missed", "expected"),
    [
        ("latest", [NOON + 3 * HOUR]),
        ("skip", []),
        ("all", [NOON, NOON + HOUR, NOON + 2 * HOUR, NOON + 3 * HOUR]),
    ],
)
def test_what_was_missed_is_made_up_for_as_was_asked(missed: Any, expected: list[float]) -> None:
    schedule = replace(HOURLY, missed=missed)
    assert expected == due(schedule, NOON + 3.5 * HOUR)


async def test_a_tick_that_waits_for_the_previous_run_is_not_missed(tmp_path: Path) -> None:
    metadata, store, clock = SqliteMetadata(":memory:"), LocalStore(tmp_path), FakeClock(NOON)
    run = metadata.create_run(a_run(), b"", "a coordinator", 60.0)
    order = {"package": "0" * 64, "script": "flow.py", "flow": "Flow_"}
    waits = replace(
        HOURLY, missed="skip", overlap="wait", order=order, latest=f"{run.flow}/{run.run}"
    )
    metadata.put_document(KIND, waits.name, waits.encode(), 0)
    runs = Runs(RunsLocation(tmp_path, {}), BlobStore(store), 1)
    scheduling = Scheduling(metadata, metadata, runs, BlobStore(store), clock)

    async def look() -> int:
        """Return how many ticks have been handled."""
        for each in scheduling._due():
            await scheduling._start_due(*each)
        return scheduling.get(waits.name).skipped

    assert 0 == await look(), "the previous run is active"
    clock.advance(300.0)
    metadata.commit(run.key, 0, Batch(run=RunUpdate(state=RunState.FAILED, finished_at=NOON)))
    assert 1 == await look()
    assert "code package" in scheduling.get(waits.name).reason, "it was tried to start the run"
    metadata.close()


def test_a_tick_that_is_on_time_goes_ahead_of_those_that_were_missed() -> None:
    assert [NOON + 3 * HOUR] == due(replace(HOURLY, missed="skip"), NOON + 3 * HOUR + 30)
    assert [NOON + 3 * HOUR] == due(HOURLY, NOON + 3 * HOUR + 30)


def test_of_very_many_that_were_missed_the_latest_are_made_up_for() -> None:
    found = due(replace(HOURLY, missed="all", done_until=NOON - 1000 * HOUR), NOON)
    assert (MOST_MISSED, NOON) == (len(found), found[-1])


def test_a_paused_schedule_is_never_due() -> None:
    paused = replace(HOURLY, paused=True)
    assert ([], None) == (due(paused, NOON + HOUR), upcoming(paused, NOON))


def test_a_change_names_what_is_changed_and_leaves_the_rest() -> None:
    known = replace(HOURLY, latest="F/1", started=3, token="a", created_by="ann")
    paused = changed(known, {"paused": True}, NOON)
    assert (True, HOURLY.done_until, "a") == (paused.paused, paused.done_until, paused.token)
    resumed = changed(paused, {"paused": False}, NOON + HOUR)
    assert [] == due(resumed, NOON + HOUR), "what was due while it rested, is not made up for"

    fields = {"cron": "30 * * * ? *", "parameters": {"n": 2}, "token": "b", "created_by": "bob"}
    moved = changed(known, fields, NOON)
    assert ({"flow": "F", "parameters": {"n": 2}}, "F/1", 3) == (
        moved.order, moved.latest, moved.started,
    )  # fmt: skip
    assert (NOON + HOUR / 2, NOON) == (upcoming(moved, NOON), moved.done_until)
    assert ("b", "bob") == (moved.token, moved.created_by), "it runs in the name of who changed it"
    for wrong in ({"cron": "x"}, {"cron": None}, {"timezone": "Mars/A"}, {"overlap": "never"}):
        with pytest.raises(InvalidInput):
            changed(known, wrong, NOON)


def test_the_next_ticks_are_reported_as_far_as_there_are_any() -> None:
    assert [NOON + HOUR, NOON + 2 * HOUR] == ticks("0 * * * ? *", None, NOON, 2)
    berlin = ticks("0 12 * * ? *", "Europe/Berlin", NOON, 1)
    assert [NOON + 22 * HOUR] == berlin
    assert [] == ticks("0 12 * * ? 2020", None, NOON, 5)


def test_the_run_of_a_tick_has_the_same_id_everywhere() -> None:
    assert "hourly-20260504T120000Z" == run_id(HOURLY, NOON)


def test_a_schedule_is_read_as_it_was_written_with_what_later_versions_know() -> None:
    kept = replace(HOURLY, timezone="Europe/Berlin", latest="F/1", known={"colour": "red"})
    back = read(Document("hourly", 1, kept.encode()))
    assert (kept, {"colour": "red"}) == (back, back.known)
    with pytest.raises(MetadataUnavailable, match="is damaged"):
        read(Document("hourly", 1, b"{}"))


@pytest.mark.parametrize(
    "fields",
    [{"cron": 5}, {"cron": "* * *"}, {"cron": "0 0 1 1 ? 2020"}, {"timezone": "Mars"},
     {"timezone": 3}, {"missed": "never"}, {"overlap": None}, {"since": NOON + 1}, {"since": "x"},
     {"since": True}],
)  # fmt: skip
def test_what_cannot_be_a_schedule_is_refused(fields: dict[str, Any]) -> None:
    good = {"cron": "0 * * * ? *", "order": {"flow": "F"}}
    assert "a" == new("a", good, NOON).name
    with pytest.raises(InvalidInput):
        new("a", {**good, **fields}, NOON)


@pytest.mark.parametrize("name", ["", "../x", "a/b", "-a", "a" * 101, None, "a\n"])
def test_names_that_cannot_be_are_refused(name: Any) -> None:
    with pytest.raises(InvalidInput):
        new(name, {"cron": "0 * * * ? *", "order": {}}, NOON)


@pytest.mark.parametrize(
    "odd",
    [
        {"cron": 5}, {"order": []}, {"order": None}, {"done_until": "now"}, {"done_until": 1e300},
        {"latest": 3}, {"missed": []}, {"overlap": "never"}, {"paused": "no"}, {"token": 1},
    ],
)  # fmt: skip
def test_a_schedule_with_an_odd_field_is_damaged_and_not_run(odd: dict[str, Any]) -> None:
    data = json.dumps({**json.loads(HOURLY.encode()), **odd}).encode()
    with pytest.raises(MetadataUnavailable, match="is damaged"):
        read(Document("hourly", 1, data))
