"""Lend the terminal of the command to the one task that is debugged, for breakpoint() and input().

Processes of tasks are in separate sessions, so that Ctrl-C reaches only the coordinator. The
terminal cannot interrupt a process of another session, so the debugged task gets a pseudo-terminal,
and the coordinator forwards each key and each byte of output. Without a terminal (input comes from
a file or a pipe), the task gets this input as its stdin, and its output is handled like that of
other tasks.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import select
import signal
import sys
import termios
from contextlib import suppress
from typing import Any

from aflow.executors.local import messages

_CHUNK = 1 << 12  # bytes: the most that a pseudo-terminal returns
_OFF = b"\0"  # _POSIX_VDISABLE
_IFLAG, _OFLAG, _LFLAG, _CC = 0, 1, 3, 6  # indexes in the result of tcgetattr


class Terminal:
    """The terminal of this process (descriptors 0 and 1), for one task at a time. `is_one` is
    whether the task has it; not if there is none, or after it was closed."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # The coordinator's side of the pseudo-terminal, while it is lent. Not the descriptor from
        # which the output is read: that one is closed before the end of the task is known.
        self._master: int | None = None
        self._before: list[Any] = []  # the terminal modes before
        self.is_one = False

    def lend(self, readers: list[int], writers: list[int]) -> None:
        """Replace the pipes of a task by the terminal, and append a stdin for the task.

        Args:
            readers: The coordinator's ends of stdout, stderr and the report; the first two are
                replaced.
            writers: The task's ends of the same; replaced likewise, and a stdin is appended.

        Raises:
            OSError: If no pseudo-terminal is available; both lists are unchanged.
        """
        self.is_one = os.isatty(0) and os.isatty(1)
        if not self.is_one:
            writers.append(os.dup(0))
            return
        made = [*os.openpty()]
        try:
            for end in (0, 1, 1):
                made.append(os.dup(made[end]))
            self._set_up(*made[:2])
        except (OSError, termios.error) as error:
            messages.close_all(made)
            raise OSError(*error.args) from error
        master, slave, own, stderr, stdin = made
        for pipe in (*readers[:2], *writers[:2]):
            os.close(pipe)
        readers[:2] = [master, -1]
        writers[:2] = [slave, stderr]
        writers.append(stdin)
        os.set_blocking(master, False)
        self._master = own
        sys.stdout.flush()
        self._pass_keys_on()
        self._loop.add_reader(0, self._forward)
        self._loop.add_signal_handler(signal.SIGWINCH, self._resize)

    def show(self, data: bytes) -> None:
        """Show the output of the task.

        Args:
            data: Bytes of the task's output, written to the coordinator's stdout unchanged.
        """
        view = memoryview(data)
        while view and self.is_one:
            try:
                view = view[os.write(1, view) :]
            except BlockingIOError:  # another process that shares it has made it nonblocking
                select.select([], [1], [])
            except OSError:  # it was closed; the output is in the log of the task
                self.is_one = False

    def take_back(self) -> None:
        """Restore the terminal after its task has ended. May be called twice."""
        if self._master is None:
            return
        os.close(self._master)
        self._master = None
        self._loop.remove_reader(0)
        self._loop.remove_signal_handler(signal.SIGWINCH)
        with suppress(termios.error):  # it was closed
            termios.tcsetattr(0, termios.TCSADRAIN, self._before)

    # ------------------------------------------------------------ keys

    def _forward(self) -> None:
        try:
            data = os.read(0, _CHUNK)
        except BlockingIOError:  # another process that shares it has read them
            return
        except OSError:
            data = b""
        if not data:
            self._hang_up()
        elif self._master is not None:
            with suppress(OSError):  # it is full, or the task has just ended: keys are discarded
                os.write(self._master, data)

    def _hang_up(self) -> None:
        """Close the terminal for the task too: end its input, and signal it like the kernel."""
        self._loop.remove_reader(0)
        self.is_one = False
        if self._master is not None:
            with suppress(OSError):  # the task has just ended
                os.write(self._master, self._before[_CC][termios.VEOF])
                group = os.tcgetpgrp(self._master)
                if group > 0:  # 0 if the task has not taken the terminal yet
                    os.killpg(group, signal.SIGHUP)

    def _resize(self) -> None:
        if self._master is not None:
            size = fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8))
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    def _pass_keys_on(self) -> None:
        """Disable input processing: the pseudo-terminal interprets keys such as Ctrl-C."""
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
        modes[_OFLAG] &= ~termios.OPOST  # the real terminal does that
        modes[_CC][termios.VSUSP] = _OFF  # no shell could continue a stopped task
        termios.tcsetattr(slave, termios.TCSANOW, modes)


def take(stdin: int) -> None:
    """Make a descriptor the stdin of this task and, if it is a terminal, the controlling terminal.

    Args:
        stdin: The last descriptor that the task was given; closed here.
    """
    os.dup2(stdin, 0)
    os.close(stdin)
    stdin_again = open(  # noqa: SIM115 -- it stays open
        0, encoding=sys.stdin.encoding, errors=sys.stdin.errors, closefd=False
    )
    sys.stdin = sys.__stdin__ = stdin_again  # type: ignore[misc]
    # No read-ahead: input that this task does not read belongs to the next one.
    stdin_again._CHUNK_SIZE = 1  # type: ignore[attr-defined]
    if os.isatty(0):
        with suppress(PermissionError):  # stdout is no terminal: this one remains the command's
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
