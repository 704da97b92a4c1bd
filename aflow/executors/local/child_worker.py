"""Run many attempts in one process: one after another, or concurrently for coroutine steps."""

from __future__ import annotations

import asyncio
import io
import os
import select
import socket
import sys
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextvars import ContextVar, copy_context
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import msgpack

from aflow._core import ending
from aflow._core.clock import SystemClock
from aflow._core.process import fastest_kind, outer_loop_paused, start_helper
from aflow._core.system import out_of_the_way
from aflow.executors.local import child
from aflow.executors.local import messages as wire
from aflow.executors.local.surroundings import Randomness, Surroundings, own_decimal_context
from aflow.task.runner import AttemptRunner
from aflow.task.spec import (
    GROWN,
    LOGGED,
    REACHED,
    STARTED,
    AttemptKey,
    AttemptReport,
    AttemptSpec,
)

if TYPE_CHECKING:
    from aflow.flow.spec import FlowSpec

# Streams of a process that runs more than one attempt: each line is assigned to its attempt.


Emit = Callable[[AttemptKey, int, bytes], None]

_HELD = 1 << 16  # bytes of an incomplete line that are buffered at most
_NAMES = ("<stdout>", "<stderr>")


class AttemptBytes(io.RawIOBase):
    """A raw stdout or stderr whose output belongs to the attempt of the current context.

    Output is forwarded line by line, and long lines in pieces; `finish` sends the rest of an
    attempt's last line. Output goes to `descriptor` while no attempt runs, and in processes that
    the step has forked, since the socket to the coordinator belongs to this process. Such processes
    write whole lines, too: `print` writes a text and its end one after the other, and several
    processes may print at the same time.
    """

    def __init__(
        self, number: int, descriptor: int, attempt_key: ContextVar[AttemptKey | None], emit: Emit
    ) -> None:
        self.name = _NAMES[number]
        self._number = number
        self._descriptor = descriptor
        self._attempt_key = attempt_key
        self._emit = emit
        self._held: dict[AttemptKey, bytearray] = {}
        self._closed_by: set[AttemptKey | None] = set()
        self._forked = False
        self._unfinished = b""  # the incomplete last line of a forked process
        os.register_at_fork(after_in_child=self._leave)

    def _leave(self) -> None:
        self._forked = True
        self._held.clear()
        self._unfinished = b""

    def write(self, data: bytes) -> int:  # type: ignore[override]
        """Write all of the bytes."""
        data = bytes(data)
        attempt_key = self._attempt_key.get()
        if self._forked:
            self._unfinished += data
            if data.endswith(b"\n") or len(self._unfinished) > _HELD:
                self.flush()
            return len(data)
        if attempt_key is None:
            child.write_all(self._descriptor, data)
            return len(data)
        held = self._held.pop(attempt_key, None)
        if held is not None:
            held += data
        whole = data if held is None else held
        if data.endswith(b"\n") or len(whole) > _HELD:
            for start in range(0, len(whole), _HELD):
                self._emit(attempt_key, self._number, bytes(whole[start : start + _HELD]))
        else:
            self._held[attempt_key] = bytearray(data) if held is None else held
        return len(data)

    def flush(self) -> None:
        """Write the incomplete last line of a forked process."""
        data, self._unfinished = self._unfinished, b""
        child.write_all(self._descriptor, data)

    def finish(self, attempt_key: AttemptKey) -> None:
        """Send the incomplete last line of an attempt."""
        self._closed_by.discard(attempt_key)
        held = self._held.pop(attempt_key, None)
        if held:
            self._emit(attempt_key, self._number, bytes(held))

    def close_for_attempt(self) -> None:
        """Reject further output of the current attempt; others continue to write."""
        self._closed_by.add(self._attempt_key.get())

    def close(self) -> None:
        """Do nothing: a text stream on top of this one may be closed while another attempt runs."""

    @property
    def closed(self) -> bool:
        """Whether the current attempt has closed its stream."""
        return bool(self._closed_by) and self._attempt_key.get() in self._closed_by

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor


class AttemptStream(io.TextIOWrapper):
    """sys.stdout or sys.stderr, without a buffer: concurrent writers are different attempts."""

    mode = "w"

    def __init__(self, output: AttemptBytes, encoding: str, errors: str) -> None:
        super().__init__(output, encoding, errors, "\n", line_buffering=True, write_through=True)

    def reconfigure(self, *, write_through: bool | None = None, **options: Any) -> None:
        """Set encoding, errors and the like, as io.TextIOWrapper.reconfigure does.

        Args:
            write_through: Ignored: text is always written through.
            **options: The other arguments of that method.
        """
        super().reconfigure(write_through=True, **options)

    def detach(self) -> Any:
        """Return the raw stream below; this stream stays usable for the next attempt."""
        return self.buffer

    def close(self) -> None:
        """Close the stream for the current attempt."""
        self.buffer.close_for_attempt()  # type: ignore[attr-defined]


class DescriptorCapture:
    """Captures output to descriptors 1 and 2 that bypasses Python: by C code, by child processes.

    This process reads its own pipes in a blocking thread, so that it knows for certain which
    attempt was running. If the process is killed, the coordinator, which holds the reading ends as
    well, reads the rest.
    """

    def __init__(
        self, stdout: int, stderr: int, attempt_key: Callable[[], AttemptKey | None], emit: Emit
    ) -> None:
        self._pipes = {stdout: 0, stderr: 1}
        self._attempt_key = attempt_key
        self._emit = emit
        self._lock = threading.Lock()
        self._poll = select.poll()
        for fd in self._pipes:
            os.set_blocking(fd, False)
            self._poll.register(fd, select.POLLIN)
        start_helper(self._watch, "aflow-capture")

    def drain(self) -> None:
        """Send the output so far."""
        with self._lock:
            for fd, _ in self._poll.poll(0):
                self._read(fd, self._pipes[fd])

    def _watch(self) -> None:
        poll = select.poll()
        for fd in self._pipes:
            poll.register(fd, select.POLLIN)
        while True:
            poll.poll()
            self.drain()

    def _read(self, fd: int, number: int) -> None:
        while True:
            try:
                data = os.read(fd, _HELD)
            except BlockingIOError:
                return
            attempt_key = self._attempt_key()
            if not data or attempt_key is None:
                return
            self._emit(attempt_key, number, data)


class WorkerStreams:
    """Replaces the standard streams, so that each line is sent with its attempt.

    `descriptors` are the pipes for stdout and stderr: two writing ends, then two reading ends.
    `running` returns the attempt to which output that bypasses Python belongs.
    """

    def __init__(
        self, descriptors: Sequence[int], running: Callable[[], AttemptKey | None], emit: Emit
    ) -> None:
        stdout, stderr, *readers = descriptors
        child.redirect(stdout, stderr)
        self.attempt_key: ContextVar[AttemptKey | None] = ContextVar("attempt_key", default=None)
        self._outputs = [
            AttemptBytes(number, number + 1, self.attempt_key, emit) for number in (0, 1)
        ]
        sys.stdout = sys.__stdout__ = _above(self._outputs[0], sys.stdout)  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = _above(self._outputs[1], sys.stderr)  # type: ignore[misc]
        self._capture = DescriptorCapture(readers[0], readers[1], running, emit)

    def finish(self, attempt_key: AttemptKey) -> None:
        """Send the remaining output of an attempt that has ended.

        Args:
            attempt_key: The task and number of the attempt.
        """
        for output in self._outputs:
            output.finish(attempt_key)
        self._capture.drain()


def _above(output: AttemptBytes, before: Any) -> AttemptStream:
    """Return a text stream on top of these bytes, with the encoding of Python's stream."""
    encoding = getattr(before, "encoding", None) or "utf-8"
    return AttemptStream(output, encoding, getattr(before, "errors", None) or "strict")


HOLD = 0.01  # seconds that output may wait to be sent with later output
MAX_HELD = 1 << 16  # bytes of waiting output


class WorkerSockets:
    """The worker's side of its two sockets: receives specs, and sends messages in order.

    Output of attempts is sent immediately, unless other output was just sent: it then waits some
    milliseconds for more. One message for each line would keep the coordinator busier than the
    step.
    """

    def __init__(self, tasks: int, reports: int) -> None:
        self.tasks = socket.socket(fileno=tasks)
        self.reports = socket.socket(fileno=reports)
        self._buffer = memoryview(bytearray(wire.MAX_MESSAGE))
        # Reentrant: a signal handler of the step may print, or raise, while this thread sends.
        self._lock = threading.RLock()
        self._clock = SystemClock()
        # Messages, each with the number of bytes sent by each call.
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        self._held: list[bytes] = []
        self._held_size = 0
        self._logged_at = 0.0
        # Its `put` is reentrant, which signal handlers need.
        self._due: SimpleQueue[None] = SimpleQueue()
        start_helper(self._send_held, "aflow-log")

    def next(self, flags: int = 0) -> bytes:
        """Return the next message; b"" if the coordinator has closed its end.

        Args:
            flags: The flags of `recv`.
        """
        try:
            size = self.tasks.recv_into(self._buffer, 0, flags)
        except ConnectionResetError:  # macOS
            return b""
        return bytes(self._buffer[:size])

    def next_if_any(self) -> bytes | None:
        """Return the next message; None if there is none yet, b"" if the coordinator is gone."""
        try:
            return self.next(socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None

    def send_message(self, *message: Any) -> None:
        """Send a message."""
        self.send(wire.packed(*message))

    def send(self, messages: bytes) -> None:
        """Send packed messages.

        Args:
            messages: Packed messages, one after another; they are written as a whole.
        """
        if self._is_interrupted(messages):
            return
        try:
            with self._lock:
                self._flush(messages)
        except BaseException:
            self._due.put(None)  # the other thread sends the rest
            raise

    def _is_interrupted(self, message: bytes) -> bool:
        """Queue the message if a signal has interrupted this thread while it was sending.

        Returns True if so: the message is sent after the one in progress.
        """
        if not self._lock._is_owned():  # type: ignore[attr-defined]
            return False
        self._unsent.append((message, []))
        self._due.put(None)
        return True

    def log(self, attempt_key: AttemptKey, stream: int, data: bytes) -> None:
        """Send the output of an attempt, now or soon.

        Args:
            attempt_key: The task and number of the attempt.
            stream: 0 for stdout, 1 for stderr.
            data: The bytes as they were written. Less than `HOLD` seconds after the last message
                they are held back, to be sent together.
        """
        now = self._clock.now()
        message = msgpack.packb((LOGGED, *attempt_key, stream, now, data))
        if self._is_interrupted(message):
            return
        with self._lock:
            recent = abs(now - self._logged_at) < HOLD
            if (recent or self._held) and self._held_size < MAX_HELD:
                self._held.append(message)
                self._held_size += len(message)
                if len(self._held) == 1:
                    self._due.put(None)
                return
        self._logged_at = now
        self.send(message)

    def _flush(self, message: bytes = b"") -> None:
        if self._held:
            held, self._held, self._held_size = self._held, [], 0
            message = b"".join((*held, message))
        self._unsent.append((message, []))
        while self._unsent:
            data, sent = self._unsent[0]
            left = memoryview(data)[sum(sent) :]
            if left:
                # One C call sends and counts, so that an exception of a signal handler cannot come
                # between the two, which would send some bytes twice.
                sent.extend(map(self.reports.send, (left,)))
            else:
                self._unsent.popleft()

    def _send_held(self) -> None:
        """Send output that was held back, at most HOLD seconds later."""
        wait = threading.Event().wait  # never set: a sleep
        while True:
            self._due.get()
            wait(HOLD)
            with self._lock:
                if self._held or self._unsent:
                    self._flush()


class Worker(ABC):
    """Runs the attempts that the coordinator sends, once the program has called its flow.

    It is the `child_task.Work` of its process. Output of the user's program before it calls its
    flow belongs to the first attempt.
    """

    def __init__(self, runner: AttemptRunner, fds: Sequence[int]) -> None:
        tasks, reports, *self._descriptors = map(out_of_the_way, fds)
        self._runner = runner
        self._link = WorkerSockets(tasks, reports)
        self._clock = SystemClock()
        self._running: AttemptKey | None = None
        self._streams = WorkerStreams(self._descriptors, self._current, self._link.log)
        self._pid = os.getpid()
        self.send_message = self._link.send_message

    def begin(self) -> bool:
        """Receive the first attempt from the coordinator, and report its start.

        Returns:
            False if the coordinator has closed the socket.
        """
        self._runner.expect_many()
        while (data := self._link.next()).startswith(wire.CANCEL):
            continue  # cancels an attempt that was withdrawn before it was sent
        if not data:
            return False
        self._first = AttemptSpec.decode(data)
        self.step, self.attempt_key = self._first.step, self._first.attempt_key
        self._begin(self._first)
        return True

    def _begin(self, spec: AttemptSpec, before: bytes = b"") -> None:
        """Report the start of an attempt, after messages that are sent together with it."""
        self._running = spec.attempt_key
        self._streams.attempt_key.set(spec.attempt_key)
        started = wire.packed(STARTED, *spec.attempt_key, self._pid, self._clock.now())
        self._link.send(before + started)

    def refuse(self, report: AttemptReport) -> None:
        """Report that the first attempt ended before the program called its flow."""
        self._streams.finish(report.attempt_key)
        self.send_message(*report.message())

    def steps(self, flow: FlowSpec) -> int:
        """Run the first attempt and further ones, until the coordinator closes its end."""
        self._runner.instance = child.copies_of(flow)
        self.send_message(REACHED)
        self._run_all()
        return 0

    @abstractmethod
    def _run_all(self) -> None:
        """Run attempts until the coordinator closes its end."""

    def _current(self) -> AttemptKey | None:
        """Return the attempt to which output that bypasses Python belongs."""
        return self._running


class SequentialWorker(Worker):
    """Runs attempts one after another, in the order in which they were sent."""

    def __init__(self, runner: AttemptRunner, fds: Sequence[int]) -> None:
        super().__init__(runner, fds)
        runner.announce = lambda *grown: self.send_message(GROWN, *grown)
        self._randomness = Randomness()

    def _run_all(self) -> None:
        stdout, stderr, *_ = self._descriptors
        self._surroundings = Surroundings(stdout, stderr, self._randomness)
        spec = self._first
        while True:
            ended = wire.packed(*self._run(spec).message())
            waiting = self._link.next_if_any()
            if waiting is None:
                self._link.send(ended)
                ended = b""
                waiting = self._link.next()
            if not waiting:
                break
            spec = AttemptSpec.decode(waiting)
            self._begin(spec, ended)  # the report of the previous attempt is sent with this message
        if ended:
            self._link.send(ended)

    def _run_in_context(self, spec: AttemptSpec) -> AttemptReport:
        own_decimal_context()
        report = self._runner.run(spec)
        child.flush()  # a buffered stream that the program has installed
        return report

    def _run(self, spec: AttemptSpec) -> AttemptReport:
        # Changes that a step makes to context variables (including decimal's precision) end with
        # it.
        report = copy_context().run(self._run_in_context, spec)
        self._surroundings.restore()
        self._streams.finish(spec.attempt_key)
        self._streams.attempt_key.set(None)
        self._running = None
        return report


# Coroutine steps: many attempts at a time, on one event loop.


class CoroutineWorker(Worker):
    """Runs every spec that it receives as a task of its event loop.

    The loop is shared: a step cannot stop it, and cannot cancel the tasks of other attempts (for
    example, by cancelling all tasks of the loop).
    """

    def __init__(self, runner: AttemptRunner, fds: Sequence[int]) -> None:
        self._tasks: dict[AttemptKey, asyncio.Task[None]] = {}
        self._cancelled: set[AttemptKey] = set()
        self._fault: BaseException | None = None
        super().__init__(runner, fds)

    def _current(self) -> AttemptKey | None:
        # The oldest one, after the program has called its flow.
        return self._running or next(iter(self._tasks), None)

    def _run_all(self) -> None:
        self._streams.attempt_key.set(None)
        with outer_loop_paused(), asyncio.Runner(loop_factory=self._loop) as runner:
            runner.run(self._serve())

    def _loop(self) -> asyncio.AbstractEventLoop:
        attempt_key, kind = self._streams.attempt_key, fastest_kind()

        class SharedLoop(kind):  # type: ignore[misc, valid-type]
            def stop(self) -> None:
                if attempt_key.get() is not None:
                    raise RuntimeError("A step cannot stop the event loop: others run in it.")
                super().stop()

        return SharedLoop()

    async def _serve(self) -> None:
        self._closed = asyncio.Event()
        self._start(self._first)
        self._running = None
        loop = asyncio.get_running_loop()
        loop.add_reader(self._link.tasks, self._receive)
        while not self._closed.is_set():
            try:
                await self._closed.wait()
            except asyncio.CancelledError:  # by a step that cancels all tasks of its loop
                continue
        loop.remove_reader(self._link.tasks)
        for attempt_key in [*self._tasks]:
            self._cancel_now(attempt_key)
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        if self._fault is not None:
            raise self._fault

    def _receive(self) -> None:
        while (data := self._link.next_if_any()) is not None:
            if not data:
                self._closed.set()
                return
            if data.startswith(wire.CANCEL):
                self._cancel(msgpack.unpackb(data[1:], use_list=False))
            else:
                self._start(AttemptSpec.decode(data))

    def _start(self, spec: AttemptSpec) -> None:
        attempt_key = spec.attempt_key
        task = _OwnTask(self._run(spec), attempt_key, self._streams.attempt_key)
        task.add_done_callback(self._note_end)
        self._tasks[attempt_key] = task

    def _note_end(self, task: asyncio.Task[None]) -> None:
        """End the process if a task fails: reports contain errors of steps, so it is our bug."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._fault = self._fault or error
            self._closed.set()

    def _cancel(self, attempt_key: AttemptKey) -> None:
        # Later, so that it has started: a task cancelled before its first step would not report.
        asyncio.get_running_loop().call_soon(self._cancel_now, attempt_key)

    def _cancel_now(self, attempt_key: AttemptKey) -> None:
        task = self._tasks.get(attempt_key)
        if task is not None:
            self._cancelled.add(attempt_key)
            task.cancel()

    async def _run(self, spec: AttemptSpec) -> None:
        attempt_key = spec.attempt_key
        self._streams.attempt_key.set(attempt_key)
        own_decimal_context()
        if spec is not self._first:
            self.send_message(STARTED, *attempt_key, self._pid, self._clock.now())
        try:
            report = await self._runner.run_async(spec, lambda: attempt_key in self._cancelled)
        except BaseException as error:
            if os.getpid() == self._pid:
                raise
            # The step has forked, and this is its child, whose copy of the loop would run other
            # steps.
            ending.leave(child.ended_by(error))
        self._streams.finish(attempt_key)
        del self._tasks[attempt_key]
        self._cancelled.discard(attempt_key)
        self.send_message(*report.message())


class _OwnTask(asyncio.Task[None]):
    """The task of one attempt; other attempts cannot cancel it."""

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, None],
        attempt_key: AttemptKey,
        current: ContextVar[AttemptKey | None],
    ) -> None:
        self._attempt_key = attempt_key
        self._current = current
        super().__init__(coroutine)

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel the task, unless the caller is another attempt."""
        if self._current.get() not in (None, self._attempt_key):
            return False
        return super().cancel(msg)
