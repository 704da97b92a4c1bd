"""Runs as a coordinator would have recorded them, written through the port."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aflow.flow.graph import Graph
from aflow.metadata.base import (
    AttemptRecord,
    Batch,
    MetadataRecord,
    MetadataStore,
    RunRecord,
    RunUpdate,
    TaskRecord,
)
from aflow.metadata.sqlite import SqliteMetadata
from aflow.scheduler.messages import Inputs, NoInputs, encode_inputs
from aflow.scheduler.states import AttemptState, RunState
from aflow.storage.artifacts import ArtifactWriter, ForeachFrame, Manifest
from aflow.storage.base import ObjectStore
from aflow.storage.blobs import BlobStore
from aflow.storage.memory import MemoryStore
from tests.machine.graphs import LINE

_NONE = NoInputs()
BEGIN = 1_700_000_000.0
SYSTEM_TAGS = ("aflow_version:0.2.0", "python_version:3.11.7", "runtime:dev", "user:tester")


class Records:
    """A metadata store and an object store, with methods to write records."""

    def __init__(
        self, metadata: MetadataStore | None = None, store: ObjectStore | None = None
    ) -> None:
        self.metadata = metadata or SqliteMetadata(":memory:")
        self.store = store or MemoryStore()

    def run(
        self,
        run: str = "1",
        *,
        flow: str = "Flow",
        graph: Graph = LINE,
        at: float = BEGIN,
        tags: Sequence[str] = (),
        user: str = "tester",
        origin: str | None = None,
        **parameters: Any,
    ) -> RecordedRun:
        """Create a run."""
        manifest = Manifest(step="_parameters")
        writer = ArtifactWriter(BlobStore(self.store))
        for name, value in parameters.items():
            manifest.artifacts[name] = writer.save(name, value)
        record = RunRecord(
            key=0,
            flow=flow,
            run=run,
            state=RunState.RUNNING,
            user=user,
            created_at=at,
            finished_at=None,
            version=0,
            tags=tuple(tags),
            system_tags=(*SYSTEM_TAGS[:3], f"user:{user}"),
            graph=graph.as_dict(),
            settings={"storage": self.store.url, "script": "/home/tester/flow.py"},
            origin_run=origin,
        )
        return RecordedRun(self, self.metadata.create_run(record, manifest.encode()))


class RecordedRun:
    """A run whose tasks a test writes, one after the other, in one or several commits."""

    def __init__(self, records: Records, record: RunRecord) -> None:
        self.key = record.key
        self.pathspec = f"{record.flow}/{record.run}"
        self._records = records
        self._version = record.version
        self._begin = record.created_at
        self._batch = Batch()

    def task(
        self,
        task: int,
        step: str,
        artifacts: dict[str, Any] | None = None,
        *,
        inherited: dict[int, list[str]] | None = None,
        inputs: Inputs = _NONE,
        split: int | None = None,
        index: int | None = None,
        transition: tuple[tuple[str, ...], str | None, int | None] = ((), None, None),
        stack: Sequence[ForeachFrame] = (),
        error: dict[str, Any] | None = None,
        origin: str = "",
        **attempt: Any,
    ) -> RecordedRun:
        """Add a task, which has succeeded unless `attempt` says otherwise."""
        at = self._begin + task
        self._batch.tasks.append(
            TaskRecord(task, step, at, split, index, encode_inputs(inputs), origin)
        )
        writer = ArtifactWriter(BlobStore(self._records.store))
        manifest = Manifest(
            step,
            {name: writer.save(name, value) for name, value in (artifacts or {}).items()},
            inherited or {},
            transition,
            tuple(stack),
            None,
            error,
        )
        return self.attempt(task, 0, **{"manifest": manifest.encode(), **attempt})

    def attempt(self, task: int, attempt: int, **more: Any) -> RecordedRun:
        """Add another attempt of a task."""
        at = self._begin + task
        record = AttemptRecord(
            task, attempt, AttemptState.SUCCEEDED, at, at + 0.5, host="here", pid=7
        )
        self._batch.attempts.append(record._replace(**more))
        return self

    def fact(self, task: int, attempt: int, name: str, value: str) -> RecordedRun:
        """Add a metadata record."""
        at = self._begin + task
        self._batch.metadata.append(MetadataRecord(task, attempt, name, value, name, at))
        return self

    def end(self, state: RunState, reason: str = "") -> RecordedRun:
        """Commit the end of the run, with its reason."""
        self._batch.run = RunUpdate(state, self._begin + 1000, reason)
        return self.commit()

    def commit(self, state: RunState | None = None) -> RecordedRun:
        """Commit the records; `state` is the final state of the run, if it has ended."""
        if state is not None:
            self._batch.run = RunUpdate(state, self._begin + 1000)
        metadata = self._records.metadata
        self._version = metadata.commit(self.key, self._version, self._batch)
        self._batch = Batch()
        return self
