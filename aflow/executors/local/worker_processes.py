"""Isolation `worker`, and coroutine steps: processes that run many attempts each.

Sequential workers are held a few specs ahead where tasks are short, so that no worker waits for
the coordinator between two of them; an idle worker takes specs that another one has queued
and has not begun. Coroutine steps all go to one process, whose event loop runs them side by side.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import signal
import socket
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import msgpack

from aflow._core.clock import Clock
from aflow._core.system import end_group, message_pair, messages_have_an_end
from aflow.executors import base
from aflow.executors.base import NO_USAGE, Reports
from aflow.executors.local import messages
from aflow.executors.local.task_processes import (
    CANCELLED,
    INTERRUPTED,
    OVER_TIME,
    Learn,
    pipes,
)
from aflow.executors.local.zygote_client import Zygotes
from aflow.scheduler.states import AttemptState
from aflow.task.spec import (
    ENDED,
    GROWN,
    IMPORTED,
    LOGGED,
    STARTED,
    AttemptKey,
    AttemptReport,
    AttemptSpec,
)

# The coordinator's end of one process that runs many attempts.


_CHUNK = 1 << 18
_LOOK_AGAIN = 0.01  # seconds


class WorkerProcess:
    """A process, the specs that it holds, and what it is running.

    Specs go to it as whole messages of a socket whose other end we keep as well: so a spec that
    the process has not taken yet can be taken back, by exactly one of the two.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        link: Zygotes,
        start: str,
        environment: Mapping[str, str],
        late: Mapping[str, str],
        coroutines: bool,
    ) -> None:
        self.pid: int | None = None
        self.running: dict[AttemptKey, float] = {}  # since when
        self.sent: dict[AttemptKey, AttemptSpec] = {}  # and not begun
        self.ending: str | None = None  # why we are ending it, if we are
        self.coroutines = coroutines
        self._loop = loop
        self._unpacker = messages.unpacker()
        self._open = True
        self._is_retired = False
        self._later: asyncio.TimerHandle | None = None
        with ExitStack() as made:  # where one of them is not available, none is kept
            self._specs, self._taken_back = _pair(made, message_pair(messages.MAX_MESSAGE))
            self._reports, their_reports = _pair(made, socket.socketpair())
            self._pipes, writers = pipes(2)
            made.callback(messages.close_all, self._pipes + writers)
            tasks, *readers = (_copy(made, fd) for fd in (self._taken_back.fileno(), *self._pipes))
            made.pop_all()
        for each in (self._specs, self._reports):
            each.setblocking(False)
        theirs = [tasks, their_reports.detach(), *writers, *readers]
        self.child = link.fork(messages.WORK, start, environment, coroutines, theirs, late)

    @property
    def in_hand(self) -> int:
        """How many attempts it has, begun or not."""
        return len(self.running) + len(self.sent)

    @property
    def reports(self) -> socket.socket:
        """Where its messages come from."""
        return self._reports

    def send(self, spec: AttemptSpec) -> bool:
        """Send a spec to the process, without blocking.

        Args:
            spec: The attempt; it is kept, to be launched elsewhere if the process dies before it
                starts.

        Returns:
            False if the channel is full: nothing was sent.
        """
        if not self._send(spec.encode()):
            return False
        self.sent[spec.attempt_key] = spec
        return True

    def cancel(self, attempt_key: AttemptKey) -> None:
        """Ask it to cancel a coroutine. If there is no room even for that, it does not listen.

        Args:
            attempt_key: The step, task and number of the attempt.
        """
        self._send(messages.CANCEL + msgpack.packb(attempt_key))

    def _send(self, data: bytes) -> bool:
        try:
            self._specs.send(data)
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            return False
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # no room, for datagrams of macOS
                raise
            return False
        return True

    def when_roomy(self, callback: Callable[[], None]) -> None:
        """Call back when it may have room, once or more often, until `when_roomy_stop`.

        Args:
            callback: Called in the event loop; it has to look whether there is room.
        """
        if messages_have_an_end():
            self._loop.add_writer(self._specs, callback)
        else:  # datagrams: whether there is room is not known everywhere
            self.when_roomy_stop()
            self._later = self._loop.call_later(_LOOK_AGAIN, callback)

    def when_roomy_stop(self) -> None:
        """No longer call back."""
        if self._later is None:
            self._loop.remove_writer(self._specs)
        else:
            self._later.cancel()

    def take_back(self) -> list[AttemptSpec]:
        """Take back every spec that the process has not taken itself.

        Returns:
            The attempts, which the caller launches elsewhere.
        """
        taken: list[AttemptSpec] = []
        cancels: list[bytes] = []
        while data := self._next_sent():
            if data.startswith(messages.CANCEL):
                cancels.append(data)
                continue
            spec = AttemptSpec.decode(data)
            del self.sent[spec.attempt_key]
            taken.append(spec)
        for data in cancels:
            self._send(data)
        if self._is_retired:
            self.retire()
        return taken

    def _next_sent(self) -> bytes:
        """The next message that the process has not taken; b"" if there is none."""
        try:
            # Not O_NONBLOCK: that would be the other process's as well.
            return self._taken_back.recv(_CHUNK, socket.MSG_DONTWAIT)
        except (BlockingIOError, ConnectionResetError):
            return b""

    def unbegun(self) -> list[AttemptSpec]:
        """Return, after the process has ended, every spec that it was sent and had not begun. It
        may have taken one of them from the socket; it had not reported that, and so had not begun
        it."""
        specs = [*self.sent.values()]
        self.sent.clear()
        return specs

    def messages(self) -> list[tuple[Any, ...]]:
        """Return what it has said since the last call, or the beginning of that."""
        self._receive()
        return list(self._unpacker)

    def last_messages(self) -> list[tuple[Any, ...]]:
        """Return all that a dead process has said and nobody has read."""
        while self._receive():
            continue
        return list(self._unpacker)

    def _receive(self) -> bool:
        try:
            data = self._reports.recv(_CHUNK)
        except (BlockingIOError, ConnectionResetError):
            return False
        if not data:
            self._loop.remove_reader(self._reports)
            return False
        self._unpacker.feed(data)
        return True

    def rest_of_output(self) -> list[tuple[int, bytes]]:
        """Return what a dead process has left in its pipes: (stream, bytes)."""
        rest = []
        for stream, fd in enumerate(self._pipes):
            try:
                data = os.read(fd, _CHUNK)
            except BlockingIOError:
                continue
            if data:
                rest.append((stream, data))
        return rest

    def retire(self) -> None:
        """Ask it to end once it has run what it holds."""
        self._is_retired = True
        if messages_have_an_end():
            self._specs.shutdown(socket.SHUT_WR)
        else:
            self._send(b"")

    def close(self) -> None:
        """Release its sockets and pipes. May be called twice."""
        if not self._open:
            return
        self._open = False
        self._loop.remove_reader(self._reports)
        self.when_roomy_stop()
        for each in (self._specs, self._taken_back, self._reports):
            each.close()
        messages.close_all(self._pipes)


def _pair(
    made: ExitStack, pair: tuple[socket.socket, socket.socket]
) -> tuple[socket.socket, socket.socket]:
    """Two ends of a socket, closed again if `made` is."""
    ours, theirs = pair
    made.enter_context(ours)
    made.enter_context(theirs)
    return ours, theirs


def _copy(made: ExitStack, fd: int) -> int:
    """Another descriptor of the same file, closed again if `made` is."""
    copy = os.dup(fd)
    made.callback(os.close, copy)
    return copy


MAX_AHEAD = 8  # specs that a worker holds at most, the one that it runs included
MAX_STILLBORN = 3  # workers in a row that may end before they have begun anything
_WORTH_HOLDING = 0.002  # seconds of work that a worker should have in hand


class WorkerPool:
    """Processes of one kind, the specs that wait for them, and what they run."""

    def __init__(
        self,
        link: Zygotes,
        reports: Reports,
        clock: Clock,
        *,
        size: int,
        start: str,
        environment: Mapping[str, str],
        late: Mapping[str, str],
        coroutines: bool,
        grace: float,
        limit_of: Callable[[str], float | None],
        owned: dict[int, WorkerPool],
        learn: Learn,
    ) -> None:
        self._start = start
        self._environment = environment
        self._late = late  # variables that are set when a process is forked
        self._owned = owned  # processes of all pools, to which ours are added
        self._learn = learn
        self._loop = asyncio.get_running_loop()
        self._link = link
        self._reports = reports
        self._clock = clock
        self._size = size
        self._coroutines = coroutines
        self._grace = grace
        self._limit_of = limit_of
        self._queue: deque[AttemptSpec] = deque()
        self._workers: dict[int, WorkerProcess] = {}
        self._cancelled: dict[AttemptKey, tuple[AttemptState, str]] = {}
        self._timers: dict[AttemptKey, asyncio.TimerHandle] = {}
        self._kill_timers: dict[int, asyncio.TimerHandle] = {}
        self._has_read_one = False  # in this turn of the event loop
        self._stillborn = 0
        self._ahead = 1  # specs that a worker holds: more than one only while tasks are short
        self._duration = 1.0  # of an attempt, in seconds, as it goes lately

    # ------------------------------------------------------------ in

    def launch(self, spec: AttemptSpec) -> None:
        """Run an attempt as soon as there is room."""
        self._queue.append(spec)
        self._feed()

    def cancel(self, task: int, attempt: int) -> None:
        """Stop an attempt, wherever it is."""
        self._end((task, attempt), AttemptState.CANCELLED, CANCELLED, self._grace)
        self._feed()

    def fail(self, task: int, attempt: int, reason: str) -> None:
        """End an attempt at once, and its process: it has done what it must not.

        Args:
            task: The number of the task within its run.
            attempt: The number of the attempt, from 0.
            reason: Why, in one sentence.
        """
        self._end((task, attempt), AttemptState.FAILED, reason, 0.0)

    def pid_of(self, task: int, attempt: int) -> int | None:
        """Return the process that runs an attempt; None where none does (yet).

        Args:
            task: The number of the task within its run.
            attempt: The number of the attempt, from 0.
        """
        attempt_key = (task, attempt)
        return next(
            (each.pid for each in self._workers.values() if attempt_key in each.running), None
        )

    def interrupt(self) -> None:
        """Stop everything: our own shutdown."""
        while self._queue:
            self._settle_unstarted(self._queue.popleft(), AttemptState.INTERRUPTED, INTERRUPTED)
        for worker in self._workers.values():
            for attempt_key in [*worker.sent, *worker.running]:
                self._end(attempt_key, AttemptState.INTERRUPTED, INTERRUPTED, self._grace)
            worker.ending = worker.ending or INTERRUPTED
            worker.retire()
            self._kill_later(worker, self._grace)

    def __len__(self) -> int:
        return len(self._workers)

    # ------------------------------------------------------------ handing out

    def _feed(self, may_grow: bool = True) -> None:
        """Hand out what waits, while there is room."""
        while self._queue:
            worker = self._roomiest(may_grow)
            if worker is None:
                return
            if not worker.send(self._queue[0]):
                worker.when_roomy(functools.partial(self._roomy, worker))
                return
            self._queue.popleft()

    def _roomy(self, worker: WorkerProcess) -> None:
        worker.when_roomy_stop()
        self._feed()

    def _roomiest(self, may_grow: bool) -> WorkerProcess | None:
        """The worker for the next spec; a new one while all are busy and there may be more."""
        able, least, in_hand = 0, None, 0
        for worker in self._workers.values():
            if worker.ending is None:
                able += 1
                if least is None or worker.in_hand < in_hand:
                    least, in_hand = worker, worker.in_hand
        if least is not None and (self._coroutines or not in_hand):
            return least
        if may_grow and able < (1 if self._coroutines else self._size):
            return self._new_worker()
        return least if in_hand < self._ahead else None

    def _new_worker(self) -> WorkerProcess | None:
        try:
            worker = WorkerProcess(
                self._loop,
                self._link,
                self._start,
                self._environment,
                self._late,
                self._coroutines,
            )
        except OSError as error:
            if self._workers:  # go on with those there are
                return None
            self._refuse(f"no worker could be started: {error.strerror}")
            return None
        self._workers[worker.child] = worker
        self._owned[worker.child] = self
        self._loop.add_reader(worker.reports, self._read_reports, worker)
        return worker

    def _refuse(self, reason: str) -> None:
        while self._queue:
            spec = self._queue.popleft()
            self._settle_unstarted(spec, AttemptState.LOST, f"The task was lost: {reason}.")

    def _fail_all(self, reason: str) -> None:
        """What waits cannot be run as was asked for, and could not be the next time."""
        while self._queue:
            spec = self._queue.popleft()
            base.refuse(self._reports, spec.attempt_key, reason, self._clock.now())

    def _settle_unstarted(self, spec: AttemptSpec, state: AttemptState, reason: str) -> None:
        base.settle_soon(self._reports, spec.attempt_key, state, reason, self._clock.now())

    # ------------------------------------------------------------ what workers say

    def _read_reports(self, worker: WorkerProcess) -> None:
        # One worker a turn of the loop, about a millisecond, since the loop is also that of the
        # program around us: many workers may report at once. A worker that is not read now
        # is signalled again.
        if self._has_read_one:
            return
        self._has_read_one = True
        self._loop.call_soon(self._next_turn)
        for message in worker.messages():
            self._note(worker, message)
        if self._queue:
            self._feed()
        elif worker.in_hand == 0 and not self._coroutines:
            self._share(worker)

    def _next_turn(self) -> None:
        self._has_read_one = False

    def _note(self, worker: WorkerProcess, message: tuple[Any, ...]) -> None:
        kind = message[0]
        if kind == ENDED:
            self._note_end(worker, AttemptReport(*message[1:]))
        elif kind == GROWN:
            self._reports.grown(*message[1:])
        elif kind == IMPORTED:
            self._learn(*message[1:])
        elif kind == LOGGED:
            self._reports.logged(*message[1:])
        elif kind == STARTED:
            _, task, attempt, pid, at = message
            spec = worker.sent.pop((task, attempt))
            worker.running[(task, attempt)] = at
            self._stillborn = 0
            self._watch(spec, at)
            self._reports.started(task, attempt, pid, at)

    def _note_end(self, worker: WorkerProcess, report: AttemptReport) -> None:
        attempt_key = report.attempt_key
        del worker.running[attempt_key]
        self._duration += 0.2 * (report.finished_at - report.started_at - self._duration)
        self._ahead = max(1, min(MAX_AHEAD, int(_WORTH_HOLDING / max(self._duration, 1e-6))))
        self._unwatch(attempt_key)
        ending = self._cancelled.pop(attempt_key, None)
        if ending is not None and report.state == AttemptState.CANCELLED.value:
            state, reason = ending
            report = report._replace(state=state.value, reason=reason)
        self._reports.ended(report, NO_USAGE)

    def _share(self, idle: WorkerProcess) -> None:
        """Let an idle worker have half of what the busiest one holds and has not begun."""
        busiest = max(self._workers.values(), key=lambda each: len(each.sent))
        if not busiest.sent or busiest is idle:
            return
        taken = busiest.take_back()
        keep = len(taken) // 2
        self._queue.extendleft(reversed(taken[keep:]))
        for spec in taken[:keep]:
            if not busiest.send(spec):
                self._queue.append(spec)
        self._feed()

    # ------------------------------------------------------------ time and ends

    def _watch(self, spec: AttemptSpec, at: float) -> None:
        limit = self._limit_of(spec.step)
        attempt_key = spec.attempt_key
        if limit is None or attempt_key in self._cancelled:
            return
        self._timers[attempt_key] = self._loop.call_later(
            limit, lambda: self._end(attempt_key, AttemptState.TIMED_OUT, OVER_TIME, 0.0)
        )

    def _unwatch(self, attempt_key: AttemptKey) -> None:
        if self._timers:
            timer = self._timers.pop(attempt_key, None)
            if timer is not None:
                timer.cancel()

    def _end(self, attempt_key: AttemptKey, state: AttemptState, reason: str, grace: float) -> None:
        for spec in self._queue:
            if spec.attempt_key == attempt_key:
                self._queue.remove(spec)
                self._settle_unstarted(spec, state, reason)
                return
        worker = next(
            (
                w
                for w in self._workers.values()
                if attempt_key in w.sent or attempt_key in w.running
            ),
            None,
        )
        if worker is None or attempt_key in self._cancelled:
            return
        if attempt_key in worker.sent:
            self._recall(worker, attempt_key, state, reason)
        if attempt_key in worker.running or attempt_key in worker.sent:
            self._cancelled[attempt_key] = (state, reason)
            self._stop_running(worker, attempt_key, grace)

    def _recall(
        self, worker: WorkerProcess, attempt_key: AttemptKey, state: AttemptState, reason: str
    ) -> None:
        for spec in worker.take_back():
            if spec.attempt_key == attempt_key:
                self._settle_unstarted(spec, state, reason)
            else:
                self._queue.append(spec)

    def _stop_running(self, worker: WorkerProcess, attempt_key: AttemptKey, grace: float) -> None:
        if self._coroutines and grace:
            worker.cancel(attempt_key)
            # A coroutine can refuse, or never come back to the event loop. Then its process goes,
            # and the others in it are lost.
            self._unwatch(attempt_key)
            self._timers[attempt_key] = self._loop.call_later(
                grace, self._stop_running, worker, attempt_key, 0.0
            )
            return
        worker.ending = self._cancelled[attempt_key][1]
        self._queue.extend(worker.take_back())
        if grace:
            self._link.kill(worker.child, signal.SIGTERM)
        self._kill_later(worker, grace)

    def _kill_later(self, worker: WorkerProcess, grace: float) -> None:
        if worker.child not in self._kill_timers:
            self._kill_timers[worker.child] = self._loop.call_later(
                grace, lambda: self._link.kill(worker.child, signal.SIGKILL)
            )

    # ------------------------------------------------------------ what zygotes report

    def forked(self, child: int, pid: int, at: float) -> None:
        """A worker's process has been forked."""
        self._workers[child].pid = pid

    def exited(self, child: int, status: int, max_rss: int, cpu: float) -> None:
        """Handle the end of a worker: report the attempts that it was running, and hand out again
        what it had not begun. What it has used is that of many attempts."""
        worker = self._workers[child]
        for message in worker.last_messages():
            self._note(worker, message)
        alone = len(worker.running) == 1
        # What dies while we end the process for the sake of another attempt is not to blame.
        to_blame = alone and worker.ending is None
        self._stillborn += not worker.running and not worker.ending
        for stream, data in worker.rest_of_output():
            if alone:
                attempt_key = next(iter(worker.running))
                self._reports.logged(*attempt_key, stream, self._clock.now(), data)
        self._bury(
            worker, lambda attempt_key, since: self._verdict(attempt_key, since, status, to_blame)
        )
        if self._stillborn >= MAX_STILLBORN:
            self._refuse(f"workers end before they begin: {base.sentence(status).rstrip('.')}")

    def _verdict(
        self, attempt_key: AttemptKey, since: float, status: int, to_blame: bool
    ) -> AttemptReport:
        now = self._clock.now()
        ending = self._cancelled.get(attempt_key)
        if ending is not None:
            return base.stopped(*attempt_key, *ending, since, now)
        if to_blame:
            return base.report(*attempt_key, status, since, now)
        reason = f"The task was lost with others of its process: {base.sentence(status)}"
        return base.stopped(*attempt_key, AttemptState.LOST, reason, since, now)

    def not_forked(self, child: int, reason: str) -> None:
        """Handle a worker that could not be forked now."""
        worker = self._workers[child]
        self._bury(
            worker, lambda attempt_key, since: self._lost(attempt_key, since, reason), again=False
        )
        self._feed(may_grow=False)  # to those there are: another one could not be had either
        if not self._workers:
            self._refuse(reason)

    def refused(self, child: int, reason: str) -> None:
        """Report as failed the attempts that wait for a worker which cannot be forked in the way
        that their step asks for.
        """
        self._bury(
            self._workers[child],
            lambda attempt_key, since: self._lost(attempt_key, since, reason),
            again=False,
        )
        if not self._workers:
            self._fail_all(reason)

    def lost(self, reason: str) -> None:
        """Report all attempts as lost: the first zygote is gone, and all workers with it.

        Args:
            reason: Why, in one sentence.
        """
        for worker in [*self._workers.values()]:
            if worker.pid is not None:
                end_group(worker.pid)
            self._bury(
                worker,
                lambda attempt_key, since: self._lost(attempt_key, since, reason),
                again=False,
            )
        self._refuse(reason)

    def _lost(self, attempt_key: AttemptKey, since: float, reason: str) -> AttemptReport:
        state, why = self._cancelled.get(
            attempt_key, (AttemptState.LOST, f"The task was lost: {reason}.")
        )
        return base.stopped(*attempt_key, state, why, since, self._clock.now())

    def _bury(
        self,
        worker: WorkerProcess,
        verdict: Callable[[AttemptKey, float], AttemptReport],
        again: bool = True,
    ) -> None:
        del self._workers[worker.child]
        timer = self._kill_timers.pop(worker.child, None)
        if timer is not None:
            timer.cancel()
        self._take_over(worker.unbegun())
        running = [*worker.running.items()]
        worker.close()
        for attempt_key, since in running:
            report = verdict(attempt_key, since)
            self._unwatch(attempt_key)
            self._cancelled.pop(attempt_key, None)
            self._reports.ended(report, NO_USAGE)
        if again:
            self._feed()

    def _take_over(self, specs: list[AttemptSpec]) -> None:
        """Queue again what a dead worker had not begun, unless it was to be stopped."""
        for spec in reversed(specs):
            ending = self._cancelled.pop(spec.attempt_key, None)
            self._unwatch(spec.attempt_key)
            if ending is None:
                self._queue.appendleft(spec)
            else:
                self._settle_unstarted(spec, *ending)
