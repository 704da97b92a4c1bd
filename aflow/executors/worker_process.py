"""The coordinator's end of one process that runs many attempts."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any

from aflow.attempt import AttemptSpec
from aflow.executors import wire
from aflow.executors.fresh import pipes
from aflow.executors.link import TemplateLink

Owner = tuple[int, int]

_CHUNK = 1 << 18


class WorkerProcess:
    """A process, the specs that it holds, and what it is running.

    Specs go to it as whole messages of a socket whose other end we keep as well: so a spec that
    the process has not taken yet can be taken back, by exactly one of the two.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, link: TemplateLink, coroutines: bool
    ) -> None:
        self.pid: int | None = None
        self.running: dict[Owner, float] = {}  # since when
        self.sent: dict[Owner, AttemptSpec] = {}  # and not begun
        self.ending: str | None = None  # why we are ending it, if we are
        self.coroutines = coroutines
        self._loop = loop
        self._unpacker = wire.unpacker()
        self._open = True
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._specs, self._taken_back = ours, theirs
        self._reports, their_reports = socket.socketpair()
        readers, writers = pipes(2)
        self._pipes = readers
        for each in (ours, self._reports):
            each.setblocking(False)
        self.child = link.fork(
            wire.WORK,
            coroutines,
            [os.dup(theirs.fileno()), their_reports.detach(), *writers, *map(os.dup, readers)],
        )

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

    def send_raw(self, data: bytes) -> bool:
        """Hand it a message that is no spec."""
        return self._send(data)

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
        while True:
            try:
                # Not O_NONBLOCK: that would be the other process's as well.
                data = self._taken_back.recv(_CHUNK, socket.MSG_DONTWAIT)
            except (BlockingIOError, ConnectionResetError):
                return taken
            if not data:
                return taken
            spec = AttemptSpec.decode(data)
            del self.sent[(spec.task, spec.attempt)]
            taken.append(spec)

    def unbegun(self) -> list[AttemptSpec]:
        """After its death: every spec that it was sent and had not begun. One of them it may have
        taken from the socket; it had not told us so, and therefore not begun with it."""
        specs = [*self.sent.values()]
        self.sent.clear()
        return specs

    def messages(self) -> list[tuple[Any, ...]]:
        """What it has said since the last call."""
        try:
            data = self._reports.recv(_CHUNK)
        except (BlockingIOError, ConnectionResetError):
            return []
        if not data:
            self._loop.remove_reader(self._reports)
            return []
        self._unpacker.feed(data)
        return list(self._unpacker)

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
