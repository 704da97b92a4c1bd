"""A store with intermittent failures: calls are retried, and no effect happens twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from aflow.errors import ObjectNotFound, StoreBusy, StoreUnavailable
from aflow.storage.memory import MemoryStore
from aflow.storage.retry import BACKOFF, TRIES, RetryingStore


class FailingStore(MemoryStore):
    """Fails the next calls, before or after they have had their effect."""

    def __init__(self) -> None:
        super().__init__()
        self.before = 0
        self.after = 0

    def _done(self, act: Callable[[], Any]) -> Any:
        if self.before:
            self.before -= 1
            raise StoreBusy("It is busy.")
        answer = act()
        if self.after:
            self.after -= 1
            raise StoreBusy("The answer was lost.")
        return answer

    def put(self, *args: Any, **kwargs: Any) -> None:
        self._done(lambda: super(FailingStore, self).put(*args, **kwargs))

    def put_if_absent(self, *args: Any, **kwargs: Any) -> bool:
        wrote: bool = self._done(lambda: super(FailingStore, self).put_if_absent(*args, **kwargs))
        return wrote

    def get(self, *args: Any, **kwargs: Any) -> Any:
        return self._done(lambda: super(FailingStore, self).get(*args, **kwargs))

    def list(self, prefix: str) -> Iterator[str]:
        for name in super().list(prefix):
            yield name
            self._done(lambda: None)


@pytest.fixture
def inner() -> FailingStore:
    return FailingStore()


@pytest.fixture
def waits() -> list[float]:
    """The delays between tries, in seconds."""
    return []


@pytest.fixture
def store(inner: FailingStore, waits: list[float]) -> RetryingStore:
    return RetryingStore(inner, waits.append, lambda: 0.5)


def test_what_fails_is_tried_again_with_longer_and_longer_waits(
    store: RetryingStore, inner: FailingStore, waits: list[float]
) -> None:
    store.put("a", [b"1"])
    inner.before = TRIES - 1

    assert b"1" == store.get("a")
    assert [BACKOFF.delay(each, 0.5) for each in range(1, TRIES)] == waits


def test_a_store_that_stays_busy_is_given_up_in_a_sentence(
    store: RetryingStore, inner: FailingStore
) -> None:
    inner.before = TRIES
    with pytest.raises(StoreUnavailable, match=f"tried {TRIES} times"):
        store.put("a", [b"1"])


def test_what_another_try_cannot_mend_is_not_tried_again(
    store: RetryingStore, waits: list[float]
) -> None:
    with pytest.raises(ObjectNotFound):
        store.get("nothing")
    assert [] == waits


def test_an_object_whose_answer_was_lost_is_ours(store: RetryingStore, inner: FailingStore) -> None:
    inner.after = 1
    assert store.put_if_absent("a", [b"mi", b"ne"])
    assert b"mine" == inner.get("a")


def test_an_object_that_somebody_else_has_written_is_not_ours(
    store: RetryingStore, inner: FailingStore
) -> None:
    inner.put("a", [b"theirs"])
    inner.before = 1
    assert not store.put_if_absent("a", [b"mine"])
    assert not store.put_if_absent("a", [b"theirs"])


def test_a_list_that_breaks_off_goes_on_where_it_was(
    store: RetryingStore, inner: FailingStore
) -> None:
    for name in "abcd":
        inner.put(name, [])
    inner.before = 3
    assert [*"abcd"] == [*store.list("")]


def put_many(store: RetryingStore) -> None:
    with store.batch() as put:
        for number in range(20):
            put(str(number), [b"%d" % number])


def test_each_object_of_a_batch_has_its_own_tries(inner: FailingStore) -> None:
    store = RetryingStore(inner, lambda seconds: None)
    inner.before = 3
    put_many(store)

    assert 20 == len([*inner.list("")])


def test_a_batch_ends_with_what_one_of_its_objects_has_failed_with(inner: FailingStore) -> None:
    store = RetryingStore(inner, lambda seconds: None)
    inner.before = 1000
    with pytest.raises(StoreUnavailable, match="It was tried"):
        put_many(store)
