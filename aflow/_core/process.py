"""Functions for the current process: garbage collector, event loop, signals, standard streams."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import codecs
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

# The frequency of garbage collections in processes that do not run steps.
#
# The start of a command creates a hundred thousand objects that are never freed; scanning them
# repeatedly takes a tenth of the start. A coordinator creates records without cycles. So garbage
# collections are rare in these processes. Processes that run steps use Python's defaults.

_USUAL = gc.get_threshold()


def seldom() -> None:
    """Make garbage collections rare in this process."""
    gc.set_threshold(100_000, 50, 50)


def as_usual() -> None:
    """Restore the frequency of garbage collections that the process started with."""
    gc.set_threshold(*_USUAL)


def release_memory() -> None:
    """Collect garbage, and return free memory to the system.

    May be called in any thread; takes some milliseconds if the heap of the start is frozen.
    """
    gc.collect()
    trim = getattr(_libc(), "malloc_trim", None)
    if trim is not None:  # glibc
        trim(0)


def share_heaps() -> None:
    """Limit the C library to two heaps for all future threads.

    By default the threads get separate heaps (up to eight for each processor), and a thread cannot
    use free memory in the heap of another: the memory of a loaded server with many threads kept
    growing.
    """
    limit = getattr(_libc(), "mallopt", None)
    if limit is not None:  # glibc
        limit(_M_ARENA_MAX, 2)


_M_ARENA_MAX = -8  # malloc.h


@functools.cache
def _libc() -> Any:
    import ctypes  # only needed by long-running programs

    return ctypes.CDLL(None)


# The event loop of programs in which aflow creates it.


def fastest_kind() -> type[asyncio.AbstractEventLoop]:
    """Return the class of the fastest event loop that is installed, as a base class."""
    try:
        import uvloop
    except ImportError:
        import asyncio

        return asyncio.SelectorEventLoop
    return uvloop.Loop


def fastest_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return the loop factory of uvloop if it is installed; None for asyncio's default."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


@contextmanager
def outer_loop_paused() -> Iterator[None]:
    """Allow this thread to run another event loop although one is running, which is blocked.

    A program may call its flow inside `asyncio.run`.
    """
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
    """Call a function in the event loop when a signal is received.

    A signal that is ignored stays ignored, as under nohup. Has no effect in other threads than the
    main thread, which cannot receive signals.

    Args:
        loop: The running event loop.
        signum: The number of the signal.
        callback: The function.
        *args: Its arguments.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    # signal.getsignal would look up an enum member, which formats the handler for an exception.
    if _signal.getsignal(signum) != _signal.SIG_IGN:
        if signum == signal.SIGINT:
            # Replace the handler of asyncio.Runner for the same reason: formatting it, with its
            # task, would import inspect.
            _signal.signal(signum, _signal.default_int_handler)
        loop.add_signal_handler(signum, callback, *args)


def start_helper(target: Callable[[], object], name: str) -> threading.Thread:
    """Start a daemon thread that receives no signals.

    A signal that the program blocks in its main thread, to wait for it, would otherwise be
    delivered to this thread, and could end the process.

    Args:
        target: The function that the thread runs.
        name: The name of the thread.

    Returns:
        The thread, which runs.
    """
    thread = threading.Thread(target=target, name=name, daemon=True)
    before = _signal.pthread_sigmask(_signal.SIG_BLOCK, _signal.valid_signals())
    try:
        thread.start()
    finally:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, before)
    return thread


# Process 1 of a container becomes the parent of all orphaned processes, and the kernel does not
# apply the default actions of signals to it.
#
# A program that is process 1 continues in a child; process 1 only reaps exited processes and
# forwards signals. So there are no zombies, and SIGTERM works as usual, also without an init
# process (docker run --init).


_PASSED_ON = frozenset({
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2,
    signal.SIGCONT, signal.SIGWINCH,
})  # fmt: skip


def delegate_if_first() -> None:
    """Continue in a child if this is process 1 and has only one thread."""
    threading = sys.modules.get("threading")
    if os.getpid() == 1 and (threading is None or threading.active_count() == 1):
        delegate()


def delegate() -> None:
    """Fork, and return in the child.

    This process forwards signals to the child, reaps exited processes, and exits with the exit code
    of the child.
    """
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
    """Create a process group and make it the foreground group of the terminal.

    Otherwise the child would receive Ctrl-C twice: from the terminal and from the first process.
    """
    try:
        os.setpgid(0, 0)
        if os.isatty(0):
            ttou = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            os.tcsetpgrp(0, os.getpgrp())
            signal.signal(signal.SIGTTOU, ttou)
    except OSError:  # not the controlling terminal
        return


def _reap(child: int) -> int | None:
    """Reap all exited processes; return the exit code of `child` if it is one of them."""
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


# Standard streams may be closed when the program starts, closed by the program, or replaced by any
# object with a `write` method. Output is discarded if the process has no stdout.


def fill_descriptors() -> None:
    """Open /dev/null as descriptors 0, 1 and 2 if they are closed.

    Otherwise a file or socket that is opened later would be used as a standard stream.
    """
    for number in (0, 1, 2):
        if not is_open(number):
            # open() returns the lowest free number, which is this one. Child processes inherit it.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def is_terminal(stream: Any) -> bool:
    """Return whether a stream is a terminal.

    Args:
        stream: The stream; None, closed and replaced ones are allowed.
    """
    try:
        return bool(stream.isatty())
    except (AttributeError, OSError, ValueError):
        return False


def flush(stream: Any) -> None:
    """Flush a stream; no effect if it is closed or has no `flush`.

    Args:
        stream: The stream; None, closed and replaced ones are allowed.

    Raises:
        OSError: If the other end is closed (BrokenPipeError), or the disk is full.
    """
    try:
        stream.flush()
    except (AttributeError, ValueError):  # None, or closed
        return


def binary(stream: Any) -> BinaryIO:
    """Return a binary stream that writes to a text stream.

    Args:
        stream: The stream; None, closed and replaced ones are allowed.

    Returns:
        The `buffer` of a stream of Python; for other streams, an object that decodes the bytes.
    """
    # Check the type: a stream that copies to several others may have the `buffer` of one of them.
    if getattr(type(stream), "write", None) is io.TextIOWrapper.write and not _is_closed(stream):
        try:
            return cast(BinaryIO, stream.buffer)
        except ValueError:  # detached
            stream = None
    return cast(BinaryIO, _Text(stream))


def _is_closed(stream: Any) -> bool:
    return getattr(stream, "closed", False) is True


class _Text:
    """A binary stream that decodes bytes for a text stream, and discards them if it is None."""

    def __init__(self, stream: Any) -> None:
        self._stream = None if _is_closed(stream) else stream
        # Incremental, since a write may end within a character.
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def write(self, data: bytes | memoryview) -> int:
        """Write all bytes."""
        if self._stream is not None:
            self._stream.write(self._decode(data))
        return len(data)

    def flush(self) -> None:
        """Flush the stream."""
        if self._stream is not None:
            flush(self._stream)
