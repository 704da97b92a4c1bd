"""Retries with backoff for calls that raise StoreBusy, and a wrapper that retries a store."""

from __future__ import annotations

import random
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

from aflow._core.backoff import Backoff, Tries
from aflow.errors import ObjectNotFound, StoreBusy, StoreUnavailable
from aflow.storage.base import Buffer, ObjectStore, Put, check_name

T = TypeVar("T")

TRIES = 8
BACKOFF = Backoff(0.2, 10.0)
_AT_ONCE = 8  # objects of a batch that are uploaded concurrently
_MOST_IN_FLIGHT = 64 << 20  # total bytes of these
_ALONE_FROM = 8 << 20  # bytes from which an object is uploaded in the foreground, without a copy


def given_up(error: StoreBusy, tries: int) -> StoreUnavailable:
    """Return the error to raise after the last try.

    Args:
        error: The error of the last try.
        tries: The number of tries.
    """
    return StoreUnavailable(
        f"{error} It was tried {tries} times. See whether it is up and can be reached."
    )


async def retried(act: Callable[[], Awaitable[T]], tries: int = TRIES) -> T:
    """Await a call, and retry it with backoff while it raises StoreBusy.

    Args:
        act: Returns the awaitable of one try.
        tries: The maximum number of tries.

    Returns:
        The result of the call.

    Raises:
        StoreUnavailable: If all tries failed.
    """
    try:
        return await Tries(BACKOFF, most=tries).retry_async(act, StoreBusy)
    except StoreBusy as error:
        raise given_up(error, tries) from error


class RetryingStore:
    """Wraps a store and retries calls that raise StoreBusy, up to TRIES tries in total.

    `pause(seconds)` waits; `share()` returns a random number between 0 and 1 for the jitter.
    """

    def __init__(
        self,
        store: ObjectStore,
        pause: Callable[[float], object] | None = None,
        share: Callable[[], float] = random.random,
    ) -> None:
        self._store = store
        self._pause = pause or threading.Event().wait
        self._share = share

    @property
    def url(self) -> str:
        """The URL of the store."""
        return self._store.url

    def put(self, name: str, parts: Sequence[Buffer], *, durable: bool = False) -> None:
        """Write an object; see the port."""
        self._try(lambda _: self._store.put(name, parts, durable=durable))

    @contextmanager
    def batch(self, *, durable: bool = False) -> Iterator[Put]:
        """Put several objects concurrently; see the port. Large objects are put one at a time: the
        store uploads their parts concurrently."""
        batch = _Batch(self, durable)
        try:
            yield batch.put
        except BaseException:
            batch.abandon()
            raise
        batch.finish()

    def put_if_absent(self, name: str, parts: Sequence[Buffer], *, durable: bool = False) -> bool:
        """Write an object unless it exists; see the port.

        The response may be lost after the object was written. Therefore, if a retry finds an
        object with the same bytes, it counts as written by this call."""

        def write(failed: int) -> bool:
            if self._store.put_if_absent(name, parts, durable=durable):
                return True
            return failed > 0 and self._has(name, parts)

        return self._try(write)

    def _has(self, name: str, parts: Sequence[Buffer]) -> bool:
        try:
            there = self.get(name)
        except ObjectNotFound:  # it has been removed in between
            return False
        return memoryview(there) == memoryview(b"".join(map(bytes, parts)))

    def get(self, name: str, start: int = 0, length: int | None = None) -> Buffer:
        """Read an object; see the port."""
        return self._try(lambda _: self._store.get(name, start, length))

    def size(self, name: str) -> int | None:
        """Return the size of an object; see the port."""
        return self._try(lambda _: self._store.size(name))

    def list(self, prefix: str) -> Iterator[str]:
        """Return the names that begin with `prefix`; see the port. After a failure the listing is
        restarted, and names that were already yielded are skipped."""
        return self._listed(self._store.list(prefix), prefix)

    def _listed(self, names: Iterator[str], prefix: str) -> Iterator[str]:
        last, tries = "", self._tries()
        while True:
            try:
                for name in names:
                    if name > last:
                        yield name
                        last = name
                        tries.succeeded()
                return
            except StoreBusy as error:
                delay = tries.failed(error)
                if delay is None:
                    raise given_up(error, TRIES) from error
                self._pause(delay)
                names = self._store.list(prefix)

    def delete(self, name: str) -> None:
        """Remove an object; see the port."""
        self._try(lambda _: self._store.delete(name))

    def touch(self, name: str) -> bool:
        """Set the object's time of last use to now; see the port."""
        return self._try(lambda _: self._store.touch(name))

    def remove_untouched(self, name: str, since: float, *, dry_run: bool = False) -> int | None:
        """Remove an unused object; see the port."""
        return self._try(lambda _: self._store.remove_untouched(name, since, dry_run=dry_run))

    def sweep(self, older_than_s: float, now: float) -> int:
        """Remove leftovers of killed writers; see the port."""
        return self._try(lambda _: self._store.sweep(older_than_s, now))

    def _try(self, act: Callable[[int], T]) -> T:
        """Return the result of `act(number of failures so far)`, with retries."""
        tries = self._tries()
        try:
            return tries.retry(lambda: act(tries.failures), StoreBusy, pause=self._pause)
        except StoreBusy as error:
            raise given_up(error, TRIES) from error

    def _tries(self) -> Tries:
        what = f"the datastore {self.url}"
        return Tries(BACKOFF, most=TRIES, waiting_for=what, share=self._share)


class _Batch:
    """The objects of a batch that are being uploaded."""

    def __init__(self, store: RetryingStore, durable: bool) -> None:
        self._store = store
        self._durable = durable
        self._pool: ThreadPoolExecutor | None = None
        self._sizes: dict[Future[None], int] = {}

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        """Start to put an object. Raises the error of an earlier object that failed."""
        size = sum(memoryview(part).nbytes for part in parts)
        if size >= _ALONE_FROM:
            self._store.put(name, parts, durable=self._durable)
            return
        while len(self._sizes) >= _AT_ONCE or sum(self._sizes.values()) + size > _MOST_IN_FLIGHT:
            self._settle()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="aflow-put")
        copy = b"".join(parts)
        sent = self._pool.submit(self._store.put, check_name(name), [copy], durable=self._durable)
        self._sizes[sent] = size

    def _settle(self) -> None:
        done, _ = wait(self._sizes, return_when=FIRST_COMPLETED)
        for each in done:
            del self._sizes[each]
            each.result()

    def finish(self) -> None:
        """Wait until all objects are stored. Raises the error of the first that failed."""
        try:
            while self._sizes:
                self._settle()
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Cancel the uploads that have not started, and wait for the others."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
