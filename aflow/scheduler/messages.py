"""What happened (events) and what to do (commands).

Events are what a run's journal stores: each has a stable short name and is a flat record of
msgpack-able values, so that `encode_event(decode_event(x)) == x` and a journal can be read by a
later version. Commands are never stored: a machine that replays its events gives them again.
"""

from __future__ import annotations

from typing import NamedTuple

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
