"""`current.trigger`: the events or finished runs that started a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from aflow.flow.current import look_up


class MetaflowEvent(NamedTuple):
    """An event that started a run.

    `type` is `event`, or `run` if another run has finished; `id` is then the pathspec of the last
    task of that run.
    """

    name: str
    id: str
    timestamp: datetime | None
    type: str


class Trigger:
    """All events that together started a run, latest first.

    `facts` are the events in the form in which a run stores them, with timestamps in seconds since
    the epoch; `find` returns the client object of a run by its pathspec.
    """

    def __init__(
        self, facts: Sequence[Mapping[str, Any]], find: Callable[[str], Any] = look_up
    ) -> None:
        latest_first = sorted(facts, key=lambda fact: fact.get("timestamp") or 0.0, reverse=True)
        self._events = [_event(fact) for fact in latest_first]
        self._find = find
        self._runs: list[Any] | None = None

    @property
    def event(self) -> MetaflowEvent | None:
        """The latest event."""
        return next(iter(self._events), None)

    @property
    def events(self) -> list[MetaflowEvent] | None:
        """All events; None if there are none."""
        return list(self._events) or None

    @property
    def run(self) -> Any:
        """The latest run that started this one, as a client object; None if no run did."""
        return next(iter(self.runs or ()), None)

    @property
    def runs(self) -> list[Any] | None:
        """All runs that started this one, as client objects; None if no run did."""
        if self._runs is None:
            ended = [
                "/".join(each.id.split("/")[:2]) for each in self._events if each.type == "run"
            ]
            self._runs = [self._find(pathspec) for pathspec in dict.fromkeys(ended)]
        return list(self._runs) or None

    def __getitem__(self, name: str) -> Any:
        """Return the triggering run of the flow `name`, or the event `name` if no run triggered it.

        Raises KeyError if there is none.
        """
        for run in self.runs or ():
            if run.path_components[0] == name:
                return run
        if not self.runs:
            for event in self._events:
                if event.name == name:
                    return event
        raise KeyError(name)

    def __iter__(self) -> Iterator[MetaflowEvent]:
        return iter(self._events)

    def __contains__(self, name: str) -> bool:
        try:
            self[name]
        except KeyError:
            return False
        return True


def _event(fact: Mapping[str, Any]) -> MetaflowEvent:
    at = fact.get("timestamp")
    when = None if at is None else datetime.fromtimestamp(at, UTC).astimezone()
    return MetaflowEvent(fact["name"], fact["id"], when, fact["type"])
