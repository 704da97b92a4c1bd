"""Streams of a process that runs more than one attempt: each line knows its attempt."""

from __future__ import annotations

import io
import os
import select
import sys
import threading
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

from aflow.executors.local import inside

Owner = tuple[int, int]  # task, attempt
Emit = Callable[[Owner, int, bytes], None]

_HELD = 1 << 16  # bytes of a line that are held back at most


class AttemptStream(io.TextIOBase):
    """sys.stdout or sys.stderr: what is written belongs to the attempt that the context names.

    Text goes on line by line, long lines in pieces; `finish` sends the rest of an attempt's last
    line. What is written while no attempt runs goes to `descriptor`, and so does what a process
    writes that the step has forked: the way to the coordinator is not its own.
    """

    encoding = "utf-8"
    errors = "surrogateescape"
    mode = "w"
    line_buffering = True
    write_through = False

    def __init__(
        self, number: int, descriptor: int, owner: ContextVar[Owner | None], emit: Emit
    ) -> None:
        self.name = ("<stdout>", "<stderr>")[number]
        self._number = number
        self._descriptor = descriptor
        self._owner = owner
        self._emit = emit
        self._held: dict[Owner, bytearray] = {}
        self._forked = False
        self.buffer = _Bytes(self)
        os.register_at_fork(after_in_child=self._leave)

    def _leave(self) -> None:
        self._forked = True
        self._held.clear()

    def write(self, text: str) -> int:
        if text:
            self.write_bytes(text.encode("utf-8", "surrogateescape"))
        return len(text)

    def write_bytes(self, data: bytes) -> None:
        """Write bytes as they are."""
        owner = self._owner.get()
        if owner is None or self._forked:
            inside.write_all(self._descriptor, data)
            return
        held = self._held.pop(owner, None)
        if held is not None:
            held += data
        whole = data if held is None else held
        if data.endswith(b"\n") or len(whole) > _HELD:
            for start in range(0, len(whole), _HELD):
                self._emit(owner, self._number, bytes(whole[start : start + _HELD]))
        else:
            self._held[owner] = bytearray(data) if held is None else held

    def finish(self, owner: Owner) -> None:
        """Send what an attempt has left of its last line."""
        held = self._held.pop(owner, None)
        if held:
            self._emit(owner, self._number, bytes(held))

    def flush(self) -> None:
        """Nothing: whole lines have gone, and half a line waits for its rest."""

    def reconfigure(self, **_: Any) -> None:
        """Nothing: text goes on line by line, as bytes of UTF-8, and into a log."""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return False


class _Bytes(io.RawIOBase):
    """sys.stdout.buffer."""

    def __init__(self, stream: AttemptStream) -> None:
        self._stream = stream

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._stream.write_bytes(bytes(data))
        return len(data)

    def writable(self) -> bool:
        return True


class DescriptorCapture:
    """What is written to descriptors 1 and 2 past Python: by C code, by child processes.

    The process reads its own pipes, in a thread that sleeps until something comes, so that it can
    say for certain which attempt was running. If the process is killed, the coordinator, which
    holds the reading ends as well, reads the rest.
    """

    def __init__(
        self, stdout: int, stderr: int, owner: Callable[[], Owner | None], emit: Emit
    ) -> None:
        self._pipes = {stdout: 0, stderr: 1}
        self._owner = owner
        self._emit = emit
        self._lock = threading.Lock()
        self._poll = select.poll()
        for fd in self._pipes:
            os.set_blocking(fd, False)
            self._poll.register(fd, select.POLLIN)
        threading.Thread(target=self._watch, name="aflow-capture", daemon=True).start()

    def drain(self) -> None:
        """Send what has been written so far."""
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
            owner = self._owner()
            if not data or owner is None:
                return
            self._emit(owner, number, data)


class WorkerStreams:
    """The streams of this process, from now on: each line goes out as that of its attempt.

    `descriptors` are the pipes for stdout and stderr, first to write, then to read. `running`
    says which attempt is taken to have written past Python.
    """

    def __init__(
        self, descriptors: Sequence[int], running: Callable[[], Owner | None], emit: Emit
    ) -> None:
        stdout, stderr, *readers = descriptors
        inside.redirect(stdout, stderr)
        self.owner: ContextVar[Owner | None] = ContextVar("owner", default=None)
        self._streams = [AttemptStream(number, number + 1, self.owner, emit) for number in (0, 1)]
        sys.stdout, sys.stderr = self._streams
        self._capture = DescriptorCapture(readers[0], readers[1], running, emit)

    def finish(self, owner: Owner) -> None:
        """The attempt is over: send what is left of its output."""
        for stream in self._streams:
            stream.finish(owner)
        self._capture.drain()
