"""The process that runs aflow: its garbage collector, event loop, signals and standard streams."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import functools
import gc
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from aflow._core.system import is_open

if TYPE_CHECKING:
    import asyncio

# How often Python looks for cycles to collect, where the process is ours.
#
# A command line's start makes a hundred thousand objects that all stay; looking through them again
# and again takes a tenth of the start. A coordinator makes records that hold no cycles. So in these
# processes the collector looks seldom. Where steps run it looks as often as it always does.

_USUAL = gc.get_threshold()


def seldom() -> None:
    """Let the collector look seldom in this process."""
    gc.set_threshold(100_000, 50, 50)


def as_usual() -> None:
    """Let the collector look as often as it did when the process began."""
    gc.set_threshold(*_USUAL)


def release_memory() -> None:
    """Collect garbage, and hand free memory back to the system. May be called in any thread; the
    collection takes some milliseconds where the start-up heap is frozen."""
    gc.collect()
    trim = getattr(_libc(), "malloc_trim", None)
    if trim is not None:  # glibc
        trim(0)


def share_heaps() -> None:
    """Let all threads to come allocate from the same two heaps of the C library. By default each of
    them gets a heap of its own (up to eight for each processor), and what is free in one is of no
    use to another: a server whose threads read many records grew for as long as it was loaded."""
    limit = getattr(_libc(), "mallopt", None)
    if limit is not None:  # glibc
        limit(_M_ARENA_MAX, 2)


_M_ARENA_MAX = -8  # malloc.h


@functools.cache
def _libc() -> Any:
    import ctypes  # few programs live long enough

    return ctypes.CDLL(None)


# Which event loop to use where the choice is ours.


def fastest_kind() -> type[asyncio.AbstractEventLoop]:
    """Return the class of that event loop, to derive from."""
    try:
        import uvloop
    except ImportError:
        import asyncio

        return asyncio.SelectorEventLoop
    return uvloop.Loop


def fastest_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes an event loop: uvloop's where it is installed, else None for asyncio's
    own."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


@contextmanager
def outer_loop_paused() -> Iterator[None]:
    """Let event loops run in this context where the thread is in a callback of one already, which
    stands still meanwhile: a program may call its flow inside of `asyncio.run`."""
    asyncio = sys.modules.get("asyncio")
    outer = None if asyncio is None else asyncio._get_running_loop()
    if asyncio is None or outer is None:
        yield
        return
    asyncio._set_running_loop(None)
    try:
        yield
    finally:
        asyncio._set_running_loop(outer)


def on_signal(
    loop: asyncio.AbstractEventLoop, signum: int, callback: Callable[..., object], *args: object
) -> None:
    """Call back in the event loop when a signal comes. A signal that is ignored stays ignored, as
    under nohup. Nothing is done in another thread than the first, which cannot hear signals.

    Args:
        loop: The running event loop.
        signum: The number of the signal.
        callback: What is called.
        *args: The arguments of the callback.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    # signal.getsignal would look for an enum's member, and write the handler down for an error.
    if _signal.getsignal(signum) != _signal.SIG_IGN:
        if signum == signal.SIGINT:
            # That of asyncio.Runner, for the same reason: it would be written down with its task,
            # for which inspect is loaded.
            _signal.signal(signum, _signal.default_int_handler)
        loop.add_signal_handler(signum, callback, *args)


# What the first process of a container owes the others: it is the parent of all that lost theirs,
# and the kernel leaves out the default actions of signals for it.
#
# A program that finds itself to be process 1 goes on in a child, and the first process does
# nothing but reap what ends, and pass signals on. So no zombies pile up, and SIGTERM means what it
# means elsewhere, also without an init (docker run --init).


_PASSED_ON = frozenset({
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2,
    signal.SIGCONT, signal.SIGWINCH,
})  # fmt: skip


def delegate_if_first() -> None:
    """Go on in a child, if this is process 1 and has no thread but this one."""
    threading = sys.modules.get("threading")
    if os.getpid() == 1 and (threading is None or threading.active_count() == 1):
        delegate()


def delegate() -> None:
    """Return in a child. This process passes signals on to it, reaps whatever ends, and ends as the
    child does."""
    waited_for = _PASSED_ON | {signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, waited_for)
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _take_terminal()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    while True:
        number = signal.sigwait(waited_for)
        if number != signal.SIGCHLD:
            os.kill(child, number)
        code = _reap(child)
        if code is not None:
            os._exit(code)


def _take_terminal() -> None:
    """Have a process group of our own, which the terminal sends Ctrl-C to: the first process would
    pass it on a second time."""
    try:
        os.setpgid(0, 0)
        if os.isatty(0):
            ttou = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            os.tcsetpgrp(0, os.getpgrp())
            signal.signal(signal.SIGTTOU, ttou)
    except OSError:  # it is not our terminal
        return


def _reap(child: int) -> int | None:
    """Reap all that has ended; the exit code to end with, once the child is among them."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if pid == 0:
            return code
        if pid == child:
            ended = os.waitstatus_to_exitcode(status)
            code = ended if ended >= 0 else 128 - ended


# Standard streams as they may be: closed when the program began, closed by it, or replaced by any
# object that has a `write`. What is printed where there is nowhere to print to is lost, quietly.


def fill_descriptors() -> None:
    """Let descriptors 0, 1 and 2 lead to nothing where they are closed: a file or a socket that is
    opened later must not be taken for a stream."""
    for number in (0, 1, 2):
        if not is_open(number):
            # The lowest number that is free, which is this one. Programs that are started have it.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def is_terminal(stream: Any) -> bool:
    """Return whether a person sees what is written to the stream.

    Args:
        stream: The stream; None, closed and replaced ones are allowed.
    """
    try:
        return bool(stream.isatty())
    except (AttributeError, OSError, ValueError):
        return False


def flush(stream: Any) -> None:
    """Flush a stream that can be flushed; do nothing for any other.

    Args:
        stream: The stream; None, closed and replaced ones are allowed.

    Raises:
        OSError: The other end is gone (BrokenPipeError), or the disk is full.
    """
    try:
        stream.flush()
    except (AttributeError, ValueError):  # none, or closed
        return


def binary(stream: Any) -> BinaryIO:
    """Return the stream for bytes: Python's own ones have a buffer, others are given text.

    Args:
        stream: The stream; None, closed and replaced ones are allowed.
    """
    # Not whatever has a `buffer`: what copies to several places may hand on that of one of them.
    if getattr(type(stream), "write", None) is io.TextIOWrapper.write and not _is_closed(stream):
        try:
            return cast(BinaryIO, stream.buffer)
        except ValueError:  # detached
            stream = None
    return cast(BinaryIO, _Text(stream))


def _is_closed(stream: Any) -> bool:
    return getattr(stream, "closed", False) is True


class _Text:
    """Writes bytes as text to a stream that takes nothing else; nowhere, if there is none."""

    def __init__(self, stream: Any) -> None:
        self._stream = None if _is_closed(stream) else stream

    def write(self, data: bytes | memoryview) -> int:
        """Write all of it."""
        if self._stream is not None:
            self._stream.write(bytes(data).decode("utf-8", "replace"))
        return len(data)

    def flush(self) -> None:
        """Flush the stream."""
        if self._stream is not None:
            flush(self._stream)
