"""The executor port: start attempts of one run and report their progress and results.

Every executor guarantees the following, which tests/contracts/test_executors.py checks:

- Each `launch` results in at most one `started` and exactly one `ended` call, in this order, on the
  event loop that called `start`. All `logged` and `grown` calls of the attempt come in between.
- An attempt ends as FAILED if its step fails, TIMED_OUT if it exceeds its timeout, LOST if its
  machine or process disappeared through no fault of the step, and INTERRUPTED if `stop` ended it.
- `cancel` may be called twice, or too late. The attempt ends as CANCELLED, or in the state that it
  had reached before the cancellation arrived.
- If no process, pipe or memory is available, the attempt is LOST; later attempts are still tried.
- An attempt that `recover` takes over behaves as if this executor had launched it. The attempts
  that `recover` returns are not running anywhere.
- `stop` leaves no process, file descriptor or temporary file behind. It may be called twice.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Mapping, Sequence
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

    def handed(
        self, task: int, attempt: int, handle: str, host: str = ""
    ) -> Awaitable[None] | None:
        """Record how another executor can find the attempt if this one goes away.

        The handle is written with the next commit, and may be reported again.

        Args:
            task: The number of the task within its run.
            attempt: The number of the attempt, from 0.
            handle: The id of the worker or job that has the attempt.
            host: The host name of the machine that runs the attempt; "" if unknown.

        Returns:
            An awaitable that ends when the handle is written, and raises the error if it cannot be
            written; None if handles are not recorded here.
        """

    def started(self, task: int, attempt: int, pid: int | None, at: float) -> None:
        """Report that the attempt has started.

        Args:
            task: The number of the task within its run.
            attempt: The number of the attempt, from 0.
            pid: The id of the process; None if unknown.
            at: The start time, in seconds since the epoch.
        """

    def logged(self, task: int, attempt: int, stream: int, at: float, chunk: bytes) -> None:
        """Report bytes that the attempt has written to stdout (0) or stderr (1).

        Args:
            task: The number of the task within its run.
            attempt: The number of the attempt, from 0.
            stream: 0 for stdout, 1 for stderr.
            at: The time of the output, in seconds since the epoch.
            chunk: The bytes as written: they need not end with a newline, nor be valid UTF-8.
        """

    def grown(self, task: int, attempt: int, count: int, manifest: bytes) -> None:
        """Report the number of foreach items that a running attempt has produced so far.

        Args:
            task: The number of the task within its run.
            attempt: The number of the attempt, from 0.
            count: The number of items so far, counted from the first.
            manifest: The encoded manifest, from which the tasks of these items read their inputs.
        """

    def ended(self, report: AttemptReport, usage: Usage) -> None:
        """Report that the attempt has ended.

        Args:
            report: The result of the attempt.
            usage: Memory and CPU of the attempt.
        """


class Usage(NamedTuple):
    """The peak memory of an attempt in bytes and its CPU time in seconds; None if unknown."""

    max_rss: int | None = None
    cpu: float | None = None


NO_USAGE = Usage()


class Orphan(NamedTuple):
    """An attempt launched by an executor that is gone, possibly together with its machine.

    `handle` is the one that the executor reported through `handed`, or empty. `started_at` is when
    the attempt started, if known."""

    spec: AttemptSpec
    handle: str
    started_at: float | None


class Executor(Protocol):
    """Starts attempts of one run."""

    @property
    def lookahead(self) -> int:
        """The number of attempts to launch beyond those that can run at the same time."""

    @property
    def bounds(self) -> Mapping[str, int]:
        """The number of attempts of a step that can run at the same time.

        Contains the steps with a lower bound than that of the run. No more attempts than that are
        launched. Read before the run starts."""

    def recover(self, orphans: Sequence[Orphan]) -> Sequence[Orphan]:
        """Take over attempts that an earlier coordinator of the run launched.

        Called before `start`. The executor waits for each of them, or launches it again if it does
        not know the attempt. It reports `started` for attempts whose start is not recorded.

        Args:
            orphans: The attempts that the metadata store lists as launched and not ended.

        Returns:
            The attempts that no worker, job or process has; the caller reports them as lost.
        """

    async def start(self, context: RunContext, reports: Reports) -> None:
        """Prepare to launch attempts of this run.

        Args:
            context: The data that all attempts of the run share: flow, run, user, stores.
            reports: Receives the reports about attempts, on the event loop.
        """

    def launch(self, spec: AttemptSpec) -> None:
        """Start this attempt as soon as there is capacity for it.

        Args:
            spec: The attempt: its task, inputs, limits and resources.
        """

    def cancel(self, task: int, attempt: int) -> None:
        """Stop this attempt: gracefully first, then by force.

        Args:
            task: The number of the task within its run.
            attempt: The number of the attempt, from 0.
        """

    def forget(self, task: int, attempt: int) -> None:
        """Discard the state of this attempt that was kept until its end was committed.

        Args:
            task: The number of the task within its run.
            attempt: The number of the attempt, from 0.
        """

    async def conclude(self) -> None:
        """Ensure that nothing of the run still starts elsewhere; its end has been recorded.

        Called before `stop`, except if another coordinator may continue the run."""

    async def leave(self) -> None:
        """Stop as `stop` does, but leave attempts on other machines for another executor.

        That executor will `recover` them."""

    async def stop(self) -> None:
        """Stop everything that is still running and release all resources."""


# How a process ended, as one sentence for users.


_BY_SIGNAL = {
    signal.SIGSEGV: "Task failed with a segmentation fault.",
    signal.SIGKILL: (
        "The task's process was killed (SIGKILL): by somebody, or by the system because memory "
        "ran out."
    ),
}


def sentence(status: int) -> str:
    """Return one sentence on how a process ended that left no report.

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
    """Return one sentence on how a process ended after its step had finished.

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
    """Return the report of an attempt whose process ended without a report.

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
    """Return the report of an attempt that was lost, or ended by the executor itself.

    Args:
        task: The number of the task within its run.
        attempt: The number of the attempt, from 0.
        state: The final state of the attempt, such as cancelled, timed out or lost.
        reason: The reason, in one sentence.
        started_at: When it started, in seconds since the epoch.
        at: When it ended, in seconds since the epoch.
    """
    return AttemptReport(task, attempt, state.value, reason, started_at=started_at, finished_at=at)


def settle_soon(
    reports: Reports, attempt_key: AttemptKey, state: AttemptState, reason: str, now: float
) -> None:
    """Report the end of an attempt that has not started, in the next iteration of the event loop.

    Callers of `launch` and `cancel` do not expect the report before the call has returned.

    Args:
        reports: Receives the report.
        attempt_key: The numbers of task and attempt.
        state: The final state of the attempt: cancelled, interrupted or lost.
        reason: The reason, in one sentence.
        now: The current time, in seconds since the epoch.
    """
    report = stopped(*attempt_key, state, reason, now, now)
    asyncio.get_running_loop().call_soon(reports.ended, report, NO_USAGE)


def refuse(reports: Reports, attempt_key: AttemptKey, reason: str, now: float) -> None:
    """Report an attempt as failed, without retries, because its step's requirements cannot be met.

    Args:
        reports: Receives the start and the end.
        attempt_key: The numbers of task and attempt.
        reason: The reason, in one sentence.
        now: The current time, in seconds since the epoch.
    """
    reports.started(*attempt_key, None, now)
    report = stopped(*attempt_key, AttemptState.FAILED, reason, now, now)
    reports.ended(report._replace(retryable=False), NO_USAGE)
