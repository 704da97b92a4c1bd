"""Trying again what may go well the next time: calls, and a store whose calls are."""

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
_AT_ONCE = 8  # objects of a batch that are on their way
_MOST_IN_FLIGHT = 64 << 20  # bytes of them
_ALONE_FROM = 8 << 20  # bytes of an object that is not copied, and goes before the next one begins


def given_up(error: StoreBusy, tries: int) -> StoreUnavailable:
    """Return the error that is raised after the last try.

    Args:
        error: The error of the last try.
        tries: How many tries were made, or are made at most.
    """
    return StoreUnavailable(
        f"{error} It was tried {tries} times. See whether it is up and can be reached."
    )


async def retried(act: Callable[[], Awaitable[T]], tries: int = TRIES) -> T:
    """Call again while StoreBusy is raised.

    Args:
        act: Makes the awaitable of one try.
        tries: How many tries were made, or are made at most.

    Returns:
        What the call returned.

    Raises:
        StoreUnavailable: All tries have failed.
    """
    try:
        return await Tries(BACKOFF, most=tries).retry_async(act, StoreBusy)
    except StoreBusy as error:
        raise given_up(error, tries) from error


class RetryingStore:
    """Wraps a store: calls that raise StoreBusy are made again, up to TRIES times in all.

    `pause(seconds)` waits; `share()` gives a random number between 0 and 1.
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
        """Where the store is."""
        return self._store.url

    def put(self, name: str, parts: Sequence[Buffer], *, durable: bool = False) -> None:
        """Write an object; see the port."""
        self._try(lambda _: self._store.put(name, parts, durable=durable))

    @contextmanager
    def batch(self, *, durable: bool = False) -> Iterator[Put]:
        """Put several objects, some at a time; see the port. Large ones go up in parts, of which
        several are on their way by themselves."""
        batch = _Batch(self, durable)
        try:
            yield batch.put
        except BaseException:
            batch.abandon()
            raise
        batch.finish()

    def put_if_absent(self, name: str, parts: Sequence[Buffer], *, durable: bool = False) -> bool:
        """Write an object where none is; see the port.

        An answer may be lost after the object was written. So where a try after a failed one finds
        an object, it is ours if it has our bytes."""

        def write(failed: int) -> bool:
            if self._store.put_if_absent(name, parts, durable=durable):
                return True
            return failed > 0 and self._has(name, parts)

        return self._try(write)

    def _has(self, name: str, parts: Sequence[Buffer]) -> bool:
        try:
            there = self.get(name)
        except ObjectNotFound:  # removed meanwhile: so it was not ours to count on
            return False
        return memoryview(there) == memoryview(b"".join(map(bytes, parts)))

    def get(self, name: str, start: int = 0, length: int | None = None) -> Buffer:
        """Read an object; see the port."""
        return self._try(lambda _: self._store.get(name, start, length))

    def size(self, name: str) -> int | None:
        """How many bytes an object has; see the port."""
        return self._try(lambda _: self._store.size(name))

    def list(self, prefix: str) -> Iterator[str]:
        """The names that begin with `prefix`; see the port. After a failure it begins again, and
        passes over what it has given."""
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
        """Say that an object is wanted; see the port."""
        return self._try(lambda _: self._store.touch(name))

    def remove_untouched(self, name: str, since: float, *, dry_run: bool = False) -> int | None:
        """Remove an object that nobody wants; see the port."""
        return self._try(lambda _: self._store.remove_untouched(name, since, dry_run=dry_run))

    def sweep(self, older_than_s: float, now: float) -> int:
        """Remove what dead writers have left; see the port."""
        return self._try(lambda _: self._store.sweep(older_than_s, now))

    def _try(self, act: Callable[[int], T]) -> T:
        """What `act(failures so far)` gives."""
        try:
            return act(0)  # nothing more is made for calls that succeed at once, as nearly all do
        except StoreBusy as error:
            tries = self._tries()
            delay = tries.failed(error)
            assert delay is not None, "more than one try is made"
            self._pause(delay)
        try:
            return tries.retry(lambda: act(tries.failures), StoreBusy, pause=self._pause)
        except StoreBusy as error:
            raise given_up(error, TRIES) from error

    def _tries(self) -> Tries:
        what = f"the datastore {self.url}"
        return Tries(BACKOFF, most=TRIES, waiting_for=what, share=self._share)


class _Batch:
    """Objects on their way to a store that takes a while for each."""

    def __init__(self, store: RetryingStore, durable: bool) -> None:
        self._store = store
        self._durable = durable
        self._pool: ThreadPoolExecutor | None = None
        self._sizes: dict[Future[None], int] = {}

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        """Begin to put an object; raises what those before it have failed with."""
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
        """Wait until all are there; raises what the first one has failed with."""
        try:
            while self._sizes:
                self._settle()
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Begin no others, and wait for those that have begun."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
