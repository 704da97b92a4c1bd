"""The metadata stores that the contract tests run on, and records for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from aflow.metadata.base import AttemptRecord, MetadataStore, RunRecord, TaskRecord
from aflow.metadata.object_store import StoreMetadata
from aflow.metadata.sqlite import SqliteMetadata
from aflow.scheduler.states import AttemptState, RunState
from aflow.storage.local import LocalStore
from tests.support.postgres import new_schema
from tests.support.service import ServedMetadata

BACKENDS: dict[str, Callable[[Path], MetadataStore]] = {
    "memory": lambda folder: SqliteMetadata(":memory:"),
    "sqlite": lambda folder: SqliteMetadata(folder / "a folder" / "metadata.db"),
    "service": lambda folder: ServedMetadata(f"sqlite:///{folder}/metadata.db"),
    "store": lambda folder: StoreMetadata(LocalStore(folder / "objects")),
    "sqlite-process": lambda folder: SqliteMetadata(folder / "metadata.db", durability="process"),
}


NAMES = [*BACKENDS, "postgres", "service-postgres"]


def open_store(request: pytest.FixtureRequest, folder: Path) -> MetadataStore:
    """Open an empty store of the kind that the fixture's parameter names."""
    if request.param in BACKENDS:
        return BACKENDS[request.param](folder)
    from aflow.metadata.postgres import PostgresMetadata

    url = new_schema(request.getfixturevalue("postgres_server"))
    return ServedMetadata(url) if request.param == "service-postgres" else PostgresMetadata(url)


def a_run(flow: str = "Flow", run: str = "1", **changes: Any) -> RunRecord:
    record = RunRecord(
        key=0,
        flow=flow,
        run=run,
        state=RunState.RUNNING,
        user="ann",
        created_at=100.0,
        finished_at=None,
        version=0,
        tags=(),
        system_tags=(),
        graph={"start": {"next": ["end"]}},
        settings={"max_workers": 5, "script": "flöw.py"},
    )
    return record._replace(**changes)


def succeeded(task: int, manifest: bytes | None = b"left", attempt: int = 0) -> AttemptRecord:
    return AttemptRecord(task, attempt, AttemptState.SUCCEEDED, 1.0, 2.0, manifest=manifest)


def tasks_of(step: str, numbers: Sequence[int], split: int | None = None) -> list[TaskRecord]:
    return [
        TaskRecord(number, step, 200.0 + number, split, None if split is None else place)
        for place, number in enumerate(numbers)
    ]
