"""The states of runs, tasks and attempts, and the legal transitions between them."""

from __future__ import annotations

from enum import StrEnum


class RunState(StrEnum):
    """One execution of a flow."""

    PENDING = "pending"  # created, nothing launched yet
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class TaskState(StrEnum):
    """One execution of a step for one set of inputs."""

    WAITING = "waiting"  # the backoff before its next attempt has not expired
    READY = "ready"  # may start as soon as a worker is free
    RUNNING = "running"  # an attempt is live
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class AttemptState(StrEnum):
    """One try of a task."""

    QUEUED = "queued"  # passed to an executor
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"  # the step raised an exception, or its process crashed
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    LOST = "lost"  # its machine or process is gone, for a reason other than the step
    INTERRUPTED = "interrupted"  # aflow stopped it; does not count as a retry


RUN_MOVES: dict[RunState, frozenset[RunState]] = {
    RunState.PENDING: frozenset({RunState.RUNNING, RunState.CANCELLED, RunState.FAILED}),
    RunState.RUNNING: frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED}),
    RunState.SUCCEEDED: frozenset(),
    RunState.FAILED: frozenset(),
    RunState.CANCELLED: frozenset(),
}

TASK_MOVES: dict[TaskState, frozenset[TaskState]] = {
    TaskState.READY: frozenset({TaskState.RUNNING, TaskState.CANCELLED}),
    TaskState.RUNNING: frozenset(TaskState) - {TaskState.RUNNING},
    TaskState.WAITING: frozenset({TaskState.READY, TaskState.CANCELLED}),
    TaskState.SUCCEEDED: frozenset(),
    TaskState.FAILED: frozenset(),
    TaskState.CANCELLED: frozenset(),
}

TERMINAL_RUN_STATES = frozenset(state for state, moves in RUN_MOVES.items() if not moves)
LIVE_RUN_STATES = tuple(state for state in RunState if state not in TERMINAL_RUN_STATES)
TERMINAL_ATTEMPT_STATES = frozenset(AttemptState) - {AttemptState.QUEUED, AttemptState.RUNNING}


class IllegalMove(AssertionError):
    """A state change that the tables above forbid: a bug of aflow, never of a flow or worker."""
