"""Blocking calls beside an event loop that is somebody else's.

`asyncio.to_thread` uses the loop's default executor, which a program that embeds aflow may have
filled with blocking calls of its own: then nothing of aflow would ever begin, or end. Here each
call has a thread of its own. That costs some 50 microseconds; what is called often has a thread for
good where it is (see `runs/commits.py`).
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """What the call gives, or raises, made in a thread of its own with the context variables of the
    caller. A call that has begun goes on when this is cancelled, and its result is dropped."""
    return await _threaded(partial(function, *args, **kwargs), daemon=False)


async def in_daemon_thread(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """The same as `in_thread`, for a call that must not hold up the end of the program: one that
    has not ended by then is cut off."""
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
        return  # whoever waited was cancelled
    if error is None:
        done.set_result(result)
    elif isinstance(error, StopIteration):  # which no future takes
        done.set_exception(RuntimeError("a blocking call raised StopIteration"))
    else:
        done.set_exception(error)


async def to_the_end(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """What the work gives, or raises: for what is to be tidied up in any case. Whoever is cancelled
    while it waits here, once or often, is cancelled when the work is done. Work whose own task is
    cancelled (by a program that cancels all tasks of its loop) begins again: it has to bear that.
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
