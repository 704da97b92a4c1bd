"""Waking processes of one machine that wait for a queue: a datagram to each, and no polling.

Each waiter has a socket in a folder that is named after the queue's path, inside of the user's own
runtime folder (addresses of sockets are short, so it is not beside the queue); a `put` sends a
datagram to all that are there. What is lost costs time alone: waiters look again now and then. So
users of one queue who have no runtime folder, or not the same one, find new messages by looking.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import logging
import os
import socket
import stat
import uuid
from contextlib import suppress
from pathlib import Path

from aflow.errors import UnsafeFolder
from aflow.own_folders import open_checked, open_folder, own_folder, runtime_folder

_TRIES = 10
_HAS_PROC = os.path.isdir("/proc/self/fd")
LOOK_AGAIN = 1.0  # seconds after which a waiter looks without having been woken
_log = logging.getLogger("aflow.queue")


class WakeUp:
    """The folder of sockets of the queue at this path."""

    def __init__(self, path: Path) -> None:
        self._name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
        self._sender: socket.socket | None = None
        self._found: Path | None = None
        self._is_warned = False

    def _folder(self) -> Path:
        """The folder, which is there; raises UnsafeFolder and OSError."""
        if self._found is None:
            self._found = runtime_folder("queues") / self._name
        return own_folder(self._found)

    def ring(self) -> None:
        """Wake all who wait."""
        try:
            if self._found is None:
                self._found = runtime_folder("queues") / self._name
            folder = open_checked(self._found)
        except (OSError, UnsafeFolder):  # nobody waits there
            return
        try:
            for name in os.listdir(folder):
                self._send(folder, name)
        finally:
            os.close(folder)

    def _send(self, folder: int, name: str) -> None:
        if self._sender is None:
            self._sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._sender.setblocking(False)
        assert self._found is not None, "it was opened"
        try:
            self._sender.sendto(b"!", _address(folder, self._found, name))
        except BlockingIOError:
            return  # it has more than one datagram unread: it will look
        except ConnectionRefusedError:  # its waiter has ended without closing it
            with suppress(OSError):
                # Of the folder that was checked, whatever its path leads to by now.
                if stat.S_ISSOCK(os.lstat(name, dir_fd=folder).st_mode):
                    os.unlink(name, dir_fd=folder)
        except OSError:  # it is gone, or is no socket
            return

    def listen(self) -> Bell:
        """Something to wait at: a socket, or a clock where there can be none."""
        try:
            return self._listen()
        except (OSError, UnsafeFolder) as error:
            if not self._is_warned:
                self._is_warned = True
                _log.warning("New messages are looked for once a second: %s", error)
            return Bell(None, None)

    def _listen(self) -> Bell:
        bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            bell.setblocking(False)
            for _ in range(_TRIES):
                try:
                    path = self._folder() / uuid.uuid4().hex[:16]
                    with open_folder(path.parent) as folder:
                        bell.bind(_address(folder, path.parent, path.name))
                    return Bell(bell, path)
                except FileNotFoundError:  # another waiter, or a cleaner, has removed a folder
                    self._found = None
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self._name)
        except BaseException:
            bell.close()
            raise

    def close(self) -> None:
        """Let go of the socket. May be called twice."""
        if self._sender is not None:
            self._sender.close()
            self._sender = None


def _address(folder: int, path: Path, name: str) -> str:
    """The address of a socket in the folder that is open: by its descriptor where the system can,
    since addresses are short, and a path may lead elsewhere by now."""
    return f"/proc/self/fd/{folder}/{name}" if _HAS_PROC else str(path / name)


class Bell:
    """Where one waiter waits."""

    def __init__(self, bell: socket.socket | None, path: Path | None) -> None:
        self._bell = bell
        self._path = path

    def clear(self) -> None:
        """Forget what has rung until now: call it before looking."""
        if self._bell is None:
            return
        try:
            while self._bell.recv(16):
                continue
        except BlockingIOError:
            return

    async def wait(self, seconds: float) -> None:
        """Wait until somebody rings, or so long."""
        seconds = min(seconds, LOOK_AGAIN)
        if self._bell is None:
            await asyncio.sleep(seconds)
            return
        loop = asyncio.get_running_loop()
        try:
            # Not wait_for: in Python 3.11 it loses a cancellation that comes with the ring.
            async with asyncio.timeout(seconds):
                await loop.sock_recv(self._bell, 16)
        except TimeoutError:
            return

    def close(self) -> None:
        """Nobody waits here any more. May be called twice."""
        if self._bell is None or self._path is None:
            return
        self._bell.close()
        with suppress(OSError, UnsafeFolder):
            folder = open_checked(self._path.parent)
            try:
                with suppress(FileNotFoundError):
                    os.unlink(self._path.name, dir_fd=folder)
            finally:
                os.close(folder)
            self._path.parent.rmdir()  # fails where others wait
