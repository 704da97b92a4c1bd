"""Events and inputs as bytes: what a journal and a task's record store.

A batch of events is one msgpack array `[1, event, ...]`: the version, then each event as a short
array `[time, name, fields...]`. The names and letters below are stored in journals, so they never
change their meaning. Fields at the end that have their usual value are left out.

    s                                   RunStarted
    b  task attempt [handle]            AttemptStarted
    e  task attempt steps [foreach count]
                                        AttemptEnded with success; steps follow
    e  task attempt state [reason retryable transition]
                                        AttemptEnded otherwise; state is a letter
    i  task attempt count               ItemsReady
    t                                   TimePassed
    c  [reason]                         CancelRequested

Inputs are no bytes at all for NoInputs, else `[1, task]`, `[2, tasks]` or
`[3, split, steps, count]`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import msgpack

from aflow.errors import MetadataError, MetadataTooNew
from aflow.scheduler.messages import (
    AttemptEnded,
    AttemptStarted,
    CancelRequested,
    Event,
    FromBranches,
    FromForeach,
    FromTask,
    Inputs,
    ItemsReady,
    NoInputs,
    Outcome,
    RunStarted,
    TimePassed,
    Transition,
)
from aflow.scheduler.states import AttemptState

VERSION = 1

_LETTERS = {
    AttemptState.QUEUED: "q",
    AttemptState.RUNNING: "r",
    AttemptState.SUCCEEDED: "s",
    AttemptState.FAILED: "f",
    AttemptState.TIMED_OUT: "t",
    AttemptState.CANCELLED: "c",
    AttemptState.LOST: "l",
    AttemptState.INTERRUPTED: "i",
}
_STATES = {letter: state for state, letter in _LETTERS.items()}


def encode_events(events: Iterable[tuple[float, Event]]) -> bytes:
    """A batch of events with their times, as bytes."""
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
    went = outcome.transition
    succeeded = outcome.state is AttemptState.SUCCEEDED
    if succeeded and went is not None and not outcome.reason and outcome.retryable:
        if went.foreach is None and went.count is None:
            return ("e", event.task, event.attempt, went.steps)
        return ("e", event.task, event.attempt, went.steps, went.foreach, went.count)
    letter = _LETTERS[outcome.state]
    row = ("e", event.task, event.attempt, letter, outcome.reason, outcome.retryable)
    return row if went is None else (*row, (went.steps, went.foreach, went.count))


def decode_events(data: bytes) -> list[tuple[float, Event]]:
    """The events and times that `encode_events` was given.

    Raises MetadataTooNew if a later version wrote them, MetadataError if they are damaged.
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
    reason, retryable, *went = rest
    transition = Transition(*went[0]) if went else None
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
    """The inputs of a task as bytes; the same inputs give the same bytes."""
    match inputs:
        case FromTask(task):
            row: tuple[Any, ...] = (1, task)
        case FromBranches(tasks):
            row = (2, tasks)
        case FromForeach(split, steps, count):
            row = (3, split, steps, count)
        case NoInputs():
            return b""
    return msgpack.packb(row)  # type: ignore[no-any-return]


def decode_inputs(data: bytes) -> Inputs:
    """The inputs that `encode_inputs` was given.

    Raises MetadataTooNew if a later version wrote them, MetadataError if they are damaged.
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
