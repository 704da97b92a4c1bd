"""The coordinator's end of the template process."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from aflow.attempt.spec import RunContext
from aflow.executors.local import wire


class TemplateProcess(Protocol):
    """A template that has been started, in whatever way."""

    @property
    def control(self) -> socket.socket:
        """Our end of its socket."""

    @property
    def pid(self) -> int:
        """Its process."""

    def reap(self) -> None:
        """Wait for its end, which is near: its socket is closed."""


class Children(Protocol):
    """Who is told what the template says of the processes that it has forked."""

    def forked(self, child: int, pid: int, at: float) -> None:
        """The process runs."""

    def exited(self, child: int, status: int, max_rss: int, cpu: float) -> None:
        """The process has ended."""

    def not_forked(self, child: int, reason: str) -> None:
        """There was no process to be had."""

    def template_lost(self, reason: str) -> None:
        """The template is gone, and every process that it had forked with it."""


class TemplateLink:
    """Sends requests to a template and hands on what it says."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, process: TemplateProcess, children: Children
    ) -> None:
        self._loop = loop
        self._process = process
        self._children = children
        self._unpacker = wire.unpacker()
        self._outbox = wire.Outbox(loop, process.control)
        self._ids = 0
        self._open = True
        self._says: dict[int, Callable[..., None]] = {
            wire.FORKED: children.forked,
            wire.EXITED: children.exited,
            wire.NOT_FORKED: children.not_forked,
        }
        loop.add_reader(process.control, self._read)

    def configure(self, context: RunContext) -> None:
        """Say which run the attempts belong to."""
        self._outbox.send((wire.CONFIGURE, context))

    def fork(self, kind: int, detail: Any, fds: Sequence[int]) -> int:
        """Ask for a process; the number that it is known by. The descriptors are closed here."""
        self._ids += 1
        self._outbox.send((kind, self._ids, detail), fds)
        return self._ids

    def kill(self, child: int, signum: signal.Signals) -> None:
        """Ask for a signal to a process and its group."""
        self._outbox.send((wire.KILL, child, signum.value))

    def _read(self) -> None:
        try:
            data = self._process.control.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            self.reap()
            self._children.template_lost("the process that starts tasks has died")
            return
        self._unpacker.feed(data)
        for kind, *rest in self._unpacker:
            self._says[kind](*rest)

    def close(self) -> None:
        """Let go of the template: it kills what it has forked, and ends. May be called twice;
        `reap` waits for its end."""
        if not self._open:
            return
        self._open = False
        self._loop.remove_reader(self._process.control)
        self._outbox.close()
        self._process.control.close()

    def reap(self) -> None:
        """Wait for the end of a template that was let go of: some milliseconds, since it has
        memory to give back. Blocks; any thread may call."""
        self._process.reap()


class ForkedTemplate:
    """A template forked from this very process, before it had any thread or event loop."""

    def __init__(self, control: socket.socket, pid: int) -> None:
        self.control = control
        self.pid = pid

    def reap(self) -> None:
        """Wait for its end."""
        try:
            os.waitpid(self.pid, 0)
        except ChildProcessError:  # somebody has waited for all children before us
            return
