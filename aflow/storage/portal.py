"""Calls of coroutines from threads that have no event loop: one loop, in a thread of its own.

The ports of storage block, and libraries for the network are written for asyncio. A portal runs
their coroutines side by side, for however many threads call. A process that was forked has no
threads of its parent's: it makes a portal of its own.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from aflow.loops import fastest_loop

T = TypeVar("T")
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
        """What `work(resource)` gives or raises; blocks. Raises what `opened` raised."""
        return self.begin(work).result()

    def begin(self, work: Callable[[R], Coroutine[Any, Any, T]]) -> Future[T]:
        """The same, whose answer comes later. To cancel it is to cancel the coroutine."""
        loop = self._running()
        return asyncio.run_coroutine_threadsafe(work(self._resource), loop)

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._pid == os.getpid() and self._loop is not None:
            return self._loop
        if self._pid != os.getpid():
            self._lock = threading.Lock()  # whoever held it is not in this process
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
        """Close what was opened; the next call begins anew. May be called twice. Raises
        TimeoutError where that takes longer than `timeout` seconds."""
        if self._pid != os.getpid():
            return
        with self._lock:
            loop, thread = self._loop, self._thread
            if loop is None or thread is None:
                return
            self._loop = self._thread = None
            asyncio.run_coroutine_threadsafe(self._closed(self._resource), loop).result(timeout)
            self._stop(loop, thread)

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
