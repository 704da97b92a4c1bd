"""How a process ended, in one sentence for people."""

from __future__ import annotations

import os
import signal

from aflow.attempt.spec import NO_RETRY_EXIT_CODE, AttemptReport
from aflow.scheduler.states import AttemptState

_BY_SIGNAL = {
    signal.SIGSEGV: "Task failed with a segmentation fault.",
    signal.SIGKILL: (
        "The task's process was killed (SIGKILL): by somebody, or by the system because memory "
        "ran out."
    ),
}


def sentence(status: int) -> str:
    """What a wait status says of a process that left no report."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number in _BY_SIGNAL:
            return _BY_SIGNAL[signal.Signals(number)]
        return f"The task's process was ended by signal {number} ({_signal_name(number)})."
    code = os.waitstatus_to_exitcode(status)
    return (
        f"The task's process left with exit code {code} before the step had ended "
        "(os._exit, or a library that ends the process)."
    )


def ended_by(status: int) -> str:
    """How a process ended whose step was over, in one sentence."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return f"it was ended by signal {number} ({_signal_name(number)})."
    return f"it ended with exit code {os.waitstatus_to_exitcode(status)}."


def kill_what_is_left(pid: int) -> None:
    """Kill what a process has started that died with its ground: nobody else is there to do it.
    Its number names its group for as long as that has a member."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # none is left, or it is no longer ours
        return


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return "a real-time signal"


def report(
    task: int, attempt: int, status: int, started_at: float, finished_at: float
) -> AttemptReport:
    """The report of an attempt whose process has died under it."""
    code = os.waitstatus_to_exitcode(status)
    return AttemptReport(
        task,
        attempt,
        AttemptState.FAILED.value,
        sentence(status),
        retryable=code != NO_RETRY_EXIT_CODE,
        started_at=started_at,
        finished_at=finished_at,
    )


def stopped(
    task: int, attempt: int, state: AttemptState, reason: str, started_at: float, at: float
) -> AttemptReport:
    """The report of an attempt that we have ended ourselves, or that was lost."""
    return AttemptReport(task, attempt, state.value, reason, started_at=started_at, finished_at=at)
