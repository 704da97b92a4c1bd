"""The reading half of a metadata store in SQL: which statement answers what.

A backend says how a statement of its own `queries` is run; names of statements and of their values
are the same everywhere, and so are the columns that they give.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from aflow.metadata import rows
from aflow.metadata.base import (
    AttemptRecord,
    CachedTask,
    Document,
    MetadataRecord,
    RunRecord,
    StepProgress,
    TaskColumns,
    TaskView,
    WorkerRecord,
)
from aflow.scheduler.states import RunState, TaskState

PAGE = 500  # rows a fetch
_NO_TASK = 2**63 - 1  # above all numbers of tasks


class RecordReader(ABC):
    """Answers every reading call of the port with statements of the file `read`."""

    @abstractmethod
    def _all(self, name: str, light: bool = False, **values: Any) -> list[Any]:
        """The rows of a statement. `light` leaves manifests and logs out of its `{columns}`."""

    @abstractmethod
    def _stream(self, name: str, light: bool = False, **values: Any) -> Iterator[Any]:
        """The same, some at a time."""

    @abstractmethod
    def _damage_named(self) -> AbstractContextManager[None]:
        """Turns what is raised by reading a record that is none into one sentence."""

    def all_manifests(self, run_key: int) -> Iterator[bytes]:
        """The manifests of all attempts of a run; see the port."""
        after, more = -1, True
        while more:
            found = self._all("all_manifests", run_key=run_key, after=after, limit=PAGE)
            yield from (manifest for _, manifest in found)
            # A page may end between the attempts of a task, of which there are fewer than a page:
            # the next one begins with that task again.
            more = len(found) == PAGE
            after = found[-1][0] - 1 if more else after

    def journal(self, run_key: int) -> Iterator[bytes]:
        """The event batches of the run, oldest first."""
        return (events for _, events in self.journal_after(run_key, 0))

    def journal_after(self, run_key: int, version: int) -> Generator[tuple[int, bytes], None, None]:
        """Event batches above a version, with theirs; see the port."""
        for row in self._stream("journal", run_key=run_key, after=version):
            yield row[0], row[1]

    def abandoned(self, kind: str, limit: int = 100) -> list[tuple[str, str]]:
        """Runs that go on without an owner; see the port."""
        return [(flow, run) for flow, run in self._all("abandoned", kind=kind, limit=limit)]

    def workers(self) -> list[WorkerRecord]:
        """The workers whose time is not over; see `WorkerRegistry`."""
        found = map(rows.worker_record, self._all("workers"))
        return [each for each in found if each is not None]

    def documents(self, kind: str) -> list[Document]:
        """All documents of this kind; see `Documents`."""
        return [Document(*row) for row in self._all("documents", kind=kind)]

    def document(self, kind: str, name: str) -> Document | None:
        """One document; see `Documents`."""
        found = self._all("document", kind=kind, document=name)
        return Document(*found[0]) if found else None

    def flows(self) -> list[tuple[str, float]]:
        """Name and time of creation of every flow, newest first."""
        return [(flow, rows.time_of(at)) for flow, at in self._all("flows")]

    def runs(
        self,
        flow: str | None,
        *,
        tags: Sequence[str] = (),
        states: Sequence[RunState] = (),
        users: Sequence[str] = (),
        since: float | None = None,
        until: float | None = None,
        after: tuple[float, int] | None = None,
        limit: int | None = None,
        kind: str = "",
    ) -> list[RunRecord]:
        """The flow's runs, newest first; see the port."""
        after_time, after_key = after or (None, None)
        which: dict[str, Any] = {"flow": flow} if flow is not None else {}
        found = self._all(
            "runs" if flow is not None else "all_runs",
            **which,
            kind=kind,
            users=list(users),
            since=since,
            until=until,
            after_time=after_time,
            after_key=after_key,
            states=[state.value for state in states],
            tags=list(tags),
            limit=limit,
        )
        by_run: dict[int, list[tuple[str, int]]] = {}
        for key, tag, is_system in self._all("tags", run_keys=[row[0] for row in found]):
            by_run.setdefault(key, []).append((tag, is_system))
        with self._damage_named():
            return [rows.run_record(row, by_run.get(row[0], ())) for row in found]

    def run(self, flow: str, run: str) -> RunRecord | None:
        """One run, whole; None where there is none."""
        found = self._all("run", flow=flow, run=run)
        if not found:
            return None
        tags = self._all("tags_of_run", run_key=found[0][0])
        with self._damage_named():
            return rows.run_record(found[0], tags)

    def steps(self, run_key: int) -> list[tuple[str, float, int]]:
        """Name, time and number of tasks of every step that has begun, newest first."""
        found = self._all("steps", run_key=run_key)
        return [(step, rows.time_of(at), count) for step, at, count in found]

    def tasks(
        self,
        run_key: int,
        *,
        step: str | None = None,
        split: int | None = None,
        steps: Sequence[str] = (),
        after: int | None = None,
        limit: int | None = None,
        light: bool = False,
    ) -> Iterator[TaskView]:
        """Tasks with their latest attempts, in one query that streams; see the port."""
        name = "tasks" if step is None else "tasks_of_step"
        if split is not None:
            name = "tasks_of_split"
        return self._views(
            name,
            light,
            run_key=run_key,
            step=step,
            split=split,
            steps=list(steps),
            after=-1 if after is None else after,
            limit=limit,
        )

    def newest_tasks(
        self,
        run_key: int,
        *,
        step: str | None = None,
        states: Sequence[TaskState] = (),
        before: int | None = None,
        limit: int | None = None,
        light: bool = False,
    ) -> Iterator[TaskView]:
        """Tasks with their latest attempts, the newest first; see the port."""
        name = "newest_tasks" if step is None else "newest_tasks_of_step"
        return self._views(
            name,
            light,
            run_key=run_key,
            step=step,
            states=rows.attempt_states(states),
            before=_NO_TASK if before is None else before,
            limit=limit,
        )

    def progress(self, run_key: int) -> list[StepProgress]:
        """How far every step that has begun has come, oldest first."""
        found = self._all("progress", run_key=run_key)
        with self._damage_named():
            return rows.progress(found)

    def task_columns(self, run_key: int, after: int = 0) -> Iterator[TaskColumns]:
        """Tasks whose latest attempts were written after a version; see the port."""
        with self._damage_named():
            for row in self._stream("task_columns", run_key=run_key, after=after):
                yield rows.task_columns(row)

    def _views(self, name: str, light: bool, **values: Any) -> Iterator[TaskView]:
        with self._damage_named():
            yield from map(rows.task_view, self._stream(name, light, **values))

    def task(self, run_key: int, task: int, attempt: int | None = None) -> TaskView | None:
        """One task with its latest attempt, or with the attempt asked for."""
        found = self._all("task", run_key=run_key, task=task, attempt=attempt)
        with self._damage_named():
            return rows.task_view(found[0]) if found else None

    def manifests(self, run_key: int, tasks: Sequence[int]) -> dict[int, bytes]:
        """The manifests of the latest attempts of these tasks, where they succeeded."""
        return dict(self._all("manifests", run_key=run_key, tasks=list(tasks)))

    def split_manifests(
        self, run_key: int, split: int, steps: Sequence[str], start: int = 0, limit: int = 1000
    ) -> list[tuple[int, int, str, bytes]]:
        """A page of a foreach join's inputs; see the port."""
        return self._all(
            "split_manifests",
            run_key=run_key,
            split=split,
            start=start,
            steps=list(steps),
            limit=limit,
        )

    def cached(self, flow: str, key: bytes) -> CachedTask | None:
        """A succeeded task of the flow with this cache key; see the port."""
        found = self._all("cached", key=key, flow=flow)
        if not found:
            return None
        run, step, task, run_key, manifest = found[0]
        return CachedTask(f"{run}/{step}/{task}", run_key, task, manifest)

    def attempts(self, run_key: int, task: int) -> list[AttemptRecord]:
        """All attempts of a task, oldest first."""
        found = self._all("attempts", run_key=run_key, task=task)
        with self._damage_named():
            return [rows.attempt_record(row) for row in found]

    def metadata(self, run_key: int, task: int) -> list[MetadataRecord]:
        """The metadata records of a task, oldest first."""
        found = self._all("metadata", run_key=run_key, task=task)
        records = [MetadataRecord(*row) for row in found]
        return [each._replace(created_at=rows.time_of(each.created_at)) for each in records]
