"""Isolation `worker`, and coroutine steps: processes that run many attempts each.

While tasks are short, sequential workers hold a few specs ahead, so that they do not wait for the
coordinator between attempts. An idle worker gets specs that another one holds and has not started.
All coroutine steps go to one process, whose event loop runs them concurrently.
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
from aflow.executors.local.admission import ConcurrencyLimit
from aflow.executors.local.task_processes import (
    CANCELLED,
    INTERRUPTED,
    OVER_TIME,
    STARTING,
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
    REACHED,
    STARTED,
    AttemptKey,
    AttemptReport,
    AttemptSpec,
)

# The coordinator's side of one process that runs many attempts.


_CHUNK = 1 << 18
_LOOK_AGAIN = 0.01  # seconds between two tries to send


class WorkerProcess:
    """A process, the specs that it holds, and the attempts that it runs.

    Specs are messages of a socket. The coordinator also keeps the process's end of it, so that it
    can take back a spec: only one of the two can receive each message.
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
        self.sent: dict[AttemptKey, AttemptSpec] = {}  # sent and not started
        self.first: AttemptSpec | None = None  # that it has started
        self.has_reached_flow = False
        self.ending: str | None = None  # why the coordinator is ending it
        self._loop = loop
        self._unpacker = messages.unpacker()
        self._is_retired = False
        self._later: asyncio.TimerHandle | None = None
        with ExitStack() as made:  # either all of them are opened or none
            self._specs, self._taken_back = _pair(made, message_pair(messages.MAX_MESSAGE))
            self.reports, their_reports = _pair(made, socket.socketpair())
            self._pipes, writers = pipes(2)
            made.callback(messages.close_all, self._pipes + writers)
            tasks, *readers = (_copy(made, fd) for fd in (self._taken_back.fileno(), *self._pipes))
            made.pop_all()
        for each in (self._specs, self.reports):
            each.setblocking(False)
        theirs = [tasks, their_reports.detach(), *writers, *readers]
        self.child = link.fork(messages.WORK, start, environment, coroutines, theirs, late)

    @property
    def in_hand(self) -> int:
        """The number of attempts that it holds, started or not."""
        return len(self.running) + len(self.sent)

    def send(self, spec: AttemptSpec) -> bool:
        """Send a spec to the process, without blocking.

        Args:
            spec: The spec of the attempt. It is kept, to be launched elsewhere if the process ends
                before the attempt starts.

        Returns:
            False if the socket is full and nothing was sent.
        """
        if not self._send(spec.encode()):
            return False
        self.sent[spec.attempt_key] = spec
        return True

    def cancel(self, attempt_key: AttemptKey) -> None:
        """Request the cancellation of a coroutine. Has no effect if the socket is full.

        Args:
            attempt_key: The task and number of the attempt.
        """
        self._send(messages.CANCEL + msgpack.packb(attempt_key))

    def _send(self, data: bytes) -> bool:
        try:
            self._specs.send(data)
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            return False
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # datagram buffers of macOS are full
                raise
            return False
        return True

    def when_roomy(self, callback: Callable[[], None]) -> None:
        """Call back when the socket may have room, once or more, until `when_roomy_stop`.

        Args:
            callback: Called in the event loop; it must check whether there is room.
        """
        if messages_have_an_end():
            self._loop.add_writer(self._specs, callback)
        else:  # datagrams: not every system reports when there is room
            self.when_roomy_stop()
            self._later = self._loop.call_later(_LOOK_AGAIN, callback)

    def when_roomy_stop(self) -> None:
        """Stop calling back."""
        if self._later is None:
            self._loop.remove_writer(self._specs)
        else:
            self._later.cancel()

    def take_back(self) -> list[AttemptSpec]:
        """Take back every spec that the process has not received.

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
        """Return the next message that the process has not received; b"" if there is none."""
        try:
            # Not O_NONBLOCK, which would apply to the process's descriptor as well.
            return self._taken_back.recv(_CHUNK, socket.MSG_DONTWAIT)
        except (BlockingIOError, ConnectionResetError):
            return b""

    def messages(self) -> list[tuple[Any, ...]]:
        """Return the messages since the last call, or some of them if there are many."""
        self._receive()
        return list(self._unpacker)

    def last_messages(self) -> list[tuple[Any, ...]]:
        """Return all unread messages of a process that has ended."""
        while self._receive():
            continue
        return list(self._unpacker)

    def _receive(self) -> bool:
        try:
            data = self.reports.recv(_CHUNK)
        except (BlockingIOError, ConnectionResetError):
            return False
        if not data:
            self._loop.remove_reader(self.reports)
            return False
        self._unpacker.feed(data)
        return True

    def rest_of_output(self) -> list[tuple[int, bytes]]:
        """Return the unread output in the pipes of a process that has ended: (stream, bytes)."""
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
        """Request the process to exit once it has run what it holds."""
        self._is_retired = True
        if messages_have_an_end():
            self._specs.shutdown(socket.SHUT_WR)
        else:
            self._send(b"")

    def close(self) -> None:
        """Close its sockets and pipes."""
        self._loop.remove_reader(self.reports)
        self.when_roomy_stop()
        for each in (self._specs, self._taken_back, self.reports):
            each.close()
        messages.close_all(self._pipes)


def _pair(
    made: ExitStack, pair: tuple[socket.socket, socket.socket]
) -> tuple[socket.socket, socket.socket]:
    """Return both ends of a socket; closing `made` closes them."""
    ours, theirs = pair
    made.enter_context(ours)
    made.enter_context(theirs)
    return ours, theirs


def _copy(made: ExitStack, fd: int) -> int:
    """Return a duplicate of a descriptor; closing `made` closes it."""
    copy = os.dup(fd)
    made.callback(os.close, copy)
    return copy


MAX_AHEAD = 8  # specs that a worker holds at most, including the running one
MAX_STILLBORN = 3  # consecutive workers that may end before they have started an attempt
_WORTH_HOLDING = 0.002  # seconds of work that a worker should hold


class WorkerPool:
    """Processes of one kind, the specs that wait for them, and the attempts that they run."""

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
        limit: ConcurrencyLimit,
    ) -> None:
        self._limit = limit
        self._start = start
        self._environment = environment
        self._late = late  # variables that are set after the fork
        self._owned = owned  # processes of all pools; this pool adds its own
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
        self._has_read_one = False  # in this iteration of the event loop
        self._stillborn = 0
        self._ahead = 1  # specs that a worker holds: more than one only while tasks are short
        self._duration = 1.0  # moving average of the seconds that an attempt takes

    # ------------------------------------------------------------ requests

    def launch(self, spec: AttemptSpec) -> None:
        """Run an attempt as soon as a worker has room."""
        self._queue.append(spec)
        self.feed()

    def cancel(self, task: int, attempt: int) -> None:
        """Stop an attempt, whether it waits or runs."""
        self._end((task, attempt), AttemptState.CANCELLED, CANCELLED, self._grace)
        self.feed()

    def fail(self, task: int, attempt: int, reason: str) -> None:
        """Kill an attempt together with its process, and report it as failed.

        Args:
            task: The number of the task within its run.
            attempt: The number of the attempt, from 0.
            reason: Why, in one sentence.
        """
        self._end((task, attempt), AttemptState.FAILED, reason, 0.0)

    def pid_of(self, task: int, attempt: int) -> int | None:
        """Return the id of the process that runs an attempt; None if there is none (yet).

        Args:
            task: The number of the task within its run.
            attempt: The number of the attempt, from 0.
        """
        attempt_key = (task, attempt)
        return next(
            (each.pid for each in self._workers.values() if attempt_key in each.running), None
        )

    def interrupt(self) -> None:
        """Stop all attempts, since the coordinator shuts down."""
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

    @property
    def at_once(self) -> int:
        """The number of attempts that run at the same time, or are about to."""
        in_hand = [each.in_hand for each in self._workers.values()]
        return sum(in_hand) if self._coroutines else len(in_hand) - in_hand.count(0)

    @property
    def is_waiting(self) -> bool:
        """Whether specs wait for a worker."""
        return bool(self._queue)

    # ------------------------------------------------------------ sending

    def feed(self, may_grow: bool = True) -> None:
        """Send waiting specs to workers while there is room.

        Args:
            may_grow: Whether more workers may be started.
        """
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
        self.feed()

    def _roomiest(self, may_grow: bool) -> WorkerProcess | None:
        """Return the worker for the next spec; a new one if all are busy and `size` allows it.

        None if all have enough, or if the spec would exceed the limit of concurrent attempts.
        """
        able, least, in_hand = 0, None, 0
        for worker in self._workers.values():
            if worker.ending is None:
                able += 1
                if least is None or worker.in_hand < in_hand:
                    least, in_hand = worker, worker.in_hand
        if self._limit.is_reached:
            # A busy sequential worker may hold it until later, unless others have their turn then.
            may_hold = not self._coroutines and 0 < in_hand < self._ahead
            return least if may_hold and not self._limit.is_contended(self) else None
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
            if self._workers:  # continue with the existing workers
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
        """Fail all waiting attempts, which cannot be run as requested and must not be retried."""
        while self._queue:
            spec = self._queue.popleft()
            base.refuse(self._reports, spec.attempt_key, reason, self._clock.now())

    def _settle_unstarted(self, spec: AttemptSpec, state: AttemptState, reason: str) -> None:
        base.settle_soon(self._reports, spec.attempt_key, state, reason, self._clock.now())

    # ------------------------------------------------------------ what workers report

    def _read_reports(self, worker: WorkerProcess) -> None:
        # One worker for each iteration of the event loop, about a millisecond, since the user's
        # program may share the loop, and many workers may report at once. Workers that are not read
        # now stay readable.
        if self._has_read_one:
            return
        self._has_read_one = True
        self._loop.call_soon(self._next_turn)
        for message in worker.messages():
            self._note(worker, message)
        self._limit.feed()
        if not self._queue and worker.in_hand == 0 and not self._coroutines:
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
        elif kind == REACHED:
            assert worker.first is not None, "it has started one before"
            worker.has_reached_flow = True
            self._watch(worker.first)
        elif kind == STARTED:
            _, task, attempt, pid, at = message
            spec = worker.sent.pop((task, attempt))
            worker.running[(task, attempt)] = at
            self._stillborn = 0
            worker.first = worker.first or spec
            self._watch(spec, 0.0 if worker.has_reached_flow else STARTING)
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
        """Give an idle worker half of the specs that the busiest one has not started."""
        busiest = max(self._workers.values(), key=lambda each: len(each.sent))
        if not busiest.sent or busiest is idle:
            return
        taken = busiest.take_back()
        keep = len(taken) // 2
        self._queue.extendleft(reversed(taken[keep:]))
        for spec in taken[:keep]:
            if not busiest.send(spec):
                self._queue.append(spec)
        self.feed()

    # ------------------------------------------------------------ timeouts and cancellation

    def _watch(self, spec: AttemptSpec, later: float = 0.0) -> None:
        """Kill an attempt when its time is over, which begins in so many seconds."""
        limit = self._limit_of(spec.step)
        attempt_key = spec.attempt_key
        if limit is None or attempt_key in self._cancelled:
            return
        self._unwatch(attempt_key)
        self._timers[attempt_key] = self._loop.call_later(
            limit + later, lambda: self._end(attempt_key, AttemptState.TIMED_OUT, OVER_TIME, 0.0)
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
            # A coroutine can suppress the cancellation, or block the event loop. Then its process
            # is killed, and the other attempts in it are lost.
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
        """Record the process id of a worker that was forked."""
        self._workers[child].pid = pid

    def exited(self, child: int, status: int, max_rss: int, cpu: float) -> None:
        """Handle the end of a worker.

        The attempts that it was running are reported, and those that it had not started are sent to
        other workers. Resource usage is not reported, since it is the sum of many attempts.
        """
        worker = self._workers[child]
        for message in worker.last_messages():
            self._note(worker, message)
        alone = len(worker.running) == 1
        # An attempt is not to blame if its process was ended because of another one.
        to_blame = alone and worker.ending is None
        self._stillborn += not worker.running and not worker.ending
        for stream, data in worker.rest_of_output():
            if alone:
                attempt_key = next(iter(worker.running))
                self._reports.logged(*attempt_key, stream, self._clock.now(), data)
        self._bury(
            worker, lambda attempt_key, since: self._verdict(attempt_key, since, status, to_blame)
        )
        self._limit.feed()
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
        """Handle a worker that could not be forked."""
        self._lose(self._workers[child], reason)
        self.feed(may_grow=False)  # to existing workers: another fork would fail too
        if not self._workers:
            self._refuse(reason)
            self._limit.feed()

    def refused(self, child: int, reason: str) -> None:
        """Fail the waiting attempts of a worker that cannot be forked as their step requests."""
        self._lose(self._workers[child], reason)
        if not self._workers:
            self._fail_all(reason)
            self._limit.feed()

    def lost(self, reason: str) -> None:
        """Report all attempts as lost: the first zygote is gone, and all workers with it.

        Args:
            reason: Why, in one sentence.
        """
        for worker in [*self._workers.values()]:
            if worker.pid is not None:
                end_group(worker.pid)
            self._lose(worker, reason)
        self._refuse(reason)

    def _lose(self, worker: WorkerProcess, reason: str) -> None:
        """Report the attempts that a worker was running as lost, unless they were ended."""

        def verdict(attempt_key: AttemptKey, since: float) -> AttemptReport:
            lost = AttemptState.LOST, f"The task was lost: {reason}."
            ending = self._cancelled.get(attempt_key, lost)
            return base.stopped(*attempt_key, *ending, since, self._clock.now())

        self._bury(worker, verdict)

    def _bury(
        self, worker: WorkerProcess, verdict: Callable[[AttemptKey, float], AttemptReport]
    ) -> None:
        del self._workers[worker.child]
        timer = self._kill_timers.pop(worker.child, None)
        if timer is not None:
            timer.cancel()
        # It may have received one of these, but had not reported its start: it had not started it.
        self._take_over([*worker.sent.values()])
        worker.close()
        for attempt_key, since in worker.running.items():
            report = verdict(attempt_key, since)
            self._unwatch(attempt_key)
            self._cancelled.pop(attempt_key, None)
            self._reports.ended(report, NO_USAGE)

    def _take_over(self, specs: list[AttemptSpec]) -> None:
        """Queue specs that a worker had not started when it ended, unless they were cancelled."""
        for spec in reversed(specs):
            ending = self._cancelled.pop(spec.attempt_key, None)
            self._unwatch(spec.attempt_key)
            if ending is None:
                self._queue.appendleft(spec)
            else:
                self._settle_unstarted(spec, *ending)
