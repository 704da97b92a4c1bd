"""The port of the executor: start one attempt somewhere, and say what becomes of it.

What every executor promises, and tests/contracts/test_executors.py checks:

- Each `launch` leads to at most one `started` and exactly one `ended` call, in this order, on the
  event loop that `start` was called on; `logged` and `grown` calls of the attempt are between them.
- What a step does wrong is FAILED; a step over its time TIMED_OUT; a machine or process that went
  away under an attempt, without the step's doing, LOST; what our own `stop` cut short INTERRUPTED.
- `cancel` may be called twice, or late; the attempt ends as CANCELLED, or as what it was before
  the cancel reached it.
- Where there is no process, pipe or memory available, the attempt is LOST, and the next one is
  tried all the same.
- What `recover` takes is as if it had been launched here; nothing runs what it gives back.
- `stop` leaves no process, file descriptor or temporary file behind. It may be called twice.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Protocol

from aflow._core.records import NamedTuple
from aflow.scheduler.states import AttemptState
from aflow.task.spec import (
    NO_RETRY_EXIT_CODE,
    AttemptKey,
    AttemptReport,
    AttemptSpec,
    RunContext,
)


class Reports(Protocol):
    """Receives the reports about attempts."""

    def handed(self, task: int, attempt: int, handle: str, host: str = "") -> None:
        """Another executor finds the attempt by this (the worker or the job that has it), should
        this one go away; `host` is the machine that runs it, where that is known. It is recorded
        with the next commit, and may be reported again.

        Args:
            task: The number of the task within its run.
            attempt: The number of the attempt, from 0.
            handle: What the job system calls the attempt.
            host: The host name of the machine that runs the attempt; "" where it is not known.
        """

    def started(self, task: int, attempt: int, pid: int | None, at: float) -> None:
        """Report that the attempt runs.

        Args:
            task: The number of the task within its run.
            attempt: The number of the attempt, from 0.
            pid: The id of the process; None where it is not known.
            at: When it happened, in seconds since the epoch.
        """

    def logged(self, task: int, attempt: int, stream: int, at: float, chunk: bytes) -> None:
        """Report bytes that the attempt has written to stdout (0) or stderr (1).

        Args:
            task: The number of the task within its run.
            attempt: The number of the attempt, from 0.
            stream: 0 for stdout, 1 for stderr.
            at: When it happened, in seconds since the epoch.
            chunk: Bytes as they were written: they need not end with a line, or be UTF-8.
        """

    def grown(self, task: int, attempt: int, count: int, manifest: bytes) -> None:
        """Report that the attempt, which still runs, has this many items of its foreach so far. The
        manifest says what the tasks for them read of it.

        Args:
            task: The number of the task within its run.
            attempt: The number of the attempt, from 0.
            count: How many items there are so far: all of them from the first on.
            manifest: The manifest, as its bytes are stored.
        """

    def ended(self, report: AttemptReport, usage: Usage) -> None:
        """Report that the attempt has ended.

        Args:
            report: How the attempt has ended.
            usage: Memory and CPU of the attempt.
        """


class Usage:
    """What an attempt used, where that is known: peak memory in bytes, CPU time in seconds."""

    __slots__ = ("cpu", "max_rss")

    def __init__(self, max_rss: int | None = None, cpu: float | None = None) -> None:
        self.max_rss = max_rss
        self.cpu = cpu


NO_USAGE = Usage()


class Orphan(NamedTuple):
    """An attempt that an executor has launched which is gone, maybe with its machine. `handle` is
    what it has reported by `handed`, else empty; `started_at` when it began, if that is known."""

    spec: AttemptSpec
    handle: str
    started_at: float | None


class Executor(Protocol):
    """Starts attempts of one run."""

    @property
    def lookahead(self) -> int:
        """How many attempts more than can run it wants in hand."""

    @property
    def bounds(self) -> Mapping[str, int]:
        """How many attempts of a step can run at the same time, for steps of which fewer can than
        of the run: of more than that none is launched. Read before the run begins."""

    def recover(self, orphans: Sequence[Orphan]) -> Sequence[Orphan]:
        """Recover attempts that an earlier coordinator of the run has launched. `start` is called
        next. Each is awaited, or launched again where the executor does not know it. Their
        `started` is reported where it is not known.

        Args:
            orphans: The attempts that the metadata store knows as launched and not ended.

        Returns:
            Those that no worker, job or process has any more: the caller reports them as lost.
        """

    async def start(self, context: RunContext, reports: Reports) -> None:
        """Get ready to launch attempts of this run.

        Args:
            context: What all attempts of the run share: flow, run, user, stores.
            reports: Gets what happens to the attempts, in the event loop.
        """

    def launch(self, spec: AttemptSpec) -> None:
        """Start this attempt, now or as soon as there is room.

        Args:
            spec: The attempt: its task, inputs, limits and resources.
        """

    def cancel(self, task: int, attempt: int) -> None:
        """Stop this attempt: politely first, then by force.

        Args:
            task: The number of the task within its run.
            attempt: The number of the attempt, from 0.
        """

    def forget(self, task: int, attempt: int) -> None:
        """Drop what was kept of this attempt until its end was committed.

        Args:
            task: The number of the task within its run.
            attempt: The number of the attempt, from 0.
        """

    async def conclude(self) -> None:
        """The run has ended, and is recorded so: what others still have of it is not to be run.
        Called before `stop`, and not where the run may go on with another coordinator."""

    async def leave(self) -> None:
        """Stop as `stop` does, but leave what others run for this executor: another one will
        `recover` it.
        """

    async def stop(self) -> None:
        """Stop all that is still running and release everything."""


# How a process ended, in one sentence for people.


_BY_SIGNAL = {
    signal.SIGSEGV: "Task failed with a segmentation fault.",
    signal.SIGKILL: (
        "The task's process was killed (SIGKILL): by somebody, or by the system because memory "
        "ran out."
    ),
}


def sentence(status: int) -> str:
    """Return what a wait status says of a process that left no report.

    Args:
        status: The wait status, as os.waitpid returns it.
    """
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
    """Return how a process ended whose step was over, in one sentence.

    Args:
        status: The wait status, as os.waitpid returns it.
    """
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return f"it was ended by signal {number} ({_signal_name(number)})."
    return f"it ended with exit code {os.waitstatus_to_exitcode(status)}."


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return "a real-time signal"


def report(
    task: int, attempt: int, status: int, started_at: float, finished_at: float
) -> AttemptReport:
    """Return the report of an attempt whose process has died before it could report.

    Args:
        task: The number of the task within its run.
        attempt: The number of the attempt, from 0.
        status: The wait status, as os.waitpid returns it.
        started_at: When it started, in seconds since the epoch.
        finished_at: When it ended, in seconds since the epoch.
    """
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
    """Return the report of an attempt that the executor itself has ended, or that was lost.

    Args:
        task: The number of the task within its run.
        attempt: The number of the attempt, from 0.
        state: The state in which the attempt ends: cancelled, timed out, lost or the like.
        reason: Why, in one sentence.
        started_at: When it started, in seconds since the epoch.
        at: When it happened, in seconds since the epoch.
    """
    return AttemptReport(task, attempt, state.value, reason, started_at=started_at, finished_at=at)


def settle_soon(
    reports: Reports, attempt_key: AttemptKey, state: AttemptState, reason: str, now: float
) -> None:
    """Report the end of an attempt that has not started, in the next turn of the event loop: a
    caller of `launch` or `cancel` does not expect the report before its call has returned.

    Args:
        reports: Receives the report.
        attempt_key: The numbers of task and attempt.
        state: The state in which the attempt ends: cancelled, interrupted or lost.
        reason: Why, in one sentence.
        now: The present time, in seconds since the epoch.
    """
    report = stopped(*attempt_key, state, reason, now, now)
    asyncio.get_running_loop().call_soon(reports.ended, report, NO_USAGE)


def refuse(reports: Reports, attempt_key: AttemptKey, reason: str, now: float) -> None:
    """Report an attempt as failed that cannot run as its step asks, and could not the next time.

    Args:
        reports: Receives the start and the end.
        attempt_key: The numbers of task and attempt.
        reason: Why, in one sentence.
        now: The present time, in seconds since the epoch.
    """
    reports.started(*attempt_key, None, now)
    report = stopped(*attempt_key, AttemptState.FAILED, reason, now, now)
    reports.ended(report._replace(retryable=False), NO_USAGE)
