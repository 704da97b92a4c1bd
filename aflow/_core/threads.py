"""Blocking calls from an event loop, and coroutines from threads.

`asyncio.to_thread` uses the default executor of the loop. A program that embeds aflow may have
filled that with its own blocking calls, which would block aflow forever. Here each call has a new
thread, which takes about 50 microseconds; frequent calls use a permanent thread instead (see
`runs/commit_gate.py`).
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
    """Call a blocking function in a new thread, with the context variables of the caller.

    If the awaiting task is cancelled, the call continues and its result is discarded.

    Args:
        function: The blocking function.
        *args: Its positional arguments.
        **kwargs: Its keyword arguments.

    Returns:
        The result of the function.
    """
    return await _threaded(partial(function, *args, **kwargs), daemon=False)


async def in_daemon_thread(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a blocking function like `in_thread`, in a daemon thread.

    The program does not wait for it at its end.

    Args:
        function: The blocking function.
        *args: Its positional arguments.
        **kwargs: Its keyword arguments.

    Returns:
        The result of the function.
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
            thread.join()  # returns immediately: setting the result was the thread's last action


def _carry_out(
    call: Callable[[], Any], loop: asyncio.AbstractEventLoop, done: asyncio.Future[Any]
) -> None:
    try:
        result, error = call(), None
    except BaseException as raised:  # noqa: BLE001 -- raised where the call is awaited
        result, error = None, raised
    try:
        loop.call_soon_threadsafe(_conclude, done, result, error)
    except RuntimeError:  # the loop was closed, so no task waits for the result
        return


def _conclude(done: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if done.done():
        return  # the awaiting task was cancelled
    if error is None:
        done.set_result(result)
    elif isinstance(error, StopIteration):  # a future cannot have this exception
        done.set_exception(RuntimeError("a blocking call raised StopIteration"))
    else:
        done.set_exception(error)


async def to_the_end(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a clean-up to its end even if the caller is cancelled; then raise the cancellation.

    If the task of the clean-up itself is cancelled (by a program that cancels all tasks of its
    loop), it starts again, so it must be idempotent.

    Args:
        work: Creates the coroutine of the clean-up.

    Returns:
        The result of the coroutine.
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
    """Return the results of coroutines, in order, running at most `width` at the same time.

    Raises the first error after all others have ended.

    Args:
        work: The coroutines; each is taken from the iterable when it can start.
        width: The maximum number of coroutines that run at the same time.
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


# Calls of coroutines from threads that have no event loop: one loop, in a separate thread.
#
# The ports of storage are blocking, and network libraries use asyncio. A portal runs the coroutines
# of all calling threads concurrently. A forked process does not have the threads of its parent, so
# it starts a new portal.


R = TypeVar("R")

_AT_EXIT = 2.0  # the maximum seconds for closing connections at the end of the program


class Portal(Generic[R]):
    """A thread with an event loop, and a resource that was opened in it.

    The loop awaits `opened()` once and passes its result to every call; it awaits `closed(result)`
    at the end.
    """

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
        """Run a coroutine in the thread of the loop, and block until it is done.

        The first call opens the resource; errors of `opened` are raised here.

        Args:
            work: Called with the resource; its coroutine runs in the loop.

        Returns:
            The result of the coroutine.
        """
        return self.begin(work).result()

    def begin(self, work: Callable[[R], Coroutine[Any, Any, T]]) -> Future[T]:
        """Start a coroutine in the thread of the loop without waiting for it.

        Args:
            work: Called with the resource; its coroutine runs in the loop.

        Returns:
            The future of its result; cancelling it cancels the coroutine.
        """
        loop = self._running()
        return asyncio.run_coroutine_threadsafe(work(self._resource), loop)

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._pid == os.getpid() and self._loop is not None:
            return self._loop
        if self._pid != os.getpid():
            self._lock = threading.Lock()  # after a fork no thread could release the old one
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
        """Cancel all running calls, and close the resource. The next call opens it again.

        Can be called more than once.

        Args:
            timeout: The maximum seconds to wait; None for no limit.

        Raises:
            TimeoutError: If it takes longer.
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
        # If the loop stopped during a call, its caller would wait forever.
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
    """Close all open portals: otherwise the libraries print warnings about open connections."""
    for portal in [*_started]:
        try:
            portal.close(_AT_EXIT)
        except (OSError, RuntimeError, TimeoutError):  # ignored, because the program ends
            continue
