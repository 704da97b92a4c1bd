from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aflow.errors import ArtifactNotPicklable, CorruptBlob, StorageError
from aflow.storage.base import Buffer
from aflow.storage.blobs import BlobStore, blob_name
from aflow.storage.items import (
    SEGMENT_SIZE,
    ItemReader,
    _record,
    _Segment,
    blobs_of_items,
    write_items,
)
from aflow.storage.memory import MemoryStore


@pytest.fixture
def blobs() -> BlobStore:
    return BlobStore(MemoryStore())


def written(items: Any, blobs: BlobStore, limit: int = 10**9) -> Any:
    """Return the items as read from a manifest."""
    value, _ = write_items(items, blobs, limit)
    return msgpack.unpackb(msgpack.packb(value), use_list=False)


ITEMS = st.lists(
    st.none()
    | st.integers()
    | st.text()
    | st.tuples(st.text(), st.floats(allow_nan=False))
    | st.binary(min_size=10_000, max_size=20_000)
)


@given(ITEMS)
def test_each_item_is_read_on_its_own(items: list[object]) -> None:
    blobs = BlobStore(MemoryStore())
    stored = written(items, blobs)

    assert len(items) == stored[0]
    for hold in (False, True):
        reader = ItemReader(blobs, hold)
        assert items == [reader.read(stored, index).value(blobs) for index in range(len(items))]


def test_few_small_items_ride_in_the_manifest(blobs: BlobStore) -> None:
    stored = written(["a", "b", "c"], blobs)

    assert [] == list(blobs.store.list(""))
    assert "b" == ItemReader(blobs).read(stored, 1).value(blobs)


def test_a_foreach_may_have_no_items(blobs: BlobStore) -> None:
    assert ([0], 0) == write_items([], blobs, 5)


def test_any_iterable_will_do(blobs: BlobStore) -> None:
    for items in ({"a": 1}, range(3), iter([1]), np.arange(3), (each for each in "abc"), "word"):
        value, count = write_items(items, blobs, 10)

        assert count == value[0]


def test_an_endless_iterable_stops_at_the_limit(blobs: BlobStore) -> None:
    assert (None, 101) == write_items(itertools.count(), blobs, 100)


def test_as_many_items_as_the_limit_are_fine(blobs: BlobStore) -> None:
    assert 100 == write_items(range(100), blobs, 100)[1]


class ReadCounting(MemoryStore):
    read = 0

    def get(self, name: str, start: int = 0, length: int | None = None) -> Buffer:
        data = super().get(name, start, length)
        self.read += len(data)
        return data


def test_a_task_reads_no_more_than_its_own_item_and_what_proves_it() -> None:
    store = ReadCounting()
    blobs = BlobStore(store)
    stored = written((f"item {number}" for number in range(100_000)), blobs)
    store.read = 0

    assert "item 77777" == ItemReader(blobs).read(stored, 77_777).value(blobs)
    assert store.read < 20_000


def test_many_items_are_held_a_segment_at_a_time(blobs: BlobStore) -> None:
    size, held = 200_000, 3 * SEGMENT_SIZE // 200_000

    def items() -> Iterator[bytes]:
        for number in range(held):
            yield number.to_bytes(4, "little") * (size // 4)

    stored = written(items(), blobs)

    assert 3 <= len(stored) - 1 <= 4
    for index in (0, 41, 42, held - 1):
        assert index.to_bytes(4, "little") == ItemReader(blobs).read(stored, index).value(blobs)[:4]


def test_a_large_item_is_an_artifact_of_its_own(blobs: BlobStore) -> None:
    arrays = [np.random.default_rng(number).random(500_000) for number in range(3)]
    stored = written([*arrays, bytes(2 << 20)], blobs)

    assert len(msgpack.packb(stored)) < 2000
    assert np.array_equal(arrays[2], ItemReader(blobs).read(stored, 2).value(blobs))
    assert ItemReader(blobs).read(stored, 2).value(blobs).flags.writeable
    assert bytes(2 << 20) == ItemReader(blobs).read(stored, 3).value(blobs)


def test_the_text_of_an_item_needs_no_unpickling(blobs: BlobStore) -> None:
    class Local:
        def __reduce__(self) -> Any:
            return (int, ("not a number",))

    stored = written(["first", ("svm", 0.1), Local(), "é" * 50, "\ud800", np.zeros(10**6)], blobs)

    assert ["first", "('svm', 0.1)", "<Local>", "é" * 30, "?", "<ndarray>"] == [
        ItemReader(blobs).read(stored, index).text for index in range(6)
    ]


def test_an_item_that_cannot_be_stored_is_named(blobs: BlobStore) -> None:
    with pytest.raises(ArtifactNotPicklable, match=r"Item 1 of the foreach .*: item\[0\] is of"):
        write_items([1, [threading.Lock()]], blobs, 10)


def test_what_iterating_raises_comes_through(blobs: BlobStore) -> None:
    def items() -> Iterator[int]:
        yield 1
        raise LookupError("the user's own")

    with pytest.raises(LookupError, match="the user's own"):
        write_items(items(), blobs, 10)


@pytest.mark.parametrize("index", [-1, 3, 100])
def test_there_are_no_other_items(blobs: BlobStore, index: int) -> None:
    stored = written("abc", blobs)

    with pytest.raises(StorageError, match=f"no item {index} in a foreach over 3 items"):
        ItemReader(blobs).read(stored, index).value(blobs)


LARGE = [f"item {number} {'x' * 80}" for number in range(3000)]  # more than one read


@pytest.mark.parametrize("hold", [False, True])
@settings(max_examples=50)
@given(data=st.data())
def test_whatever_is_changed_in_a_segment_no_item_is_another(
    hold: bool, data: st.DataObject
) -> None:
    store = MemoryStore()
    blobs = BlobStore(store)
    stored = written(LARGE, blobs)
    (name,) = store.list("")
    whole = bytearray(bytes(store.get(name)))
    place = data.draw(st.integers(0, stored[1][1] - 1))
    whole[place] ^= data.draw(st.integers(1, 255))
    store.put(name, [bytes(whole)])
    index = data.draw(st.integers(0, len(LARGE) - 1))

    try:
        found = ItemReader(blobs, hold).read(stored, index).value(blobs)
    except CorruptBlob:
        return
    assert LARGE[index] == found


@pytest.mark.parametrize("items", [LARGE, LARGE[:200]])
def test_the_items_of_another_foreach_in_the_place_of_ours_are_refused(
    items: list[str], blobs: BlobStore
) -> None:
    ours, theirs = written(items, blobs), written([each.upper() for each in items], blobs)
    assert ours[1][1:3] == theirs[1][1:3]
    blobs.store.put(blob_name(ours[1][0]), [bytes(blobs.store.get(blob_name(theirs[1][0])))])

    for hold in (False, True):
        with pytest.raises(CorruptBlob, match=f"lob {ours[1][0]}"):
            ItemReader(blobs, hold).read(ours, 77)


def test_items_that_were_stored_before_segments_had_a_root_are_verified_by_their_key(
    blobs: BlobStore,
) -> None:
    segment = _Segment()
    for index, item in enumerate(LARGE):
        segment.add(_record(item, index, blobs))
    data = segment.inline()
    stored: list[Any] = [len(LARGE), [str(blobs.put_raw(data)), len(data), len(LARGE)]]

    assert LARGE[1234] == ItemReader(blobs).read(stored, 1234).value(blobs)
    assert [stored[1][0]] == [*blobs_of_items(stored, blobs, set())]
    other = data[:100] + bytes([data[100] ^ 1]) + data[101:]
    key = blobs.put_raw(other)
    blobs.store.put(blob_name(stored[1][0]), [bytes(blobs.store.get(blob_name(key)))])
    with pytest.raises(CorruptBlob, match="digest"):
        ItemReader(blobs).read(stored, 1234)
    with pytest.raises(CorruptBlob, match="digest"):  # gc deletes no blob then
        list(blobs_of_items(stored, blobs, set()))


@pytest.mark.parametrize(
    "items", [None, [], ["3", b""], [3, b""], [3, 5], [3, ["key"]], [3, [5, 1, 9, b""]], {}]
)
def test_a_list_of_items_that_is_none_is_damage(blobs: BlobStore, items: Any) -> None:
    with pytest.raises(StorageError, match="damaged"):
        ItemReader(blobs).read(items, 1)
