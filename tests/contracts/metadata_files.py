"""A metadata database with a run, and the checks after a test has damaged or disturbed it."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from aflow.metadata.base import AttemptRecord, Batch, MetadataStore, RunRecord, TaskRecord
from aflow.metadata.sqlite import SqliteMetadata
from aflow.scheduler.states import AttemptState, RunState

RUN = RunRecord(0, "Flow", "1", RunState.RUNNING, "ann", 1.0, None, 0, ("a",), (), {}, {})


def a_batch(number: int, size: int = 20) -> Batch:
    first = 1 + number * size
    numbers = range(first, first + size)
    return Batch(
        b"%d" % number,
        [TaskRecord(each, "wide", 1.0, 0, each) for each in numbers],
        [AttemptRecord(each, 0, AttemptState.SUCCEEDED, manifest=b"m" * 200) for each in numbers],
    )


def filled(path: Path, batches: int = 10) -> RunRecord:
    """Create a database with one run, and close it."""
    store = SqliteMetadata(path, durability="process")
    run = store.create_run(RUN, b"parameters")
    for number in range(batches):
        store.commit(run.key, number, a_batch(number))
    store.close()
    return run


def check_integrity(path: Path) -> None:
    """Check that the database and the commits in it are intact."""
    db = sqlite3.connect(path)
    try:
        assert [("ok",)] == db.execute("PRAGMA integrity_check").fetchall()
        for run_key, version in db.execute("SELECT key, version FROM runs").fetchall():
            written = db.execute(
                "SELECT count(*) FROM journal WHERE run_key = ?", (run_key,)
            ).fetchone()[0]
            assert version == written
            for table, parameters in (("tasks", 1), ("attempts", 1)):
                count = f"SELECT count(*) FROM {table} WHERE run_key = ?"
                assert parameters + 20 * version == db.execute(count, (run_key,)).fetchone()[0]
    finally:
        db.close()


def every_answer(store: MetadataStore, run_key: int) -> list[Any]:
    """Return the results of all read methods for the run."""
    return [
        store.flows(),
        store.runs("Flow", tags=["a"], states=[RunState.RUNNING]),
        store.run("Flow", "1"),
        store.steps(run_key),
        list(store.journal(run_key)),
        list(store.tasks(run_key)),
        list(store.tasks(run_key, step="wide")),
        list(store.tasks(run_key, split=0, steps=["wide"])),
        store.task(run_key, 1),
        store.manifests(run_key, [1, 2, 3]),
        store.split_manifests(run_key, 0, ["wide"]),
        store.attempts(run_key, 1),
        store.metadata(run_key, 1),
    ]
