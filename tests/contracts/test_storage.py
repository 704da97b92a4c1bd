"""The contract of every object store; a new backend is one line in BACKENDS."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aflow._core.clock import SystemClock
from aflow.errors import CorruptBlob, InvalidName, ObjectNotFound
from aflow.storage.base import ObjectStore
from aflow.storage.blobs import BlobStore, blob_name
from aflow.storage.cache import CachedStore
from aflow.storage.local import MAP_FROM, LocalStore
from aflow.storage.memory import MemoryStore
from aflow.storage.retry import RetryingStore
from tests.support.s3 import S3Bucket

BACKENDS: dict[str, Callable[[Path], ObjectStore]] = {
    "memory": lambda path: MemoryStore(),
    "local": lambda path: LocalStore(path / "a store"),
}


@pytest.fixture(params=[*BACKENDS, "s3", "s3-cached"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param in BACKENDS:
        return BACKENDS[request.param](tmp_path)
    bucket: S3Bucket = request.getfixturevalue("s3_bucket")
    store = RetryingStore(bucket.store())  # the stand-in answers 500 where writers meet
    return store if request.param == "s3" else CachedStore(store, tmp_path / "copies", 1 << 30)


def test_what_was_put_is_what_is_got(store: ObjectStore) -> None:
    store.put("a/b", [b"one ", bytearray(b"two "), memoryview(b"three")])

    assert b"one two three" == store.get("a/b")
    assert 13 == store.size("a/b")


def test_an_object_may_be_empty(store: ObjectStore) -> None:
    store.put("a", [])

    assert b"" == store.get("a")
    assert 0 == store.size("a")


def test_putting_a_name_again_replaces_the_object(store: ObjectStore) -> None:
    store.put("a", [b"a longer text"])
    store.put("a", [b"new"], durable=True)

    assert b"new" == store.get("a")


def test_what_is_got_later_does_not_change_what_was_got_before(store: ObjectStore) -> None:
    store.put("a", [bytes(MAP_FROM)])
    before = memoryview(store.get("a"))
    store.put("a", [b"1" * MAP_FROM])

    assert bytes(10) == before[:10]


def test_a_part_that_changes_after_the_put_does_not_change_the_object(store: ObjectStore) -> None:
    part = bytearray(b"before")
    store.put("a", [part])
    part[:] = b"after!"

    assert b"before" == store.get("a")


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [
        (0, None, b"0123456789"),
        (3, None, b"3456789"),
        (3, 4, b"3456"),
        (8, 10, b"89"),
        (10, 5, b""),
        (50, 5, b""),
        (4, 0, b""),
    ],
)
def test_a_range_ends_where_the_object_ends(
    store: ObjectStore, start: int, length: int | None, expected: bytes
) -> None:
    store.put("digits", [b"0123456789"])

    assert expected == store.get("digits", start, length)


def test_large_ranges_begin_anywhere(store: ObjectStore) -> None:
    data = os.urandom(1 << 20) * 40
    store.put("large", [data])

    assert data == store.get("large")
    assert data[5_000_001 : 5_000_001 + MAP_FROM] == store.get("large", 5_000_001, MAP_FROM)


def test_what_is_not_there_is_not_found(store: ObjectStore) -> None:
    store.put("there/it/is", [b""])

    for name in ("not", "there", "there/it", "there/it/is/not", "there/it/isnt"):
        assert store.size(name) is None
        with pytest.raises(ObjectNotFound, match=name):
            store.get(name)


@pytest.mark.parametrize("durable", [False, True])
def test_what_a_batch_has_put_is_there_when_it_has_ended(store: ObjectStore, durable: bool) -> None:
    objects = {f"a/{number}": b"%d" % number * 50_000 for number in range(40)}
    with store.batch(durable=durable) as put:
        for name, data in objects.items():
            part = bytearray(data)
            put(name, [part[:10], memoryview(part)[10:]])
            part[20:] = bytes(len(part) - 20)  # who has put it may go on with it
        put("a/0", [b"again"])

    assert sorted(objects) == list(store.list("a/"))
    assert b"again" == store.get("a/0")
    assert all(store.get(name) == data for name, data in [*objects.items()][1:])


def test_a_batch_that_an_error_ends_leaves_whole_objects_or_none(store: ObjectStore) -> None:
    data = os.urandom(100_000)

    def put_and_fail(*names: str) -> None:
        with store.batch(durable=True) as put:
            for name in names:
                put(name, [data])
            raise KeyError

    with pytest.raises(KeyError):
        put_and_fail("a", "b")
    assert {*store.list("")} <= {"a", "b"}
    assert all(data == store.get(name) for name in store.list(""))

    with pytest.raises(InvalidName):
        put_and_fail("../c")


def test_blobs_that_are_put_together_are_written_once(store: ObjectStore) -> None:
    blobs = BlobStore(store, durable=True)
    data = os.urandom(100_000)
    with blobs.batch() as together:
        keys = {together.put(data), together.put(data), together.put_raw(data)}

    assert [blob_name(key) for key in keys] == list(store.list("blobs/"))
    assert data == blobs.get(keys.pop())


def test_put_if_absent_writes_once(store: ObjectStore) -> None:
    assert store.put_if_absent("a/b", [b"first"]) is True
    assert store.put_if_absent("a/b", [b"second"]) is False
    assert b"first" == store.get("a/b")


def test_put_if_absent_does_not_replace_what_was_put(store: ObjectStore) -> None:
    store.put("a", [b""])

    assert store.put_if_absent("a", [b"second"], durable=True) is False
    assert b"" == store.get("a")


def test_of_many_threads_exactly_one_wins(store: ObjectStore) -> None:
    def write(number: int) -> bool:
        return store.put_if_absent("commit", [b"%d" % number])

    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(write, range(100)))

    assert 1 == sum(won)
    assert b"%d" % won.index(True) == store.get("commit")


def test_list_gives_the_names_under_a_prefix_sorted(store: ObjectStore) -> None:
    names = ["a/b/1", "a/b/10", "a/b/2", "a/b-c/1", "a/b.c", "a/bc/1", "b/1", "_parameters/0"]
    for name in names:
        store.put(name, [b""])

    assert sorted(names) == list(store.list(""))
    assert ["a/b/1", "a/b/10", "a/b/2"] == list(store.list("a/b/"))
    assert ["a/b-c/1", "a/b.c", "a/b/1", "a/b/10", "a/b/2", "a/bc/1"] == list(store.list("a/b"))
    assert ["a/b/1", "a/b/10"] == list(store.list("a/b/1"))
    assert [] == list(store.list("c"))
    assert [] == list(store.list("a/b/1/"))


def test_a_store_without_objects_lists_none(store: ObjectStore) -> None:
    assert [] == list(store.list(""))
    assert [] == list(store.list("a/"))


def test_what_is_deleted_is_gone_and_deleting_again_is_fine(store: ObjectStore) -> None:
    store.put("a/b", [b"1"])
    store.put("a/c", [b"1"])
    for name in ("a/b", "a/b", "never", "never/there", "a"):
        store.delete(name)

    assert ["a/c"] == list(store.list(""))


ESCAPES = [
    "",
    "/a",
    "a/",
    "a//b",
    "../a",
    "a/../b",
    "a/..",
    ".",
    ".tmp/x",
    "a\n",
    "a b",
    "é",
    "a\0",
]


@pytest.mark.parametrize("name", [*ESCAPES, "a" * 1001])
def test_names_that_could_escape_are_refused(store: ObjectStore, name: str) -> None:
    for attempt in (
        lambda: store.put(name, [b""]),
        lambda: store.put_if_absent(name, [b""]),
        lambda: store.get(name),
        lambda: store.size(name),
        lambda: store.delete(name),
    ):
        with pytest.raises(InvalidName):
            attempt()


def test_prefixes_that_could_escape_are_refused(store: ObjectStore) -> None:
    for prefix in ("../", "/", "a/../b", "."):
        with pytest.raises(InvalidName):
            store.list(prefix)


def test_what_nobody_has_touched_since_then_is_removed(store: ObjectStore) -> None:
    store.put("a/b", [b"12345"])
    now = SystemClock.now()
    assert store.remove_untouched("a/b", now - 3600) is None
    assert 5 == store.remove_untouched("a/b", now + 3600, dry_run=True)
    assert 5 == store.size("a/b")
    assert 5 == store.remove_untouched("a/b", now + 3600)
    assert store.size("a/b") is None
    assert store.remove_untouched("a/b", now + 3600) is None


def test_a_touch_keeps_an_object_or_says_that_it_is_gone(store: ObjectStore) -> None:
    store.put("a", [b"1"])
    before = SystemClock.now() + 2.5  # some stores know times of whole seconds alone
    assert store.touch("a")
    assert not store.touch("b")
    assert 1 == store.remove_untouched("a", before)
    assert not store.touch("a")


def test_of_touches_and_removals_at_the_same_time_none_loses_an_object(store: ObjectStore) -> None:
    def claim(number: int) -> bool:
        name = f"objects/{number % 50}"
        if not store.touch(name):
            store.put(name, [b"x"])
        return store.size(name) is not None

    # Calls over HTTP take long enough to meet each other more often than those to a disk.
    calls = 120 if store.url.startswith("s3:") else 400
    since = SystemClock.now()  # whatever is touched from here on has to stay
    for number in range(50):
        store.put(f"objects/{number}", [b"x"])
    with ThreadPoolExecutor(4) as pool:
        claimed = [pool.submit(claim, number) for number in range(calls)]
        for number in range(calls):
            assert store.remove_untouched(f"objects/{number % 50}", since) is None
        assert all(each.result() for each in claimed)


def test_the_url_names_the_place(store: ObjectStore) -> None:
    assert store.url.startswith(("memory:", "file:///", "s3://"))
    assert " " not in store.url


@given(st.binary(max_size=300), st.integers(0, 400), st.none() | st.integers(0, 400))
def test_every_range_is_a_slice(data: bytes, start: int, length: int | None) -> None:
    store = MemoryStore()
    store.put("a", [data])

    expected = data[start:] if length is None else data[start : start + length]
    assert expected == store.get("a", start, length)


# ------------------------------------------------------------------ blobs, over every store


def test_a_flipped_bit_is_noticed_and_the_key_is_named(store: ObjectStore) -> None:
    blobs = BlobStore(store)
    for data in (b"small", b"compressed " * 10_000, os.urandom(100_000)):
        key = blobs.put(data)
        stored = bytearray(store.get(blob_name(key)))
        stored[len(stored) // 3] ^= 4
        store.put(blob_name(key), [stored])

        with pytest.raises(CorruptBlob, match=key):
            blobs.get(key)


def test_two_writers_of_one_digest_both_succeed_and_leave_one_object(store: ObjectStore) -> None:
    data = os.urandom(300_000)

    def write(number: int) -> str:
        return BlobStore(store, durable=bool(number % 2)).put(data)

    with ThreadPoolExecutor(4) as threads:
        keys = set(threads.map(write, range(20)))

    assert 1 == len(keys)
    assert [blob_name(key) for key in keys] == list(store.list(""))
    assert data == BlobStore(store).get(keys.pop())
