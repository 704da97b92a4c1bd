"""Waking processes of one machine that wait for a queue: a datagram to each, and no polling.

Who waits has a socket in a folder that goes by the queue's path (in the system's folder for
temporary files, since addresses of sockets are short); who puts sends a datagram to all that are
there. What is lost costs time alone: those who wait look again now and then.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import socket
import tempfile
import uuid
from pathlib import Path

_TRIES = 10
LOOK_AGAIN = 1.0  # seconds after which whoever waits looks without having been woken


class WakeUp:
    """The folder of sockets of the queue at this path."""

    def __init__(self, path: Path) -> None:
        name = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
        self._folder = Path(tempfile.gettempdir()) / f"aflow-{name}"
        self._sender: socket.socket | None = None

    def ring(self) -> None:
        """Wake everybody who waits."""
        try:
            names = os.listdir(self._folder)
        except OSError:  # nobody has ever waited here
            return
        if names and self._sender is None:
            self._sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._sender.setblocking(False)
        for name in names:
            assert self._sender is not None, "there is somebody to wake"
            try:
                self._sender.sendto(b"!", str(self._folder / name))
            except BlockingIOError:
                continue  # it has more than one datagram unread: it will look
            except OSError:  # whoever waited there is gone, without having tidied up
                (self._folder / name).unlink(missing_ok=True)

    def listen(self) -> Bell:
        """A socket to wait at. Raises OSError where there can be none."""
        path = self._folder / uuid.uuid4().hex[:16]
        bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            bell.setblocking(False)
            for _ in range(_TRIES):
                self._folder.mkdir(exist_ok=True)
                try:
                    bell.bind(str(path))
                    return Bell(bell, path)
                except FileNotFoundError:  # whoever waited before us has just removed the folder
                    continue
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        except BaseException:
            bell.close()
            raise

    def close(self) -> None:
        """Let go of the socket. May be called twice."""
        if self._sender is not None:
            self._sender.close()
            self._sender = None


class Bell:
    """Where one waiter waits."""

    def __init__(self, bell: socket.socket, path: Path) -> None:
        self._bell = bell
        self._path = path

    def clear(self) -> None:
        """Forget what has rung until now: call it before looking."""
        try:
            while self._bell.recv(16):
                continue
        except BlockingIOError:
            return

    async def wait(self, seconds: float) -> None:
        """Wait until somebody rings, or so long."""
        loop = asyncio.get_running_loop()
        try:
            # Not wait_for: in Python 3.11 it loses a cancellation that comes with the ring.
            async with asyncio.timeout(min(seconds, LOOK_AGAIN)):
                await loop.sock_recv(self._bell, 16)
        except TimeoutError:
            return

    def close(self) -> None:
        """Nobody waits here any more. May be called twice."""
        self._bell.close()
        self._path.unlink(missing_ok=True)
        try:
            self._path.parent.rmdir()
        except OSError:  # others wait there
            return
