"""The terminal of the command, lent to the one task that is debugged: for breakpoint() and input().

Processes of tasks are in sessions of their own, so that Ctrl-C at the terminal is for the
coordinator; a process of another session cannot be interrupted from it. So the task gets a
pseudo-terminal, and the coordinator passes on each key and each byte of output. Without a terminal
(input comes from a file or a pipe) the task gets that as its stdin, and prints as others do.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import sys
import termios
from contextlib import ExitStack, suppress
from typing import Any

_CHUNK = 1 << 12  # bytes: a pseudo-terminal gives no more at once
_OFF = b"\0"  # _POSIX_VDISABLE
_IFLAG, _OFLAG, _LFLAG, _CC = 0, 1, 3, 6  # places in what tcgetattr gives


class Terminal:
    """The terminal of this process (descriptors 0 and 1), for one task at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._master: int | None = None  # our side of the pseudo-terminal, while it is lent
        self._before: list[Any] = []  # the modes of the terminal
        self.is_one = os.isatty(0) and os.isatty(1)

    def lend(self, readers: list[int], writers: list[int]) -> None:
        """Put the terminal in place of a task's pipes: in `readers` (stdout, stderr, report) and
        `writers`, which get a stdin as their last.

        Args:
            readers: The coordinator's ends of stdout, stderr and the report; the first two are
                replaced.
            writers: The task's ends of the same; replaced likewise, and a stdin is appended.

        Raises:
            OSError: No pseudo-terminal is available; both lists are as they were.
        """
        if not self.is_one:
            writers.append(os.dup(0))
            return
        with ExitStack() as made:
            master, slave = os.openpty()
            for end in (master, slave):
                made.callback(os.close, end)
            stderr = os.dup(slave)
            made.callback(os.close, stderr)
            stdin = os.dup(slave)
            made.pop_all()
        self._set_up(master, slave)
        for pipe in (*readers[:2], *writers[:2]):
            os.close(pipe)
        readers[:2] = [master, -1]
        writers[:2] = [slave, stderr]
        writers.append(stdin)
        os.set_blocking(master, False)
        self._master = master
        sys.stdout.flush()
        self._pass_keys_on()
        self._loop.add_reader(0, self._forward)
        self._loop.add_signal_handler(signal.SIGWINCH, self._resize)

    def show(self, data: bytes) -> None:
        """Show what the task has written.

        Args:
            data: Bytes of the task's output, written to our stdout unchanged.
        """
        view = memoryview(data)
        while view:
            view = view[os.write(1, view) :]

    def take_back(self) -> None:
        """Give the terminal back after its task has ended. May be called twice."""
        if self._master is None:
            return
        self._master = None
        self._loop.remove_reader(0)
        self._loop.remove_signal_handler(signal.SIGWINCH)
        termios.tcsetattr(0, termios.TCSADRAIN, self._before)

    # ------------------------------------------------------------ keys

    def _forward(self) -> None:
        data = os.read(0, _CHUNK)
        if self._master is not None:
            with suppress(OSError):  # it is full, or the task has just ended: keys go nowhere
                os.write(self._master, data)

    def _resize(self) -> None:
        if self._master is not None:
            size = fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8))
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    def _pass_keys_on(self) -> None:
        """Let each key reach us as it is, Ctrl-C too: what it means is for the task's side."""
        self._before = termios.tcgetattr(0)
        modes = termios.tcgetattr(0)
        modes[_IFLAG] &= ~(termios.ICRNL | termios.INLCR | termios.IXON)
        modes[_LFLAG] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN | termios.ISIG)
        modes[_CC][termios.VMIN], modes[_CC][termios.VTIME] = 1, 0
        termios.tcsetattr(0, termios.TCSADRAIN, modes)

    @staticmethod
    def _set_up(master: int, slave: int) -> None:
        """Give the task's side the size and the modes of the terminal."""
        fcntl.ioctl(master, termios.TIOCSWINSZ, fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8)))
        modes = termios.tcgetattr(0)
        modes[_OFLAG] &= ~termios.OPOST  # our side does that
        modes[_CC][termios.VSUSP] = _OFF  # nobody could continue a task that was stopped
        termios.tcsetattr(slave, termios.TCSANOW, modes)


def take(stdin: int) -> None:
    """In the task's process: make this its stdin and, if it is a terminal, the one whose Ctrl-C it
    gets.

    Args:
        stdin: The descriptor that the task was given as its last; closed here.
    """
    os.dup2(stdin, 0)
    os.close(stdin)
    stdin_again = open(  # noqa: SIM115 -- it stays open
        0, encoding=sys.stdin.encoding, errors=sys.stdin.errors, closefd=False
    )
    sys.stdin = sys.__stdin__ = stdin_again  # type: ignore[misc]
    # What this task does not read is for the next one.
    stdin_again._CHUNK_SIZE = 1  # type: ignore[attr-defined]
    if os.isatty(0):
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
