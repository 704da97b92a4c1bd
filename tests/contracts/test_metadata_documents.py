"""The contract of metadata stores for small documents that belong to no run."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from aflow.errors import VersionConflict
from aflow.metadata.base import Document
from tests.contracts.metadata_stores import open_store


@pytest.fixture(params=["memory", "sqlite", "postgres"])  # not over a service, which others may use
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    opened = open_store(request, tmp_path)
    yield opened
    opened.close()


def test_documents_are_kept_by_kind_and_name(store: Any) -> None:
    assert 1 == store.put_document("token", "b", b"2")
    assert 1 == store.put_document("token", "a", b"1")
    assert 1 == store.put_document("schedule", "a", bytes(range(256)))

    assert [Document("a", 1, b"1"), Document("b", 1, b"2")] == store.documents("token")
    assert Document("a", 1, bytes(range(256))) == store.document("schedule", "a")
    assert None is store.document("schedule", "b")
    assert [] == store.documents("%")


def test_a_document_is_changed_by_who_knows_its_version(store: Any) -> None:
    store.put_document("schedule", "a", b"1")
    with pytest.raises(VersionConflict, match="There is a schedule a already"):
        store.put_document("schedule", "a", b"2")
    assert 2 == store.put_document("schedule", "a", b"2", 1)
    with pytest.raises(VersionConflict, match="changed or removed by someone else"):
        store.put_document("schedule", "a", b"3", 1)
    assert Document("a", 2, b"2") == store.document("schedule", "a")


def test_of_many_who_change_a_version_one_does(store: Any) -> None:
    store.put_document("schedule", "a", b"0")

    def change(number: int) -> bool:
        try:
            store.put_document("schedule", "a", b"%d" % number, 1)
        except VersionConflict:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert 1 == sum(threads.map(change, range(16)))


def test_a_document_is_removed_once(store: Any) -> None:
    store.put_document("token", "a", b"1")
    assert store.delete_document("token", "a")
    assert not store.delete_document("token", "a")
    assert 1 == store.put_document("token", "a", b"new")
