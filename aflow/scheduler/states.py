"""The states of runs, tasks and attempts, and which moves between them are legal."""

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

    WAITING = "waiting"  # for its next attempt's time to come
    READY = "ready"  # may start as soon as a worker is free
    RUNNING = "running"  # an attempt is live
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class AttemptState(StrEnum):
    """One try of a task."""

    QUEUED = "queued"  # handed to an executor
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"  # the step raised, or its process died
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    LOST = "lost"  # the machine or process that ran it is gone, through no fault of the step
    INTERRUPTED = "interrupted"  # by our own shutdown: costs no attempt


RUN_MOVES: dict[RunState, frozenset[RunState]] = {
    RunState.PENDING: frozenset({RunState.RUNNING, RunState.CANCELLED, RunState.FAILED}),
    RunState.RUNNING: frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED}),
    RunState.SUCCEEDED: frozenset(),
    RunState.FAILED: frozenset(),
    RunState.CANCELLED: frozenset(),
}

TASK_MOVES: dict[TaskState, frozenset[TaskState]] = {
    TaskState.READY: frozenset({TaskState.RUNNING, TaskState.CANCELLED}),
    TaskState.RUNNING: frozenset(
        {
            TaskState.READY,
            TaskState.WAITING,
            TaskState.SUCCEEDED,
            TaskState.FAILED,
            TaskState.CANCELLED,
        }
    ),
    TaskState.WAITING: frozenset({TaskState.READY, TaskState.CANCELLED}),
    TaskState.SUCCEEDED: frozenset(),
    TaskState.FAILED: frozenset(),
    TaskState.CANCELLED: frozenset(),
}

TERMINAL_RUN_STATES = frozenset(state for state, moves in RUN_MOVES.items() if not moves)
LIVE_RUN_STATES = tuple(state for state in RunState if state not in TERMINAL_RUN_STATES)
TERMINAL_ATTEMPT_STATES = frozenset(AttemptState) - {AttemptState.QUEUED, AttemptState.RUNNING}


class IllegalMove(AssertionError):
    """The scheduler contradicts itself: a fault of aflow, never of a flow or of a worker."""
