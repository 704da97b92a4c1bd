"""The cache of blobs on disk: never wrong, never too large."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from aflow.errors import ObjectNotFound
from aflow.storage.cache import CachedStore
from aflow.storage.memory import MemoryStore


@pytest.fixture
def origin() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def store(origin: MemoryStore, tmp_path: Path) -> CachedStore:
    return CachedStore(origin, tmp_path, 10_000)


def copies(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_blob_that_was_read_or_written_is_read_from_its_copy(
    store: CachedStore, origin: MemoryStore
) -> None:
    origin.put("blobs/aa/read", [b"0123456789"])
    store.put("blobs/aa/written", [b"01234", b"56789"])
    store.get("blobs/aa/read")
    for name in ("blobs/aa/read", "blobs/aa/written"):
        origin.delete(name)

        assert b"0123456789" == store.get(name)
        assert b"345" == store.get(name, 3, 3)


def test_what_is_no_blob_is_never_a_copy(store: CachedStore, origin: MemoryStore) -> None:
    store.put("logs/x", [b"1"])
    store.get("logs/x")
    origin.put("logs/x", [b"2"])

    assert b"2" == store.get("logs/x")


def test_a_copy_that_is_damaged_is_fetched_again(
    store: CachedStore, origin: MemoryStore, tmp_path: Path
) -> None:
    store.put("blobs/aa/x", [b"0123456789"])
    (copy,) = copies(tmp_path)
    for damaged in (b"", b"x" * 26, copy.read_bytes()[:-1], b"1" + copy.read_bytes()[1:]):
        copy.write_bytes(damaged)
        assert b"0123456789" == store.get("blobs/aa/x")


def test_copies_that_were_not_read_for_the_longest_time_go_first(
    store: CachedStore, tmp_path: Path
) -> None:
    for number in range(30):
        store.put(f"blobs/aa/{number}", [bytes(1000)])
        os.utime(tmp_path / f"blobs/aa/{number}", (number, number))

    left = sorted(int(path.name) for path in copies(tmp_path))

    assert sum(path.stat().st_size for path in copies(tmp_path)) <= 11_000
    assert 29 == left[-1]
    assert 0 not in left


def test_what_is_deleted_has_no_copy(store: CachedStore, tmp_path: Path) -> None:
    store.put("blobs/aa/x", [b"1"])
    store.delete("blobs/aa/x")

    assert [] == copies(tmp_path)
    with pytest.raises(ObjectNotFound):
        store.get("blobs/aa/x")


def test_a_folder_that_cannot_be_written_costs_time_alone(
    origin: MemoryStore, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    store = CachedStore(origin, tmp_path / "file", 1000)
    store.put("blobs/aa/x", [b"1"])

    assert b"1" == store.get("blobs/aa/x")


def test_a_copy_that_cannot_be_completed_leaves_no_file(
    store: CachedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*paths: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    store.put("blobs/aa/x", [b"0123456789"])

    assert [] == copies(tmp_path)


def test_copies_that_may_not_be_evicted_make_no_call_fail(
    store: CachedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "unlink", refused)
    for number in range(4):
        store.put(f"blobs/aa/{number}", [bytes(4_000)])

    assert bytes(4_000) == store.get("blobs/aa/3")
