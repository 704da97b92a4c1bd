"""Copies in Metaflow's format during garbage collection."""

from __future__ import annotations

from aflow.metadata.metaflow import copies
from aflow.storage.memory import MemoryStore


def test_copies_of_runs_that_are_there_stay_for_a_day_and_values_longer_than_what_names_them() -> (
    None
):
    store = MemoryStore()
    for name in (
        "metaflow/F/data/ab/abc", "metaflow/F/1/start/1/0.DONE.lock",
        "metaflow/F/2/start/1/0.data.json", "metaflow/mf.cards/F/runs/1/steps/s/tasks/1/cards/c",
        "metaflow/mf.cards/F/runs/2/steps/s/tasks/1/cards/c", "blobs/ab/cd",
    ):  # fmt: skip
        store.put(name, [b"x"])

    kept = list(copies.kept_for(store, {("F", "1")}, 60.0))

    assert "metaflow/F/data/ab/abc" == kept[-1][0]
    assert {
        "metaflow/F/data/ab/abc": 90_000.0,
        "metaflow/F/1/start/1/0.DONE.lock": 86_400.0,
        "metaflow/F/2/start/1/0.data.json": 60.0,
        "metaflow/mf.cards/F/runs/1/steps/s/tasks/1/cards/c": 86_400.0,
        "metaflow/mf.cards/F/runs/2/steps/s/tasks/1/cards/c": 60.0,
    } == dict(kept)
