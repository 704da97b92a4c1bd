"""The contract of every metadata store for deleting runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from aflow.errors import MetadataError
from aflow.metadata.base import Batch, MetadataRecord, MetadataStore
from tests.contracts.metadata_stores import NAMES, a_run, open_store, succeeded, tasks_of


@pytest.fixture(params=NAMES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MetadataStore]:
    opened = open_store(request, tmp_path)
    yield opened
    opened.close()


def whole(fact: str = "x") -> Batch:
    """Return a commit with records of every kind."""
    return Batch(
        b"events",
        tasks_of("a", [1]),
        [succeeded(1)],
        [MetadataRecord(1, 0, "field", fact, "type", 1.0)],
    )


def test_a_run_goes_with_all_its_records_and_others_stay(store: MetadataStore) -> None:
    gone, stays = (store.create_run(a_run(run=name, tags=(name,)), b"p") for name in "12")
    store.commit(gone.key, 0, whole())
    store.commit(stays.key, 0, whole())
    store.delete_run(gone.key)
    assert None is store.run("Flow", "1")
    assert ["2"] == [run.run for run in store.runs("Flow")]
    assert [[], []] == [[*store.tasks(gone.key)], [*store.journal(gone.key)]]
    assert ([], []) == (store.metadata(gone.key, 1), store.steps(gone.key))
    assert [] == [*store.all_manifests(gone.key)]
    assert [b"events"] == [*store.journal(stays.key)]
    assert ["a"] == [step for step, _, _ in store.steps(stays.key)]
    assert ["x"] == [fact.value for fact in store.metadata(stays.key, 1)]


def test_the_flow_goes_with_its_last_run(store: MetadataStore) -> None:
    runs = [store.create_run(a_run(run=name), b"p") for name in "12"]
    store.delete_run(runs[0].key)
    assert ["Flow"] == [flow for flow, _ in store.flows()]
    store.delete_run(runs[1].key)
    store.delete_run(runs[1].key)  # it is gone already: nothing happens
    assert [] == store.flows()


def test_the_id_of_a_deleted_run_is_free_and_its_key_is_not(store: MetadataStore) -> None:
    first = store.create_run(a_run(), b"p")
    store.commit(first.key, 0, whole("of the first"))
    store.delete_run(first.key)
    second = store.create_run(a_run(), b"p")
    assert second.key != first.key
    with pytest.raises(MetadataError):
        store.commit(first.key, 0, Batch(b"late"))
    store.delete_run(first.key)  # somebody who held the key all the time
    store.commit(second.key, 0, whole("of the second"))
    assert ["a"] == [step for step, _, _ in store.steps(second.key)]
    assert ["of the second"] == [fact.value for fact in store.metadata(second.key, 1)]
