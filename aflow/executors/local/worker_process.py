"""The coordinator's end of one process that runs many attempts."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import msgpack

from aflow.attempt.spec import AttemptSpec
from aflow.executors.local import wire
from aflow.executors.local.fresh import pipes
from aflow.executors.local.link import Grounds

Owner = tuple[int, int]

_CHUNK = 1 << 18
_CANCEL = b"\xc0"  # executors.local.coroutines.CANCEL; that module is the worker's side


class WorkerProcess:
    """A process, the specs that it holds, and what it is running.

    Specs go to it as whole messages of a socket whose other end we keep as well: so a spec that
    the process has not taken yet can be taken back, by exactly one of the two.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        link: Grounds,
        start: str,
        environment: Mapping[str, str],
        coroutines: bool,
    ) -> None:
        self.pid: int | None = None
        self.running: dict[Owner, float] = {}  # since when
        self.sent: dict[Owner, AttemptSpec] = {}  # and not begun
        self.ending: str | None = None  # why we are ending it, if we are
        self.coroutines = coroutines
        self._loop = loop
        self._unpacker = wire.unpacker()
        self._open = True
        with ExitStack() as made:  # where one of them cannot be had, none is kept
            self._specs, self._taken_back = _pair(made, socket.SOCK_SEQPACKET)
            self._reports, their_reports = _pair(made, socket.SOCK_STREAM)
            self._pipes, writers = pipes(2)
            made.callback(wire.close_all, self._pipes + writers)
            tasks, *readers = (_copy(made, fd) for fd in (self._taken_back.fileno(), *self._pipes))
            made.pop_all()
        for each in (self._specs, self._reports):
            each.setblocking(False)
        theirs = [tasks, their_reports.detach(), *writers, *readers]
        self.child = link.fork(wire.WORK, start, environment, coroutines, theirs)

    @property
    def in_hand(self) -> int:
        """How many attempts it has, begun or not."""
        return len(self.running) + len(self.sent)

    @property
    def reports(self) -> socket.socket:
        """Where its messages come from."""
        return self._reports

    def send(self, spec: AttemptSpec) -> bool:
        """Hand it a spec; False if it has no room for more now."""
        if not self._send(spec.encode()):
            return False
        self.sent[(spec.task, spec.attempt)] = spec
        return True

    def cancel(self, owner: Owner) -> None:
        """Ask it to cancel a coroutine. If there is no room even for that, it does not listen."""
        self._send(_CANCEL + msgpack.packb(owner))

    def _send(self, data: bytes) -> bool:
        try:
            self._specs.send(data)
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            return False
        return True

    def when_roomy(self, callback: Callable[[], None]) -> None:
        """Call back, again and again, while it has room; None to stop is `when_roomy_stop`."""
        self._loop.add_writer(self._specs, callback)

    def when_roomy_stop(self) -> None:
        """No longer call back."""
        self._loop.remove_writer(self._specs)

    def take_back(self) -> list[AttemptSpec]:
        """Take back every spec that the process has not taken itself."""
        taken: list[AttemptSpec] = []
        cancels: list[bytes] = []
        while data := self._next_sent():
            if data.startswith(_CANCEL):
                cancels.append(data)
                continue
            spec = AttemptSpec.decode(data)
            del self.sent[(spec.task, spec.attempt)]
            taken.append(spec)
        for data in cancels:
            self._send(data)
        return taken

    def _next_sent(self) -> bytes:
        """The next message that the process has not taken; b"" if there is none."""
        try:
            # Not O_NONBLOCK: that would be the other process's as well.
            return self._taken_back.recv(_CHUNK, socket.MSG_DONTWAIT)
        except (BlockingIOError, ConnectionResetError):
            return b""

    def unbegun(self) -> list[AttemptSpec]:
        """After its death: every spec that it was sent and had not begun. One of them it may have
        taken from the socket; it had not told us so, and therefore not begun with it."""
        specs = [*self.sent.values()]
        self.sent.clear()
        return specs

    def messages(self) -> list[tuple[Any, ...]]:
        """What it has said since the last call, or the beginning of that."""
        self._receive()
        return list(self._unpacker)

    def last_messages(self) -> list[tuple[Any, ...]]:
        """All that a dead process has said and nobody has read."""
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
        """What a dead process has left in its pipes: (stream, bytes)."""
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
        self._specs.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Let go of its sockets and pipes. May be called twice."""
        if not self._open:
            return
        self._open = False
        self._loop.remove_reader(self._reports)
        self._loop.remove_writer(self._specs)
        for each in (self._specs, self._taken_back, self._reports):
            each.close()
        wire.close_all(self._pipes)


def _pair(made: ExitStack, kind: socket.SocketKind) -> tuple[socket.socket, socket.socket]:
    """Two ends of a socket, closed again if `made` is."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    made.enter_context(ours)
    made.enter_context(theirs)
    return ours, theirs


def _copy(made: ExitStack, fd: int) -> int:
    """Another descriptor of the same file, closed again if `made` is."""
    copy = os.dup(fd)
    made.callback(os.close, copy)
    return copy
