"""Isolation `task`: a fresh process for each attempt, forked from a zygote."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import msgpack

from aflow._core.clock import Clock
from aflow._core.records import dataclass, field
from aflow._core.system import MemoryGroup, end_group, kills_for_memory, memory_group
from aflow.errors import OUT_OF_MEMORY
from aflow.executors import base
from aflow.executors.base import NO_USAGE, Reports, Usage
from aflow.executors.local import messages
from aflow.executors.local.admission import FREE, ConcurrencyLimit, Granted
from aflow.executors.local.zygote_client import Zygotes
from aflow.scheduler.states import AttemptState
from aflow.task.spec import GROWN, IMPORTED, REACHED, AttemptKey, AttemptReport, AttemptSpec

if TYPE_CHECKING:
    from aflow.executors.local.terminal import Terminal

_CHUNK = 1 << 16  # bytes: what a pipe holds on Linux
INTERRUPTED = "The task was interrupted: the run was stopped."
CANCELLED = "The task was cancelled."
STARTING = 300.0  # seconds in addition to a limit for a program that has not called its flow yet
OVER_TIME = "The step ran over its time and did not react; its process was killed."

Learn = Callable[[Mapping[str, Any]], None]  # receives the imports of a program


@dataclass(slots=True)
class FreshProcess:
    """One attempt in a separate process, from the request to its end."""

    attempt_key: AttemptKey
    fds: list[int]  # reading ends: stdout, stderr, report
    terminal: Terminal | None
    granted: Granted
    limit: float | None
    # The kills for memory on this machine before the attempt started.
    kills: int | None = field(default_factory=kills_for_memory)
    group: MemoryGroup | None = None  # bounds its memory, if supported
    pid: int | None = None
    started_at: float = 0.0
    unpacker: msgpack.Unpacker = field(default_factory=messages.unpacker)
    report: AttemptReport | None = None
    ending: tuple[AttemptState, str] | None = None  # why the coordinator is ending it
    timers: list[asyncio.TimerHandle] = field(default_factory=list)


class FreshProcesses:
    """All attempts that run in separate processes."""

    def __init__(
        self,
        link: Zygotes,
        reports: Reports,
        clock: Clock,
        grace: float,
        learn: Learn,
        limit: ConcurrencyLimit,
    ) -> None:
        self._learn = learn
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._link = link
        self._reports = reports
        self._clock = clock
        self._grace = grace
        self._live: dict[int, FreshProcess] = {}
        self._by_task: dict[tuple[int, int], int] = {}
        self._groups: list[MemoryGroup] = []  # of processes that have ended
        # Attempts that wait for free descriptors, with the function that launches them.
        self._postponed: deque[tuple[AttemptSpec, Callable[[], None]]] = deque()

    @property
    def at_once(self) -> int:
        """The number of attempts that have a process."""
        return len(self._live)

    is_waiting = False

    def feed(self) -> None:
        """Do nothing: attempts that are launched here do not wait for others."""

    def launch(
        self,
        spec: AttemptSpec,
        limit: float | None,
        start: str,
        environment: Mapping[str, str],
        terminal: Terminal | None = None,
        *,
        granted: Granted = FREE,
    ) -> None:
        """Run an attempt in a separate process.

        Args:
            spec: The spec of the attempt.
            limit: The seconds after which it is killed from outside, from the call of its flow on;
                None for no limit.
            start: `fresh` for a new process, `fork` for a fork of the program.
            environment: The environment variables of its step, by name.
            terminal: The terminal that is lent to it, or None.
            granted: The slots that it holds on this machine; the caller releases them.
        """
        try:
            readers, writers = _channels(terminal)
        except OSError as error:
            if self._live and error.errno in (errno.EMFILE, errno.ENFILE):
                # Running attempts free their descriptors when they end.
                self._postponed.append(
                    (spec, partial(self.launch, spec, limit, start, environment, terminal,
                                   granted=granted))
                )  # fmt: skip
                return
            reason = f"The task was lost: no pipes could be opened for it: {error.strerror}."
            self._settle_unstarted(spec, AttemptState.LOST, reason)
            return
        process = FreshProcess(spec.attempt_key, readers, terminal, granted, limit)
        kind = messages.RUN if terminal is None else messages.DEBUG
        environment = {**granted.early, **environment}
        late = granted.late
        if granted.memory is not None and (group := memory_group(granted.memory)) is not None:
            process.group = group
            late = {**late, messages.MEMORY_GROUP: group.path}
        child = self._link.fork(kind, start, environment, spec.encode(), writers, late)
        self._live[child] = process
        self._by_task[spec.attempt_key] = child
        self._watch(process, STARTING)

    def _settle_unstarted(self, spec: AttemptSpec, state: AttemptState, reason: str) -> None:
        base.settle_soon(self._reports, spec.attempt_key, state, reason, self._clock.now())

    def _settle_postponed(self, state: AttemptState, reason: str) -> None:
        while self._postponed:
            self._settle_unstarted(self._postponed.popleft()[0], state, reason)

    def cancel(self, task: int, attempt: int) -> None:
        """Stop an attempt, if it is live: SIGTERM, and SIGKILL after the grace period."""
        for each in self._postponed:
            if each[0].attempt_key == (task, attempt):
                self._postponed.remove(each)
                self._settle_unstarted(each[0], AttemptState.CANCELLED, CANCELLED)
                return
        child = self._by_task.get((task, attempt))
        if child is not None:
            self._end(child, AttemptState.CANCELLED, CANCELLED, self._grace)

    def fail(self, task: int, attempt: int, reason: str) -> None:
        """Kill an attempt, if it is live, and report it as failed.

        Args:
            task: The number of the task within its run.
            attempt: The number of the attempt, from 0.
            reason: Why, in one sentence.
        """
        child = self._by_task.get((task, attempt))
        if child is not None:
            self._end(child, AttemptState.FAILED, reason, 0.0)

    def pid_of(self, task: int, attempt: int) -> int | None:
        """Return the process id of an attempt; None if it has no process (yet).

        Args:
            task: The number of the task within its run.
            attempt: The number of the attempt, from 0.
        """
        process = self._live.get(self._by_task.get((task, attempt), -1))
        return None if process is None else process.pid

    def interrupt(self) -> None:
        """Stop all attempts, since the coordinator shuts down."""
        self._settle_postponed(AttemptState.INTERRUPTED, INTERRUPTED)
        for child in [*self._live]:
            self._end(child, AttemptState.INTERRUPTED, INTERRUPTED, self._grace)

    def _end(self, child: int, state: AttemptState, reason: str, grace: float) -> None:
        process = self._live.get(child)
        if process is None or process.ending is not None:
            return
        process.ending = (state, reason)
        if grace:
            self._link.kill(child, signal.SIGTERM)
            self._after(process, grace, lambda: self._link.kill(child, signal.SIGKILL))
        else:
            self._link.kill(child, signal.SIGKILL)

    def _watch(self, process: FreshProcess, later: float = 0.0) -> None:
        """Kill an attempt when its time is over, which begins in so many seconds."""
        if process.limit is not None:
            child = self._by_task[process.attempt_key]
            self._after(
                process,
                process.limit + later,
                lambda: self._end(child, AttemptState.TIMED_OUT, OVER_TIME, 0.0),
            )

    def _after(self, process: FreshProcess, seconds: float, what: Callable[[], None]) -> None:
        process.timers.append(self._loop.call_later(seconds, what))

    # ------------------------------------------------------------ what zygotes report

    def forked(self, child: int, pid: int, at: float) -> None:
        """Read the output of a process that has been forked."""
        process = self._live[child]
        process.pid, process.started_at = pid, at
        self._reports.started(*process.attempt_key, pid, at)
        for number, fd in enumerate(process.fds):
            if fd >= 0:
                self._loop.add_reader(fd, self._read, process, number)

    def exited(self, child: int, status: int, max_rss: int, cpu: float) -> None:
        """Read what is left in the pipes of a process that has ended, and report its end."""
        process = self._live[child]
        for number in range(3):
            # Twice: a pipe holds one chunk. Processes that left the group may write more, which is
            # ignored.
            if self._read(process, number):
                self._read(process, number)
        self._settle(child, self._verdict(process, status), Usage(max_rss, cpu))

    def not_forked(self, child: int, reason: str) -> None:
        """Report an attempt as lost if the fork failed, or if its zygote has ended."""
        process = self._live[child]
        if process.pid is not None:
            end_group(process.pid)
        now = self._clock.now()
        state, why = process.ending or (AttemptState.LOST, f"The task was lost: {reason}.")
        report = base.stopped(*process.attempt_key, state, why, process.started_at or now, now)
        self._settle(child, process.report or report, NO_USAGE)

    def refused(self, child: int, reason: str) -> None:
        """Report an attempt as failed if its process cannot be forked as its step requests."""
        process = self._live[child]
        self._drop(child)
        base.refuse(self._reports, process.attempt_key, reason, self._clock.now())

    def lost(self, reason: str) -> None:
        """Report all attempts as lost: the first zygote is gone, and all processes with it.

        Args:
            reason: Why, in one sentence.
        """
        self._settle_postponed(AttemptState.LOST, f"The task was lost: {reason}.")
        for child in [*self._live]:
            self.not_forked(child, reason)

    def _verdict(self, process: FreshProcess, status: int) -> AttemptReport:
        now = self._clock.now()
        report = process.report
        if report is not None and report.state == AttemptState.SUCCEEDED.value and status:
            # The step succeeded, and the program failed after it.
            if process.ending is None:
                return report._replace(
                    state=AttemptState.FAILED.value,
                    reason=f"The step ended well, and the program after it did not: "
                    f"{base.ended_by(status)}",
                    finished_at=now,
                )
        elif report is not None:
            if report.state == AttemptState.FAILED.value and _was_out_of_memory(process):
                # One of its processes was killed for memory, which explains the failure of the
                # step.
                reason = f"{over_memory(process.granted.memory)} {report.reason}"
                return report._replace(reason=reason, retryable=True)
            return report
        if process.ending is not None:
            state, reason = process.ending
            return base.stopped(*process.attempt_key, state, reason, process.started_at, now)
        report = base.report(*process.attempt_key, status, process.started_at, now)
        if process.group is not None:
            # The group has a counter of kills. Other tasks may have run out of memory at the same
            # time, and this one may have been killed by a user.
            if _was_out_of_memory(process):
                report = report._replace(reason=over_memory(process.granted.memory))
        elif os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            kills = kills_for_memory()
            if None not in (kills, process.kills) and kills != process.kills:
                report = report._replace(reason=f"{OUT_OF_MEMORY}{report.reason}")
        return report

    def _settle(self, child: int, report: AttemptReport, usage: Usage) -> None:
        self._drop(child)
        self._reports.ended(report, usage)

    def _drop(self, child: int) -> None:
        process = self._live.pop(child)
        del self._by_task[process.attempt_key]
        for timer in process.timers:
            timer.cancel()
        for number in range(3):
            self._close(process, number)
        if process.terminal is not None:
            process.terminal.take_back()
        if process.group is not None:
            self._groups.append(process.group)
            self.tidy()
        if self._postponed:
            self._loop.call_soon(self._launch_postponed)
        self._limit.feed()

    def tidy(self) -> None:
        """Remove the memory groups that have no processes left."""
        self._groups = [each for each in self._groups if not each.remove()]

    def _launch_postponed(self) -> None:
        """Launch the attempts that waited for free descriptors."""
        waiting, self._postponed = self._postponed, deque()
        for _, launch in waiting:
            launch()

    # ------------------------------------------------------------ pipes

    def _read(self, process: FreshProcess, number: int) -> bool:
        """Read once from one of the pipes; False if it is empty for now."""
        if process.fds[number] < 0:
            return False
        try:
            data = os.read(process.fds[number], _CHUNK)
        except BlockingIOError:
            return False
        except OSError:  # a pseudo-terminal whose other side is closed
            data = b""
        if not data:
            self._close(process, number)
            return False
        if number < 2:
            if process.terminal is not None and process.terminal.is_one:
                process.terminal.show(data)
            self._reports.logged(*process.attempt_key, number, self._clock.now(), data)
        else:
            process.unpacker.feed(data)
            for message in process.unpacker:
                if message[0] == GROWN:
                    self._reports.grown(*message[1:])
                elif message[0] == IMPORTED:
                    self._learn(*message[1:])
                elif message[0] == REACHED:
                    self._watch(process)
                else:
                    process.report = AttemptReport(*message[1:])
        return True

    def _close(self, process: FreshProcess, number: int) -> None:
        fd = process.fds[number]
        if fd >= 0:
            process.fds[number] = -1
            self._loop.remove_reader(fd)
            os.close(fd)


def _channels(terminal: Terminal | None) -> tuple[list[int], list[int]]:
    """Return the coordinator's and the task's ends of stdout, stderr and the report.

    If a terminal is lent, the task's ends include a stdin. Either all are created or none.
    """
    readers, writers = pipes(3)
    if terminal is not None:
        try:
            terminal.lend(readers, writers)
        except OSError:
            messages.close_all(readers + writers)
            raise
    return readers, writers


def _was_out_of_memory(process: FreshProcess) -> bool:
    return process.group is not None and process.group.kills() > 0


def over_memory(limit: int | None, size: int | None = None) -> str:
    """Return the reason why an attempt that exceeded its memory was ended.

    Args:
        limit: The limit of its memory, in bytes.
        size: The memory that it used, in bytes; None if that is unknown.
    """
    had = f", and had {size >> 20}" if size is not None else ""
    return (
        f"{OUT_OF_MEMORY}the task needs more than the {(limit or 0) >> 20} MB of memory that it "
        f"asked for{had}: give the step more, with @resources(memory=...)."
    )


def pipes(count: int) -> tuple[list[int], list[int]]:
    """Create pipes for the output of a task; either all of them or none.

    Args:
        count: How many pipes.

    Returns:
        The reading ends, which do not block, and the writing ends. The caller closes them.
    """
    readers: list[int] = []
    writers: list[int] = []
    try:
        for _ in range(count):
            readable, writable = os.pipe()
            readers.append(readable)
            writers.append(writable)
            os.set_blocking(readable, False)
    except OSError:
        messages.close_all(readers + writers)
        raise
    return readers, writers
