from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aflow.errors import CorruptBlob, InvalidName, ObjectNotFound
from aflow.storage import codecs
from aflow.storage.blobs import MAP_UNVERIFIED_FROM, BlobStore, blob_name, digest_of
from aflow.storage.local import LocalStore
from aflow.storage.memory import MemoryStore

TEXT = b"the same words again and again. " * 10_000
NOISE = os.urandom(100_000)


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def stored_size(store: MemoryStore, key: str) -> int:
    size = store.size(blob_name(key))
    assert size is not None
    return size


@given(st.lists(st.binary(max_size=100)))
def test_a_blob_is_its_parts_and_its_key_their_digest(parts: list[bytes]) -> None:
    blobs = BlobStore(MemoryStore())
    key = blobs.put(*parts)

    assert b"".join(parts) == blobs.get(key)
    assert digest_of([b"".join(parts)]) == key


def test_the_key_is_the_blake3_of_the_bytes() -> None:
    # A test vector of the algorithm's authors: no bytes at all.
    assert "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262" == digest_of([])


def test_text_is_compressed_and_floats_are_not(store: MemoryStore) -> None:
    blobs = BlobStore(store)
    floats = np.random.default_rng(0).normal(size=100_000).tobytes()

    assert stored_size(store, blobs.put(TEXT)) < len(TEXT) / 20
    assert stored_size(store, blobs.put(floats)) == len(floats) + 16


def test_compressed_parts_come_back(store: MemoryStore) -> None:
    blobs = BlobStore(store)
    key = blobs.put(TEXT, b"", memoryview(TEXT)[7:], TEXT * 30)

    assert TEXT + TEXT[7:] + TEXT * 30 == blobs.get(key)


def test_a_raw_blob_can_be_read_in_ranges(store: MemoryStore) -> None:
    blobs = BlobStore(store)
    key = blobs.put_raw(TEXT)

    assert TEXT[5:9] == blobs.get_range(key, 5, 4)


def test_a_blob_that_was_compressed_is_stored_anew_where_ranges_are_needed(
    store: MemoryStore,
) -> None:
    blobs = BlobStore(store)
    blobs.put(TEXT)
    key = blobs.put_raw(TEXT)

    assert TEXT[5:9] == blobs.get_range(key, 5, 4)
    assert TEXT == blobs.get(key)


class CountingStore(MemoryStore):
    writes = 0

    def put(self, *arguments: object, **options: object) -> None:
        self.writes += 1
        super().put(*arguments, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "data", [b"", b"small", TEXT, NOISE], ids=["empty", "small", "text", "noise"]
)
def test_what_is_there_already_is_not_written_again(data: bytes) -> None:
    store = CountingStore()
    for _ in range(3):
        BlobStore(store).put(data)

    assert 1 == store.writes


@pytest.mark.parametrize("data", [b"small", TEXT, NOISE], ids=["small", "text", "noise"])
def test_a_blob_that_was_cut_off_is_noticed_and_healed_by_the_next_put(
    store: MemoryStore, data: bytes
) -> None:
    blobs = BlobStore(store)
    key = blobs.put(data)
    for length in (0, 3, 15, stored_size(store, key) - 1):
        store.put(blob_name(key), [bytes(store.get(blob_name(key)))[:length]])

        with pytest.raises(CorruptBlob, match=key):
            blobs.get(key)
        blobs.put(data)
        assert data == blobs.get(key)


def test_another_blob_in_its_place_is_noticed(store: MemoryStore) -> None:
    blobs = BlobStore(store)
    key, other = blobs.put(b"12345678"), blobs.put(b"87654321")
    store.put(blob_name(key), [store.get(blob_name(other))])

    with pytest.raises(CorruptBlob, match="its digest is another"):
        blobs.get(key)


def test_the_sentence_says_where_and_what_to_do(store: MemoryStore) -> None:
    key = BlobStore(store).put(b"12345678")
    store.put(blob_name(key), [b"nothing that a footer could be in"])

    with pytest.raises(CorruptBlob, match=f"{key} in memory: is damaged.*delete.*{blob_name(key)}"):
        BlobStore(store).get(key)


def test_a_bomb_is_not_unpacked(store: MemoryStore) -> None:
    blobs = BlobStore(store)
    bomb = bytes(50 << 20)
    key = blobs.put(bomb)
    assert stored_size(store, key) < 10_000

    with pytest.raises(CorruptBlob, match="its size is another"):
        blobs.get(key, size=1000)


def test_a_frame_that_holds_more_than_it_should_is_not_unpacked() -> None:
    frame = b"".join(codecs.compress([memoryview(bytes(10 << 20))], 10 << 20))

    for size in (0, 1000, (10 << 20) - 1, (10 << 20) + 1):
        with pytest.raises(ValueError, match=f"not {size} bytes long"):
            codecs.decompress(frame, size)


def test_a_missing_blob_is_not_found(store: MemoryStore) -> None:
    blobs = BlobStore(store)

    assert not blobs.has("0" * 64)
    with pytest.raises(ObjectNotFound):
        blobs.get("0" * 64)


@pytest.mark.parametrize("key", ["", "abc", "../" + "0" * 61, "A" * 64, "0" * 65])
def test_only_digests_are_keys(store: MemoryStore, key: str) -> None:
    with pytest.raises(InvalidName):
        BlobStore(store).get(key)


FORKS = """
import os, sys
from aflow.storage.blobs import digest_of
data = bytes(20 << 20)
expected = digest_of([data], len(data))
child = os.fork()
if child == 0:
    os._exit(0 if digest_of([data], len(data)) == expected else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_process_forked_after_a_large_digest_can_make_large_digests() -> None:
    done = subprocess.run([sys.executable, "-c", FORKS], timeout=60, check=False)

    assert 0 == done.returncode


# ------------------------------------------------------------------ mapped blobs

FLOATS = MAP_UNVERIFIED_FROM // 8


@pytest.fixture(scope="module")
def large() -> np.ndarray:
    return np.random.default_rng(0).random(FLOATS)


@pytest.fixture
def disk(tmp_path: Path) -> BlobStore:
    return BlobStore(LocalStore(tmp_path))


def test_a_large_blob_is_mapped_before_it_is_verified(disk: BlobStore, large: np.ndarray) -> None:
    key = disk.put(large.data, mappable=True)
    data, verified = disk.map(key, large.nbytes)

    assert verified is False
    assert np.array_equal(large, np.frombuffer(data))
    disk.verify(key, large.nbytes)


def test_large_buffers_stay_raw_so_that_they_can_be_mapped(disk: BlobStore) -> None:
    key = disk.put(bytes(MAP_UNVERIFIED_FROM), mappable=True)

    assert MAP_UNVERIFIED_FROM + 16 == disk.store.size(blob_name(key))


def test_small_blobs_are_verified_before_they_are_given(disk: BlobStore) -> None:
    data, verified = disk.map(disk.put(b"12345678"))

    assert (b"12345678", True) == (data, verified)


def test_a_damaged_large_blob_is_noticed_by_verify(
    disk: BlobStore, large: np.ndarray, tmp_path: Path
) -> None:
    key = disk.put(large.data, mappable=True)
    with open(tmp_path / blob_name(key), "r+b") as file:
        file.seek(12_345_678)
        file.write(b"!")
    disk.map(key, large.nbytes)

    with pytest.raises(CorruptBlob, match=key):
        disk.verify(key, large.nbytes)


def test_a_mapped_blob_knows_its_key_until_it_is_written_to(
    disk: BlobStore, large: np.ndarray
) -> None:
    if not os.path.exists("/proc/self/smaps"):
        pytest.skip("there is no /proc/self/smaps to tell which pages were written to")
    key = disk.put(large.data, mappable=True)
    data = memoryview(disk.map(key, large.nbytes)[0])
    array = np.frombuffer(data)
    assert float(large.sum()) == float(array.sum())

    assert key == disk.key_of_mapped(array.data.cast("B"))
    assert disk.key_of_mapped(array[1:].data.cast("B")) is None
    array[FLOATS // 2] = 0.5
    assert disk.key_of_mapped(array.data.cast("B")) is None


def test_memory_that_is_no_mapping_has_no_key(disk: BlobStore, large: np.ndarray) -> None:
    disk.map(disk.put(large.data, mappable=True), large.nbytes)

    assert disk.key_of_mapped(memoryview(bytearray(large.nbytes))) is None
