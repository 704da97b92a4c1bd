"""The events that the scheduler of a run handles, and the commands that it returns.

The journal of a run stores its events. Each kind of event has a short, stable name and is a flat
record of values that msgpack can encode, so that later versions can read a journal. Commands are
never stored: replaying the events returns the same commands again.
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
    """The arguments of a task's self.next() call.

    `steps` are the steps that follow: none for the last step, one of the cases for a switch.
    `foreach` is the name of the artifact with the items and `count` their number; both are None
    unless the step opens a foreach. For num_parallel, `foreach` is None and `count` is the size of
    the gang.
    """

    steps: tuple[str, ...] = ()
    foreach: str | None = None
    count: int | None = None  # type: ignore[assignment]


class Outcome(NamedTuple):
    """How an attempt ended. `state` is a terminal AttemptState.

    `transition` is set only if the state is SUCCEEDED. `reason` is one human-readable sentence,
    empty on success. `retryable` is False if the task must not be retried.
    """

    state: AttemptState
    transition: Transition | None = None
    reason: str = ""
    retryable: bool = True


# ------------------------------------------------------------------ events


class RunStarted(NamedTuple):
    """The run starts; its parameters are committed."""


class AttemptStarted(NamedTuple):
    """An executor has started an attempt; `handle` identifies it after a restart of aflow."""

    task: int
    attempt: int
    handle: str = ""


class AttemptEnded(NamedTuple):
    """An attempt has ended. The machine ignores outdated and duplicate reports."""

    task: int
    attempt: int
    outcome: Outcome


class ItemsReady(NamedTuple):
    """A live attempt that opens a foreach has stored `count` items so far.

    The tasks for these items may start before the attempt ends.
    """

    task: int
    attempt: int
    count: int  # type: ignore[assignment]


class TimePassed(NamedTuple):
    """The time in `RunMachine.wake_at` has passed."""


class CancelRequested(NamedTuple):
    """The run must stop: live attempts are cancelled, and no others start."""

    reason: str = ""


Event = RunStarted | AttemptStarted | ItemsReady | AttemptEnded | TimePassed | CancelRequested


# ------------------------------------------------------------------ commands


class NoInputs(NamedTuple):
    """The inputs of the first task of a run: only the parameters."""


class FromTask(NamedTuple):
    """The inputs of a task that follows one other task."""

    task: int


class FromBranches(NamedTuple):
    """The inputs of a join of static branches: their last tasks, in the order of the split."""

    tasks: tuple[int, ...]


class FromForeach(NamedTuple):
    """The inputs of a join of a foreach: the last task of each item, sorted by index.

    `split` is the task that opened the foreach, and `count` the number of its items, which may be
    0. `steps` are the steps whose next step may be the join: one, unless a switch precedes it. If
    there are several, or if the one is a switch that repeated itself, an item may have more than
    one task of `steps` directly in the split; the one with the highest number is the last task.
    """

    split: int
    steps: tuple[str, ...]
    count: int  # type: ignore[assignment]


Inputs = NoInputs | FromTask | FromBranches | FromForeach


class LaunchAttempt(NamedTuple):
    """Start this attempt of this task.

    `split` is the task that opened the innermost foreach around this task, `index` this task's
    index in it, and `count` the number of its items; all are None outside of any foreach, and
    `count` is also None while the number of items is not known. `opens_index` is True for the first
    task of an item, whose `self.input` is the item itself. `final` is True if a failure of this
    attempt is not retried. `fallback` is True if the step must not run because @catch settles the
    task.
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
    """Stop this attempt; its end is still reported as an AttemptEnded."""

    task: int
    attempt: int


class RetryAttempt(NamedTuple):
    """Record that this attempt did not succeed and that the next one starts at `at` or later."""

    task: int
    attempt: int
    at: float


class TaskSettled(NamedTuple):
    """Record that the task has succeeded, failed or been cancelled.

    Returned exactly once for each task that was launched. `reason` is one sentence, or empty if the
    task succeeded; it differs from the reason of the outcome if the scheduler rejected the outcome.
    """

    task: int
    attempt: int
    succeeded: bool
    reason: str = ""


class FinishRun(NamedTuple):
    """Finish the run; no attempt is live any more. Returned exactly once.

    `task` and `step` name the first task that failed, if one did.
    """

    state: RunState
    reason: str = ""
    step: str | None = None
    task: int | None = None


Command = LaunchAttempt | CancelAttempt | RetryAttempt | TaskSettled | FinishRun


# The encoding of events (in the journal) and of inputs (in the record of a task).
#
# A batch of events is one msgpack array `[1, event, ...]`: the version, then each event as a short
# array `[time, name, fields...]`. The names and codes below are stored in journals, so they
# never change their meaning. Trailing fields that have their default value are omitted.
#
# s                                   RunStarted
# b  task attempt [handle]            AttemptStarted
# e  task attempt steps [foreach count]
#                                     AttemptEnded with success; steps is an array
# e  task attempt state [reason retryable transition]
#                                     AttemptEnded otherwise; state is a one-letter code
# i  task attempt count               ItemsReady
# t                                   TimePassed
# c  [reason]                         CancelRequested
#
# Inputs are empty bytes for NoInputs, otherwise `[1, task]`, `[2, tasks]` or
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
    """Return a batch of events and their times as bytes.

    Args:
        events: The events, with their times in seconds since the epoch.
    """
    rows: list[Any] = [VERSION]
    rows.extend((at, *_row(event)) for at, event in events)
    # A reason may contain surrogates: bytes of a task's output that Python could not decode.
    return msgpack.packb(rows, unicode_errors="surrogatepass")  # type: ignore[no-any-return]


def _row(event: Event) -> tuple[Any, ...]:
    # This runs for every event, and takes half the time of a match statement.
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
        steps, *items = transition
        opens_foreach = items != [None, None]
        return ("e", event.task, event.attempt, steps, *(items if opens_foreach else ()))
    code = _STATE_CODES[outcome.state]
    row = ("e", event.task, event.attempt, code, outcome.reason, outcome.retryable)
    return row if transition is None else (*row, tuple(transition))


def decode_events(data: bytes) -> list[tuple[float, Event]]:
    """Decode a batch of events and their times.

    Args:
        data: The result of `encode_events`.

    Returns:
        The events, with their times in seconds since the epoch.

    Raises:
        MetadataTooNew: If a later version of aflow has written the events.
        MetadataError: If the data are damaged.
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
    """Return the outcome of a success, cached: most attempts of a step have an equal one."""
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
    """Return the inputs of a task as bytes; equal inputs have equal bytes.

    Args:
        inputs: The tasks whose artifacts the task reads.
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
    """Decode the inputs of a task.

    Args:
        data: The result of `encode_inputs`.

    Returns:
        The inputs.

    Raises:
        MetadataTooNew: If a later version of aflow has written the inputs.
        MetadataError: If the data are damaged.
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
