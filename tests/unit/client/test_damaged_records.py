"""Damaged records: each is displayed as far as possible, and hides no other record."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from aflow._core.clock import LATEST
from aflow.cli.tables import local
from aflow.client.base import local_time
from aflow.metadata.base import AttemptRecord, Batch, MetadataRecord, RunRecord, TaskRecord
from aflow.metadata.sqlite import SqliteMetadata
from aflow.scheduler.states import AttemptState, RunState


def a_run(name: str, at: float) -> RunRecord:
    return RunRecord(0, "Flow", name, RunState.SUCCEEDED, "ann", at, at, 0, (), (), {"a": 1}, {})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Two runs; the older one has a task."""
    path = tmp_path / "metadata.db"
    with closing(SqliteMetadata(path, "process")) as store:
        run = store.create_run(a_run("1", 100.0), b"")
        batch = Batch(
            tasks=[TaskRecord(1, "start", 100.0)],
            attempts=[AttemptRecord(1, 0, AttemptState.SUCCEEDED, 100.0, 101.0)],
            metadata=[MetadataRecord(1, 0, "field", "value", "type", 100.0)],
        )
        store.commit(run.key, run.version, batch)
        store.create_run(a_run("2", 200.0), b"")
    return path


@pytest.mark.parametrize(
    "damage",
    [
        "created_at = 1e300", "created_at = -1e300", "finished_at = 1e300", "finished_at = 'soon'",
        "heartbeat_at = 'soon'", "state = 'odd'", "graph = '{'", "graph = 'null'",
        "settings = '[]'", "settings = x'ff'", "reason = x'ff'",
    ],
)  # fmt: skip
def test_a_damaged_run_is_shown_and_hides_no_other(file: Path, damage: str) -> None:
    with closing(sqlite3.connect(file)) as database, database:
        database.execute(f"UPDATE runs SET {damage} WHERE run = '1'")

    with closing(SqliteMetadata(file, read_only=True)) as store:
        runs = {run.run: run for run in store.runs("Flow")}
        assert {"1", "2"} == {*runs}
        whole = store.run("Flow", "1")
        assert whole is not None
        for run in (*runs.values(), whole):
            assert local(run.created_at)
            assert local_time(run.finished_at)
        if damage.split()[0] in ("state", "graph", "settings"):
            assert "is damaged" in whole.reason
        [view] = [each for each in store.tasks(runs["1"].key) if each.task.task]
        assert "start" == view.task.step


@pytest.mark.parametrize(
    "damage",
    [
        "tasks SET created_at = 1e300", "attempts SET started_at = 1e300",
        "attempts SET finished_at = -1e300", "attempts SET state = 'odd'",
        "metadata SET created_at = 9e99",
    ],
)  # fmt: skip
def test_damaged_tasks_are_shown(file: Path, damage: str) -> None:
    with closing(sqlite3.connect(file)) as database, database:
        database.execute(f"UPDATE {damage}")

    with closing(SqliteMetadata(file, read_only=True)) as store:
        run = store.run("Flow", "1")
        assert run is not None
        [view] = [each for each in store.tasks(run.key) if each.task.task]
        assert view.attempt is not None
        [record] = store.metadata(run.key, 1)
        times = (view.task.created_at, view.attempt.started_at, view.attempt.finished_at)
        for at in (*times, record.created_at):
            assert at is not None
            assert 0 <= at <= LATEST
            local_time(at)
