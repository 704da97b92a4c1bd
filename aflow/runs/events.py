"""The events that a watcher of a run receives while it goes on.

The coordinator publishes these, in order, to watchers (`Coordinator.start(watch=...)`,
`run.events()`); the command line prints them. They are for people and dashboards: what the
scheduler decides by are `scheduler.messages`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Literal

from aflow._core.records import NamedTuple
from aflow.scheduler.states import RunState


class RunStarting(NamedTuple):
    """The run is committed and its first task is about to be launched. `origin` is the run that
    it resumes, or (with `spins`) of which it runs one task again. With `recovered` it goes on where
    another coordinator has left it."""

    at: float
    flow: str
    run: str
    origin: str | None = None
    spins: bool = False
    recovered: bool = False


class TaskStarting(NamedTuple):
    """An attempt has begun. `attempt` counts from 0; `fallback` if @catch settles the task."""

    at: float
    run: str
    step: str
    task: int
    attempt: int
    pid: int | None
    fallback: bool = False


class TaskReused(NamedTuple):
    """A task was not run: the result of `origin` (`run/step/task`) stands for it, and is committed.
    `cached` if the cache knew it, else the run resumes that of `origin`."""

    at: float
    run: str
    step: str
    task: int
    origin: str
    cached: bool = False


class LogLine(NamedTuple):
    """A line (without its newline) that a task printed. `whole` is False for a piece of a line
    that was too long to be held, whose rest follows."""

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

    `state` is the attempt's terminal state. `reason` is a sentence, empty on success.
    `retry_at` is the time before which no further attempt starts, None if none follows.
    `splits` is the number of child tasks if the step was a foreach that succeeded.
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
    """How far each step is; given now and then (every 300 s) in a run that takes long.

    `running`, `done` and `failed` count tasks by step; `queued` those that wait for a worker;
    `unstarted` are the steps of which no task has begun.
    """

    at: float
    run: str
    running: dict[str, int]
    done: dict[str, int]
    failed: dict[str, int]
    queued: dict[str, int]
    unstarted: tuple[str, ...]


class RunStopping(NamedTuple):
    """The run was interrupted, or fails fast: `active` attempts are being stopped."""

    at: float
    run: str
    reason: str
    active: int


class RunEnded(NamedTuple):
    """The run is over and committed. `step` and `task` name the first failed task, if any."""

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


# The events of a run, published once a turn of the event loop.


Watch = Callable[[Sequence[RunEvent]], None]


class EventPublisher:
    """Notifies a watcher. What the watcher raises goes to `broken`, and it gets nothing more."""

    def __init__(self, watch: Watch, broken: Callable[[Exception], None]) -> None:
        self._watch: Watch | None = watch
        self._broken = broken
        self._events: list[RunEvent] = []
        self._loop = asyncio.get_running_loop()

    def publish(self, event: RunEvent) -> None:
        """Publish this with the next turn of the loop.

        Args:
            event: The event; nothing happens once the watcher has raised an error.
        """
        if self._watch is None:
            return
        if not self._events:
            self._loop.call_soon(self.flush)
        self._events.append(event)

    def flush(self) -> None:
        """Publish what there is to publish now."""
        if not self._events or self._watch is None:
            return
        events, self._events = self._events, []
        try:
            self._watch(events)
        except Exception as error:  # noqa: BLE001 -- a watcher that cannot watch (its terminal is gone, say)
            self._watch = None
            self._broken(error)
