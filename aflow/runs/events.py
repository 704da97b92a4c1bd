"""The events that a watcher of a run receives during the run.

The coordinator publishes them, in order, to watchers (`Coordinator.start(watch=...)`,
`run.events()`); the command line prints them. They are meant for people and dashboards: the
scheduler itself works with the events in `scheduler.messages`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Literal

from aflow._core.records import NamedTuple
from aflow.scheduler.states import RunState


class RunStarting(NamedTuple):
    """The run is committed and its first task is about to be launched.

    `origin` is the run that it resumes, or, if `spins`, the run of which it runs one task again. If
    `recovered`, this coordinator continues a run of another coordinator.
    """

    at: float
    flow: str
    run: str
    origin: str | None = None
    spins: bool = False
    recovered: bool = False


class TaskStarting(NamedTuple):
    """An attempt has started. `attempt` counts from 0; `fallback` is True if @catch settles the
    task."""

    at: float
    run: str
    step: str
    task: int
    attempt: int
    pid: int | None
    fallback: bool = False


class TaskReused(NamedTuple):
    """A task reused the result of `origin` (`run/step/task`) instead of running; committed.

    `cached` is True if the result is from the cache, False if the run resumes the run of `origin`.
    """

    at: float
    run: str
    step: str
    task: int
    origin: str
    cached: bool = False


class LogLine(NamedTuple):
    """A line that a task printed, without its newline. `whole` is False for a part of a line that
    is too long to be buffered; the rest follows."""

    at: float
    run: str
    step: str
    task: int
    pid: int | None
    stream: Literal["stdout", "stderr"]
    text: bytes
    whole: bool = True


class TaskEnded(NamedTuple):
    """An attempt has ended and its outcome is committed.

    `state` is the attempt's terminal state. `reason` is one sentence, or empty on success.
    `retry_at` is the earliest time of the next attempt, None if there is no further attempt.
    `splits` is the number of child tasks if the step is a foreach that succeeded.
    """

    at: float
    run: str
    step: str
    task: int
    attempt: int
    pid: int | None
    state: str
    reason: str = ""
    retry_at: float | None = None
    splits: int | None = None


class Progress(NamedTuple):
    """The progress of each step; published every 300 seconds.

    `running`, `done` and `failed` are numbers of tasks by step, `queued` those of tasks that wait
    for a worker; `unstarted` are the steps without any task so far.
    """

    at: float
    run: str
    running: dict[str, int]
    done: dict[str, int]
    failed: dict[str, int]
    queued: dict[str, int]
    unstarted: tuple[str, ...]


class RunStopping(NamedTuple):
    """The run was cancelled, or `fails` fast; `active` is the number of attempts being stopped."""

    at: float
    run: str
    reason: str
    active: int
    fails: bool = False


class RunEnded(NamedTuple):
    """The end of the run is committed. `step` and `task` are those of the first failed task."""

    at: float
    run: str
    state: RunState
    reason: str = ""
    step: str | None = None
    task: int | None = None


RunEvent = (
    RunStarting
    | TaskStarting
    | TaskReused
    | LogLine
    | TaskEnded
    | Progress
    | RunStopping
    | RunEnded
)


Watch = Callable[[Sequence[RunEvent]], None]


class EventPublisher:
    """Publishes the events of a run to a watcher, in one batch per iteration of the event loop.

    If the watcher raises an exception, `broken` is called with it and no more events are published.
    """

    def __init__(self, watch: Watch, broken: Callable[[Exception], None]) -> None:
        self._watch: Watch | None = watch
        self._broken = broken
        self._events: list[RunEvent] = []
        self._loop = asyncio.get_running_loop()

    def publish(self, event: RunEvent) -> None:
        """Publish an event in the next iteration of the event loop.

        Args:
            event: The event; discarded if the watcher has raised an exception.
        """
        if self._watch is None:
            return
        if not self._events:
            self._loop.call_soon(self.flush)
        self._events.append(event)

    def flush(self) -> None:
        """Publish all waiting events immediately."""
        if not self._events or self._watch is None:
            return
        events, self._events = self._events, []
        try:
            self._watch(events)
        except Exception as error:  # noqa: BLE001 -- any failure of the watcher
            self._watch = None
            self._broken(error)
