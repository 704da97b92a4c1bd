"""Blocking calls beside an event loop that is somebody else's.

`asyncio.to_thread` uses the loop's default executor, which a program that embeds aflow may have
filled with blocking calls of its own: then nothing of aflow would ever begin, or end. Here each
call has a thread of its own. That costs some 50 microseconds; what is called often has a thread for
good where it is (see `runs/commit_gate.py`).
"""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future
from functools import partial
from typing import Any, Generic, ParamSpec, TypeVar

from aflow._core.process import fastest_loop

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a blocking function in a thread of its own, with the context variables of the caller. If
    the awaiting task is cancelled, a call that has begun goes on, and its result is dropped.

    Args:
        function: The blocking function.
        *args: Its positional arguments.
        **kwargs: Its keyword arguments.

    Returns:
        What the function returned.
    """
    return await _threaded(partial(function, *args, **kwargs), daemon=False)


async def in_daemon_thread(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a blocking function as `in_thread` does, in a thread that does not delay the end of the
    program: a call that goes on then is cut off.

    Args:
        function: The blocking function.
        *args: Its positional arguments.
        **kwargs: Its keyword arguments.

    Returns:
        What the function returned.
    """
    return await _threaded(partial(function, *args, **kwargs), daemon=True)


async def _threaded(function: Callable[[], T], *, daemon: bool) -> T:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()
    call = partial(contextvars.copy_context().run, function)
    thread = threading.Thread(
        target=_carry_out, args=(call, loop, done), name="aflow-call", daemon=daemon
    )
    thread.start()
    try:
        return await done
    finally:
        if not done.cancelled():
            thread.join()  # at once: to say so was the last that it did


def _carry_out(
    call: Callable[[], Any], loop: asyncio.AbstractEventLoop, done: asyncio.Future[Any]
) -> None:
    try:
        result, error = call(), None
    except BaseException as raised:  # noqa: BLE001 -- raised where the call is awaited
        result, error = None, raised
    try:
        loop.call_soon_threadsafe(_conclude, done, result, error)
    except RuntimeError:  # the loop was closed: nobody waits any more
        return


def _conclude(done: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if done.done():
        return  # the awaiting task was cancelled
    if error is None:
        done.set_result(result)
    elif isinstance(error, StopIteration):  # which no future takes
        done.set_exception(RuntimeError("a blocking call raised StopIteration"))
    else:
        done.set_exception(error)


async def to_the_end(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run clean-up that has to happen in any case, and only then pass on a cancellation of the
    caller. If the work's own task is cancelled (by a program that cancels all tasks of its loop) it
    begins again: it has to be idempotent.

    Args:
        work: Makes the coroutine of the clean-up.

    Returns:
        What the coroutine returned.
    """
    loop = asyncio.get_running_loop()
    cancelled, doing = False, loop.create_task(work())
    while not doing.done() or doing.cancelled():
        if doing.cancelled():
            doing = loop.create_task(work())
        try:
            await asyncio.wait([doing])
        except asyncio.CancelledError:
            cancelled = True
    result = doing.result()
    if cancelled:
        raise asyncio.CancelledError
    return result


async def some_at_once(work: Iterable[Coroutine[Any, Any, T]], width: int) -> list[T]:
    """Return the answers of all, in order; `width` of them are on their way at a time, and no other
    is begun, which bounds the memory. Raises the first error, when all others have ended.

    Args:
        work: The coroutines, which are created as they are needed.
        width: How many run at a time.
    """
    answers: dict[int, T] = {}
    numbered = enumerate(work)

    async def go_on() -> None:
        for number, each in numbered:
            answers[number] = await each

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(width):
                group.create_task(go_on())
    except BaseExceptionGroup as several:
        raise several.exceptions[0] from several
    return [answers[number] for number in sorted(answers)]


# Calls of coroutines from threads that have no event loop: one loop, in a thread of its own.
#
# The ports of storage block, and libraries for the network are written for asyncio. A portal runs
# their coroutines side by side, for however many threads call. A process that was forked has no
# threads of its parent's: it makes a portal of its own.


R = TypeVar("R")

_AT_EXIT = 2.0  # seconds that connections may take to close when the program ends


class Portal(Generic[R]):
    """A thread with an event loop and what was opened in it: `opened()` is awaited there, once, and
    its answer is given to every call; `closed(answer)` is awaited at the end."""

    def __init__(
        self,
        name: str,
        opened: Callable[[], Coroutine[Any, Any, R]],
        closed: Callable[[R], Coroutine[Any, Any, None]],
    ) -> None:
        self._name = name
        self._opened = opened
        self._closed = closed
        self._lock = threading.Lock()
        self._pid = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._resource: R

    def call(self, work: Callable[[R], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine in the loop's thread, and block until it is done. An error of `opened` is
        raised here.

        Args:
            work: Called with the resource in the loop's thread; its coroutine is run there.

        Returns:
            What the coroutine returned.
        """
        return self.begin(work).result()

    def begin(self, work: Callable[[R], Coroutine[Any, Any, T]]) -> Future[T]:
        """Start a coroutine in the loop's thread without waiting for it. Cancelling the future
        cancels the coroutine.

        Args:
            work: Called with the resource in the loop's thread; its coroutine is run there.

        Returns:
            The future of its result.
        """
        loop = self._running()
        return asyncio.run_coroutine_threadsafe(work(self._resource), loop)

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._pid == os.getpid() and self._loop is not None:
            return self._loop
        if self._pid != os.getpid():
            self._lock = threading.Lock()  # the thread that held it is not in this process
            self._pid, self._loop = os.getpid(), None
        with self._lock:
            if self._loop is None:
                self._start()
            assert self._loop is not None, "it was started"
            return self._loop

    def _start(self) -> None:
        make = fastest_loop() or asyncio.new_event_loop
        loop = make()
        thread = threading.Thread(target=loop.run_forever, name=self._name, daemon=True)
        thread.start()
        try:
            self._resource = asyncio.run_coroutine_threadsafe(self._opened(), loop).result()
        except BaseException:
            self._stop(loop, thread)
            raise
        self._loop, self._thread = loop, thread
        _started.add(self)

    def close(self, timeout: float | None = None) -> None:
        """Cancel the calls that still go on, and close the resource. The next call opens it again.
        May be called twice.

        Args:
            timeout: Seconds to wait at most; None for no limit.

        Raises:
            TimeoutError: It takes longer.
        """
        if self._pid != os.getpid():
            return
        with self._lock:
            loop, thread = self._loop, self._thread
            if loop is None or thread is None:
                return
            self._loop = self._thread = None
            asyncio.run_coroutine_threadsafe(self._end(), loop).result(timeout)
            self._stop(loop, thread)

    async def _end(self) -> None:
        # A loop that stops under a call would leave its caller waiting for ever.
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for each in others:
            each.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._closed(self._resource)

    @staticmethod
    def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


_started: weakref.WeakSet[Portal[Any]] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Close what the program has left open: the libraries would complain of it on stderr."""
    for portal in [*_started]:
        try:
            portal.close(_AT_EXIT)
        except (OSError, RuntimeError, TimeoutError):  # the program ends: nothing can be done
            continue
