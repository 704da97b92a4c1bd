"""What happened (events) and what to do (commands).

Events are what a run's journal stores: each has a stable short name and is a flat record of
msgpack-able values, so that `encode_event(decode_event(x)) == x` and a journal can be read by a
later version. Commands are never stored: a machine that replays its events gives them again.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, assert_never

import msgpack

from aflow._core.records import NamedTuple
from aflow.errors import MetadataError, MetadataTooNew
from aflow.scheduler.states import AttemptState, RunState

# ------------------------------------------------------------------ values


class Transition(NamedTuple):
    """Where a step went: what it gave to self.next().

    `steps` are the steps that follow (empty at the end of the flow; one of the cases for a
    switch). `foreach` is the name of the artifact that was iterated, `count` the number of
    items, both None unless the step is a foreach split (for num_parallel, `foreach` is None and
    `count` the size of the gang).
    """

    steps: tuple[str, ...] = ()
    foreach: str | None = None
    count: int | None = None  # type: ignore[assignment]


class Outcome(NamedTuple):
    """How an attempt ended, as a value. `state` is a terminal AttemptState.

    `transition` is there if and only if the state is SUCCEEDED. `reason` is one sentence for
    people, empty on success. `retryable` is False where the step asked not to be tried again.
    """

    state: AttemptState
    transition: Transition | None = None
    reason: str = ""
    retryable: bool = True


# ------------------------------------------------------------------ events


class RunStarted(NamedTuple):
    """The run begins; its parameters are committed."""


class AttemptStarted(NamedTuple):
    """An executor has begun to run an attempt; `handle` finds it again after a restart."""

    task: int
    attempt: int
    handle: str = ""


class AttemptEnded(NamedTuple):
    """An attempt has ended. Old, late and second reports are ignored by the machine."""

    task: int
    attempt: int
    outcome: Outcome


class ItemsReady(NamedTuple):
    """A live attempt, which opens a foreach, has stored this many of its items so far: tasks for
    them may start before it ends."""

    task: int
    attempt: int
    count: int  # type: ignore[assignment]


class TimePassed(NamedTuple):
    """The time that `RunMachine.wake_at` named has come."""


class CancelRequested(NamedTuple):
    """Somebody wants the run to stop: live attempts are cancelled, nothing new starts."""

    reason: str = ""


Event = RunStarted | AttemptStarted | ItemsReady | AttemptEnded | TimePassed | CancelRequested


# ------------------------------------------------------------------ commands


class NoInputs(NamedTuple):
    """The first task of a run: it reads the parameters alone."""


class FromTask(NamedTuple):
    """A task that follows one other task."""

    task: int


class FromBranches(NamedTuple):
    """A join of static branches: their last tasks, in the order in which the split named them."""

    tasks: tuple[int, ...]


class FromForeach(NamedTuple):
    """A join of a foreach: every last task of the split that `split` opened, by split index.

    `steps` are the steps that lead into the join (one, unless a switch leads there). Where there
    are several, or where the one is a switch that went back to itself, an item may have left more
    than one task of `steps` directly in the split: the last one is the task of the highest number.
    `count` is the number of items, which may be 0.
    """

    split: int
    steps: tuple[str, ...]
    count: int  # type: ignore[assignment]


Inputs = NoInputs | FromTask | FromBranches | FromForeach


class LaunchAttempt(NamedTuple):
    """Start this attempt of this task.

    `split` and `index` name the innermost foreach that the task is in: the task that opened it
    and the task's place in it (None outside of any foreach); `count` is None, too, where nobody
    knows yet how many items there will be. `opens_index` is True for the first
    task of an item, whose `self.input` is the item itself. `final` says that no attempt follows
    if this one fails; `fallback` that the step is not to be run: @catch settles it.
    """

    task: int
    step: str
    attempt: int
    inputs: Inputs
    split: int | None = None
    index: int | None = None  # type: ignore[assignment]
    count: int | None = None  # type: ignore[assignment]
    opens_index: bool = False
    final: bool = True
    fallback: bool = False


class CancelAttempt(NamedTuple):
    """Stop this attempt; its end is reported as an AttemptEnded all the same."""

    task: int
    attempt: int


class RetryAttempt(NamedTuple):
    """For the record: this attempt ended without success and another follows, not before `at`."""

    task: int
    attempt: int
    at: float


class TaskSettled(NamedTuple):
    """For the record: the task is over: succeeded, failed or cancelled.

    Given exactly once for each task that was launched. `reason` is a sentence unless it succeeded:
    it differs from that of the outcome where the scheduler itself refused the outcome.
    """

    task: int
    attempt: int
    succeeded: bool
    reason: str = ""


class FinishRun(NamedTuple):
    """The run is over; nothing is live any more. Given exactly once.

    `task` and `step` name the first task that failed, if one did.
    """

    state: RunState
    reason: str = ""
    step: str | None = None
    task: int | None = None


Command = LaunchAttempt | CancelAttempt | RetryAttempt | TaskSettled | FinishRun


# Events and inputs as bytes: what a journal and a task's record store.
#
# A batch of events is one msgpack array `[1, event, ...]`: the version, then each event as a short
# array `[time, name, fields...]`. The names and codes below are stored in journals, so they
# never change their meaning. Fields at the end that have their usual value are left out.
#
# s                                   RunStarted
# b  task attempt [handle]            AttemptStarted
# e  task attempt steps [foreach count]
# AttemptEnded with success; steps follow
# e  task attempt state [reason retryable transition]
# AttemptEnded otherwise; state is a code of one letter
# i  task attempt count               ItemsReady
# t                                   TimePassed
# c  [reason]                         CancelRequested
#
# Inputs are no bytes at all for NoInputs, else `[1, task]`, `[2, tasks]` or
# `[3, split, steps, count]`.


VERSION = 1

_STATE_CODES = {
    AttemptState.QUEUED: "q",
    AttemptState.RUNNING: "r",
    AttemptState.SUCCEEDED: "s",
    AttemptState.FAILED: "f",
    AttemptState.TIMED_OUT: "t",
    AttemptState.CANCELLED: "c",
    AttemptState.LOST: "l",
    AttemptState.INTERRUPTED: "i",
}
_STATES = {code: state for state, code in _STATE_CODES.items()}


def encode_events(events: Iterable[tuple[float, Event]]) -> bytes:
    """Return a batch of events with their times, as bytes.

    Args:
        events: The events, with their times in seconds since the epoch.
    """
    rows: list[Any] = [VERSION]
    rows.extend((at, *_row(event)) for at, event in events)
    # A reason may hold what Python could not decode of a task's output.
    return msgpack.packb(rows, unicode_errors="surrogatepass")  # type: ignore[no-any-return]


def _row(event: Event) -> tuple[Any, ...]:
    # Not a match statement: this takes half its time, and runs for every event.
    if isinstance(event, AttemptEnded):
        return _ended_row(event)
    if isinstance(event, AttemptStarted):
        row = ("b", event.task, event.attempt)
        return (*row, event.handle) if event.handle else row
    if isinstance(event, CancelRequested):
        return ("c", event.reason) if event.reason else ("c",)
    if isinstance(event, ItemsReady):
        return ("i", *event)
    return ("s",) if isinstance(event, RunStarted) else ("t",)


def _ended_row(event: AttemptEnded) -> tuple[Any, ...]:
    outcome = event.outcome
    transition = outcome.transition
    succeeded = outcome.state is AttemptState.SUCCEEDED
    if succeeded and transition is not None and not outcome.reason and outcome.retryable:
        if transition.foreach is None and transition.count is None:
            return ("e", event.task, event.attempt, transition.steps)
        return (
            "e",
            event.task,
            event.attempt,
            transition.steps,
            transition.foreach,
            transition.count,
        )
    code = _STATE_CODES[outcome.state]
    row = ("e", event.task, event.attempt, code, outcome.reason, outcome.retryable)
    return (
        row
        if transition is None
        else (*row, (transition.steps, transition.foreach, transition.count))
    )


def decode_events(data: bytes) -> list[tuple[float, Event]]:
    """Return the events and times that `encode_events` was given.

    Args:
        data: The encoded form.

    Raises:
        MetadataTooNew: A later version of aflow has written them.
        MetadataError: They are damaged.
    """
    try:
        version, *rows = msgpack.unpackb(data, use_list=False, unicode_errors="surrogatepass")
        if type(version) is int and version > VERSION:
            raise MetadataTooNew(
                f"The journal of the run has version {version}, but this aflow reads up to "
                f"version {VERSION}. Upgrade aflow."
            )
        if version != VERSION:
            raise MetadataError(f"The journal of the run is damaged: its version is {version!r}.")
        return [(row[0], _READERS[row[1]](*row[2:])) for row in rows]
    except MetadataError:
        raise
    except Exception as error:
        raise MetadataError(f"The journal of the run is damaged: {error!r}.") from error


def _read_ended(task: int, attempt: int, first: Any, *rest: Any) -> AttemptEnded:
    if type(first) is tuple:
        return AttemptEnded(task, attempt, _success(first, *rest))
    reason, retryable, *fields = rest
    transition = Transition(*fields[0]) if fields else None
    return AttemptEnded(task, attempt, Outcome(_STATES[first], transition, reason, retryable))


@lru_cache(maxsize=256)
def _success(
    steps: tuple[str, ...], foreach: str | None = None, count: int | None = None
) -> Outcome:
    """The outcome that most attempts of a step share: one value for all of them."""
    return Outcome(AttemptState.SUCCEEDED, Transition(steps, foreach, count))


_READERS: dict[str, Any] = {
    "s": RunStarted,
    "b": AttemptStarted,
    "e": _read_ended,
    "i": ItemsReady,
    "t": TimePassed,
    "c": CancelRequested,
}


def encode_inputs(inputs: Inputs) -> bytes:
    """Return the inputs of a task as bytes; the same inputs give the same bytes.

    Args:
        inputs: Which tasks the inputs come from.
    """
    match inputs:
        case FromTask(task):
            row: tuple[Any, ...] = (1, task)
        case FromBranches(tasks):
            row = (2, tasks)
        case FromForeach(split, steps, count):
            row = (3, split, steps, count)
        case NoInputs():
            return b""
        case _:
            assert_never(inputs)
    return msgpack.packb(row)  # type: ignore[no-any-return]


def decode_inputs(data: bytes) -> Inputs:
    """Return the inputs that `encode_inputs` was given.

    Args:
        data: The encoded form.

    Raises:
        MetadataTooNew: A later version of aflow has written them.
        MetadataError: They are damaged.
    """
    if not data:
        return NoInputs()
    try:
        kind, *fields = msgpack.unpackb(data, use_list=False)
        if type(kind) is int and kind > len(_INPUTS):
            raise MetadataTooNew(
                f"A task has inputs of a kind ({kind}) that is new. Upgrade aflow."
            )
        return _INPUTS[kind](*fields)  # type: ignore[no-any-return]
    except MetadataError:
        raise
    except Exception as error:
        raise MetadataError(f"The inputs of a task are damaged: {error!r}.") from error


_INPUTS: dict[int, Any] = {1: FromTask, 2: FromBranches, 3: FromForeach}
