"""Items of a foreach that are handed out while the step still makes them.

Whoever makes them stores them; a thread says now and then how many there are. It does so at once
where they come slowly; where they come fast, the pause grows with the time that has passed, so that
even a day of items is told of some hundred times.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from aflow.storage.items import ItemWriter

if TYPE_CHECKING:
    from aflow.clock import Clock
    from aflow.storage.blobs import BlobStore

PAUSE = 0.02  # seconds at least between two announcements
SHARE = 0.02  # of the time that has passed: the pause later on

Announce = Callable[[Any, int], None]
"""Called with what `Manifest.items` is so far, and how many items that are."""


def write_streamed(
    items: Iterable[Any], blobs: BlobStore, limit: int, clock: Clock, announce: Announce
) -> tuple[Any, int]:
    """The same as `write_items`, and `announce` is called meanwhile, from another thread. It is not
    called any more when this returns or raises."""
    stream = _Stream(blobs, clock, announce)
    try:
        for count, item in enumerate(items):
            if count == limit:
                return None, count + 1
            stream.add(item)
        return stream.finish()
    finally:
        stream.stop()


class _Stream:
    """Items on their way to the store, and the thread that announces them."""

    def __init__(self, blobs: BlobStore, clock: Clock, announce: Announce) -> None:
        self._writer = ItemWriter(blobs)
        self._announce = announce
        self._clock = clock
        self._begun_at = clock.monotonic()
        self._news = threading.Condition()
        self._told = 0
        self._over = False
        self._problem: BaseException | None = None
        self._thread = threading.Thread(target=self._tell, name="aflow-items", daemon=True)

    def add(self, item: Any) -> None:
        with self._news:
            if self._problem is not None:
                raise self._problem
            self._writer.add(item)
            if self._writer.count == 1:
                self._thread.start()
            self._news.notify()

    def _tell(self) -> None:
        with self._news:
            while not self._over:
                if self._writer.count == self._told:
                    self._news.wait()
                    continue
                try:
                    self._announce(self._writer.cut(), self._writer.count)
                except BaseException as error:  # noqa: BLE001 -- raised again where items are added
                    self._problem = error
                    return
                self._told = self._writer.count
                self._pause()

    def _pause(self) -> None:
        """Let items come, without being woken by each."""
        until = self._clock.monotonic()
        until += max(PAUSE, SHARE * (until - self._begun_at))
        while not self._over and (left := until - self._clock.monotonic()) > 0:
            self._news.wait(left)

    def finish(self) -> tuple[Any, int]:
        with self._news:
            if self._problem is not None:
                raise self._problem
            return self._writer.finish()

    def stop(self) -> None:
        with self._news:
            self._over = True
            self._news.notify()
        if self._thread.ident is not None:
            self._thread.join()
