"""A process that runs attempts one after the other (isolation `worker`)."""

from __future__ import annotations

# signal's own functions turn each number into an enum, which takes longer than the call.
import _signal  # type: ignore[import-not-found]
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from typing import Any

import msgpack

from aflow.attempt.runner import Runner
from aflow.attempt.spec import GROWN, LOGGED, STARTED, AttemptReport, AttemptSpec
from aflow.clock import SystemClock
from aflow.executors.local import inside, wire
from aflow.executors.local.streams import Owner, WorkerStreams

HOLD = 0.01  # seconds that printed lines may wait for others
MAX_HELD = 1 << 16  # bytes of them
MAX_MESSAGE = 1 << 18  # bytes of a spec; bigger manifests do not travel with it


class Link:
    """The worker's side of its two sockets: specs come in whole, messages go out in order.

    What attempts print goes out at once, unless something has just gone out: then it waits some
    milliseconds for more, since a message a line would keep the coordinator busier than the step.
    """

    def __init__(self, tasks: int, reports: int) -> None:
        self.tasks = socket.socket(fileno=tasks)
        self.reports = socket.socket(fileno=reports)
        self._buffer = memoryview(bytearray(MAX_MESSAGE))
        self._lock = threading.Lock()
        self._clock = SystemClock()
        self._held: list[bytes] = []
        self._held_size = 0
        self._logged_at = 0.0
        self._holding = threading.Event()
        threading.Thread(target=self._send_held, name="aflow-log", daemon=True).start()

    def next(self) -> bytes:
        """The next message; b"" when the coordinator has closed its end."""
        size = self.tasks.recv_into(self._buffer)
        return bytes(self._buffer[:size])

    def next_if_any(self) -> bytes | None:
        """The next message; None if there is none yet, b"" when the coordinator has gone."""
        try:
            size = self.tasks.recv_into(self._buffer, 0, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        return bytes(self._buffer[:size])

    def say(self, *message: Any) -> None:
        """Send a message."""
        self.send(wire.packed(*message))

    def send(self, messages: bytes) -> None:
        """Send messages that are packed already."""
        with self._lock:
            self._flush(messages)

    def log(self, owner: Owner, stream: int, data: bytes) -> None:
        """Send what an attempt has written, now or soon."""
        now = self._clock.now()
        message = msgpack.packb((LOGGED, *owner, stream, now, data))
        with self._lock:
            recent = abs(now - self._logged_at) < HOLD
            if (recent or self._held) and self._held_size < MAX_HELD:
                self._held.append(message)
                self._held_size += len(message)
                if len(self._held) == 1:
                    self._holding.set()
            else:
                self._logged_at = now
                self._flush(message)

    def _flush(self, message: bytes = b"") -> None:
        if self._held:
            message = b"".join((*self._held, message))
            self._held.clear()
            self._held_size = 0
        self.reports.sendall(message)

    def _send_held(self) -> None:
        """What is held waits for more no longer than HOLD."""
        wait = threading.Event().wait  # never set: a pause
        while self._holding.wait():
            self._holding.clear()
            wait(HOLD)
            with self._lock:
                if self._held:
                    self._flush()


class Surroundings:
    """What a step may change of its process, and the next one must not notice."""

    def __init__(self, stdout: int, stderr: int) -> None:
        nothing = inside.out_of_the_way(os.open(os.devnull, os.O_RDONLY))
        self._descriptors = [nothing, stdout, stderr]
        self._cwd = os.getcwd()
        self._environ = dict(os.environ)
        # As bytes, the form that the interpreter holds: comparing os.environ would decode it all.
        self._raw_environ = dict(os.environb)
        self._umask = os.umask(0o022)
        os.umask(self._umask)
        self._streams = (sys.stdin, sys.stdout, sys.stderr)
        numbers = (
            signal.SIGTERM, signal.SIGINT, signal.SIGALRM, signal.SIGCHLD, signal.SIGHUP,
            signal.SIGPIPE, signal.SIGUSR1, signal.SIGUSR2,
        )  # fmt: skip
        self._signals = {int(number): _signal.getsignal(number) for number in numbers}

    def restore(self) -> None:
        """Put everything back as it was."""
        if _cwd() != self._cwd:
            os.chdir(self._cwd)
        if os.environb._data != self._raw_environ:  # type: ignore[attr-defined]
            os.environ.clear()
            os.environ.update(self._environ)
        os.umask(self._umask)
        _signal.alarm(0)
        sys.stdin, sys.stdout, sys.stderr = self._streams
        for number, handler in self._signals.items():
            if _signal.getsignal(number) is not handler:
                _signal.signal(number, handler)
        for target, descriptor in enumerate(self._descriptors):
            os.dup2(descriptor, target)


def _cwd() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:  # the step has removed the folder that it was in
        return None


class SequentialWorker:
    """Runs the specs that it is sent, in order. The streams are those of attempts from the start:
    what the user's program prints before it comes to its flow belongs to the first one."""

    def __init__(self, runner: Runner, descriptors: Sequence[int]) -> None:
        tasks, reports, *streams = descriptors
        self._runner = runner
        self._link = Link(tasks, reports)
        self._clock = SystemClock()
        self._running: Owner | None = None
        self._streams = WorkerStreams(streams, lambda: self._running, self._link.log)
        self._descriptors = streams[:2]
        runner.announce = lambda *grown: self._link.say(GROWN, *grown)
        self.say = self._link.say
        self._pid = os.getpid()
        self._spec: AttemptSpec | None = None

    def first(self) -> AttemptSpec | None:
        """Begin with the first attempt; None if there is none, and never will be."""
        self._runner.expect_many()
        data = self._link.next()
        if not data:
            return None
        self._spec = AttemptSpec.decode(data)
        self._begin(self._spec)
        return self._spec

    def refuse(self, report: AttemptReport) -> None:
        """Say that the first attempt has ended before the flow was reached."""
        self._streams.finish((report.task, report.attempt))
        self._link.say(*report.message())

    def serve(self) -> None:
        """Run the first attempt and what comes, until the coordinator closes its end."""
        self._surroundings = Surroundings(*self._descriptors)
        spec = self._spec
        assert spec is not None, "there is a first one"
        while True:
            ended = msgpack.packb(self._run(spec).message())
            waiting = self._link.next_if_any()
            if waiting is None:
                self._link.send(ended)
                ended = b""
                waiting = self._link.next()
            if not waiting:
                break
            spec = AttemptSpec.decode(waiting)
            self._begin(spec, ended)  # the report of the last one goes out with this
        if ended:
            self._link.send(ended)

    def _begin(self, spec: AttemptSpec, before: bytes = b"") -> None:
        self._running = owner = (spec.task, spec.attempt)
        self._token = self._streams.owner.set(owner)
        started = (STARTED, *owner, self._pid, self._clock.now())
        self._link.send(before + msgpack.packb(started))

    def _run(self, spec: AttemptSpec) -> AttemptReport:
        report = self._runner.run(spec)
        if os.getpid() != self._pid:
            inside.end()  # the step forked, and this is its child: it has nothing to report
        self._surroundings.restore()
        self._streams.finish((spec.task, spec.attempt))
        self._streams.owner.reset(self._token)
        self._running = None
        return report
