"""GC roots: what holders of code and data declare in the store, so that `gc` keeps it."""

from __future__ import annotations

import pytest

from aflow.errors import CorruptBlob
from aflow.metadata.sqlite import SqliteMetadata
from aflow.runs.gc import RunsToDelete, collect
from aflow.storage import roots
from aflow.storage.blobs import BlobStore, blob_name
from aflow.storage.memory import MemoryStore

NOW = 2_000_000_000.0  # later than anything that was written


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def collected(store: MemoryStore, now: float = NOW, dry_run: bool = False) -> int:
    """Return the number of objects that are, or would be, removed."""
    metadata = SqliteMetadata(":memory:")
    try:
        return collect(metadata, store, RunsToDelete(), now, grace=0.0, dry_run=dry_run).objects
    finally:
        metadata.close()


def test_what_a_root_names_is_kept_until_it_is_withdrawn(store: MemoryStore) -> None:
    blobs = BlobStore(store)
    ours, theirs = blobs.put(b"ours"), blobs.put(b"theirs")
    name = roots.root_name("deployments", "arn:aws:states:eu:1:stateMachine:caf\u00e9/1")
    roots.declare(store, name, roots.GcRoot((ours,), "a machine"))

    assert 1 == collected(store)
    assert (True, False) == (blobs.has(ours), blobs.has(theirs))
    roots.withdraw(store, name)
    roots.withdraw(store, name)
    assert 1 == collected(store)


def test_a_root_keeps_nothing_after_its_time_and_goes_itself(store: MemoryStore) -> None:
    key = BlobStore(store).put(b"code")
    name = roots.root_name("deployments", "machine")
    roots.declare(store, name, roots.GcRoot((key,), "a machine", until=NOW + 10))

    assert 0 == collected(store, NOW + 9)
    assert 1 == collected(store, NOW + 10, dry_run=True)
    assert [name] == [*store.list(roots.FOLDER)]
    assert 1 == collected(store, NOW + 10)
    assert [] == [*store.list("")]


def test_a_root_that_is_renewed_while_gc_reads_the_runs_is_not_withdrawn(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = BlobStore(store).put(b"environment")
    name = roots.root_name("environments", "of a team")
    roots.declare(store, name, roots.GcRoot((key,), "an environment", until=NOW - 1))

    def flows(metadata: SqliteMetadata) -> list[tuple[str, float]]:
        roots.declare(store, name, roots.GcRoot((key,), "an environment", until=NOW + 10))
        return []

    monkeypatch.setattr(SqliteMetadata, "flows", flows)
    collected(store)

    renewed = roots.declared(store, name)
    assert renewed is not None
    assert NOW + 10 == renewed.until


def test_holders_of_one_name_and_of_other_places_are_apart(store: MemoryStore) -> None:
    names = {
        roots.root_name("schedules", "sqlite:///a.db", "weekly"),
        roots.root_name("schedules", "sqlite:///b.db", "weekly"),
        roots.root_name("schedules", "sqlite:///a.db", "daily"),
        roots.root_name("deployments", "sqlite:///a.db", "weekly"),
    }
    assert 4 == len(names)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b'{"blobs": ["../x"]}', b'{"blobs": 1}', b'{"blobs": [], "until": "x"}'],
)
def test_gc_stops_at_a_root_that_cannot_be_read(store: MemoryStore, data: bytes) -> None:
    key = BlobStore(store).put(b"code")
    store.put("roots/deployments/odd", [data])

    with pytest.raises(CorruptBlob, match="The root roots/deployments/odd in "):
        collected(store)
    assert store.size(blob_name(key)) is not None
