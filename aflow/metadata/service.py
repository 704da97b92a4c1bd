"""The metadata port over HTTP: journals and records that `aflow metadata-service` keeps.

A call waits for a service that is away (`calling.PATIENCE`). A write may have been done before its
answer was lost: a commit has a mark by which the store knows it again, and of a run that is there
already what is there says whether it is this one.
"""

from __future__ import annotations

import uuid
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aflow.errors import VersionConflict
from aflow.metadata.base import (
    AttemptRecord,
    Batch,
    CachedTask,
    Hold,
    MetadataRecord,
    ReplacedLog,
    RunRecord,
    StepProgress,
    TaskColumns,
    TaskView,
    WorkerRecord,
)
from aflow.metadata.calling import PATIENCE, Answered, Caller
from aflow.metadata.wire import pack, raise_told
from aflow.scheduler.states import RunState, TaskState

if TYPE_CHECKING:
    from aflow.clock import Clock

PATH = "/aflow/v1/metadata"


class ServiceMetadata:
    """The metadata of the service at `http(s)://host:port/prefix`."""

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        clock: Clock,
        patience: float = PATIENCE,
    ) -> None:
        self._caller = Caller(url, headers, clock, patience)

    @property
    def url(self) -> str:
        """The address of the service."""
        return self._caller.url

    @property
    def address(self) -> str:
        """The same: keys are in the settings."""
        return self._caller.url

    def _call(self, name: str, *values: Any, **named: Any) -> Any:
        return _value(self._answer(name, *values, **named))

    def _answer(self, name: str, *values: Any, **named: Any) -> Answered:
        return self._caller.call(f"{PATH}/{name}", pack([list(values), named]))

    def _stream(self, name: str, *values: Any, **named: Any) -> Iterator[Any]:
        for frame in self._answer(name, *values, **named).frames:
            raise_told(frame)
            if frame[0] == "items":
                yield from frame[1]

    # ------------------------------------------------------------------ writing

    def create_run(
        self, run: RunRecord, parameters: bytes, owner: str = "", seconds: float = 0.0
    ) -> RunRecord:
        """Record a new run with its parameters; see the port."""
        answer = self._answer("create_run", run, parameters, owner, seconds)
        try:
            made: RunRecord = _value(answer)
        except VersionConflict:
            there = self.run(run.flow, run.run) if answer.again else None
            if there is None or there._replace(key=run.key, version=run.version) != run:
                raise
            return there
        return made

    def commit(self, run_key: int, version: int, batch: Batch, mark: str = "") -> int:
        """Write the batch if the run is still at `version`; see the port."""
        return int(self._call("commit", run_key, version, batch, mark or uuid.uuid4().hex))

    def hold(self, run_key: int, owner: str, seconds: float, at: float) -> Hold:
        """Become, or stay, the run's owner; see the port."""
        found: Hold = self._call("hold", run_key, owner, seconds, at)
        return found

    def let_go(self, run_key: int, owner: str) -> None:
        """The run may have another owner at once; see the port."""
        self._call("let_go", run_key, owner)

    def request_cancel(self, run_key: int, reason: str) -> bool:
        """Ask the run's owner to stop it; see the port."""
        return bool(self._call("request_cancel", run_key, reason))

    def beat_worker(self, worker: WorkerRecord, seconds: float) -> str | None:
        """Register a worker, or renew that; see `WorkerRegistry`."""
        found: str | None = self._call("beat_worker", worker, seconds)
        return found

    def drain_worker(self, name: str, reason: str) -> bool:
        """Ask a worker to end; see `WorkerRegistry`."""
        return bool(self._call("drain_worker", name, reason))

    def remove_worker(self, name: str) -> None:
        """List a worker no longer; see `WorkerRegistry`."""
        self._call("remove_worker", name)

    def change_tags(
        self, run_key: int, add: Sequence[str], remove: Sequence[str]
    ) -> tuple[str, ...]:
        """Remove, then add user tags; see the port."""
        return tuple(self._call("change_tags", run_key, list(add), list(remove)))

    def replace_logs(self, run_key: int, logs: Sequence[ReplacedLog]) -> None:
        """Put these logs in the place of others; see the port."""
        self._call("replace_logs", run_key, list(logs))

    def delete_run(self, run_key: int) -> None:
        """Remove a run with all its records; see the port."""
        self._call("delete_run", run_key)

    # ------------------------------------------------------------------ reading

    def all_manifests(self, run_key: int) -> Iterator[bytes]:
        """The manifests of all attempts of a run; see the port."""
        return self._stream("all_manifests", run_key)

    def journal(self, run_key: int) -> Iterator[bytes]:
        """The event batches of the run, oldest first."""
        return self._stream("journal", run_key)

    def journal_after(self, run_key: int, version: int) -> Generator[tuple[int, bytes], None, None]:
        """Event batches above a version, with theirs; see the port."""
        return (
            (number, events) for number, events in self._stream("journal_after", run_key, version)
        )

    def abandoned(self, kind: str, limit: int = 100) -> list[tuple[str, str]]:
        """Runs that go on without an owner; see the port."""
        return [(flow, run) for flow, run in self._call("abandoned", kind, limit)]

    def workers(self) -> list[WorkerRecord]:
        """The workers whose time is not over; see `WorkerRegistry`."""
        return list(self._call("workers"))

    def flows(self) -> list[tuple[str, float]]:
        """Name and time of creation of every flow, newest first."""
        return list(self._call("flows"))

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
        chosen = {
            "tags": list(tags),
            "states": list(states),
            "users": list(users),
            "since": since,
            "until": until,
        }
        return list(self._call("runs", flow, **chosen, after=after, limit=limit, kind=kind))

    def run(self, flow: str, run: str) -> RunRecord | None:
        """One run, whole; None where there is none."""
        found: RunRecord | None = self._call("run", flow, run)
        return found

    def steps(self, run_key: int) -> list[tuple[str, float, int]]:
        """Name, time and number of tasks of every step that has begun, newest first."""
        return list(self._call("steps", run_key))

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
        which = {"step": step, "split": split, "steps": list(steps), "after": after}
        return self._stream("tasks", run_key, **which, limit=limit, light=light)

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
        which = {"step": step, "states": list(states), "before": before}
        return self._stream("newest_tasks", run_key, **which, limit=limit, light=light)

    def progress(self, run_key: int) -> list[StepProgress]:
        """How far every step that has begun has come, oldest first."""
        return list(self._call("progress", run_key))

    def task_columns(self, run_key: int, after: int = 0) -> Iterator[TaskColumns]:
        """Tasks whose latest attempts were written after a version; see the port."""
        return self._stream("task_columns", run_key, after)

    def task(self, run_key: int, task: int, attempt: int | None = None) -> TaskView | None:
        """One task with its latest attempt, or with the attempt asked for."""
        found: TaskView | None = self._call("task", run_key, task, attempt)
        return found

    def manifests(self, run_key: int, tasks: Sequence[int]) -> dict[int, bytes]:
        """The manifests of the latest attempts of these tasks; see the port."""
        return dict(self._call("manifests", run_key, list(tasks)))

    def split_manifests(
        self, run_key: int, split: int, steps: Sequence[str], start: int = 0, limit: int = 1000
    ) -> list[tuple[int, int, str, bytes]]:
        """A page of a foreach join's inputs; see the port."""
        return list(self._call("split_manifests", run_key, split, list(steps), start, limit))

    def cached(self, flow: str, key: bytes) -> CachedTask | None:
        """The task that has this cache key and succeeded; see the port."""
        found: CachedTask | None = self._call("cached", flow, key)
        return found

    def attempts(self, run_key: int, task: int) -> list[AttemptRecord]:
        """All attempts of a task, oldest first."""
        return list(self._call("attempts", run_key, task))

    def metadata(self, run_key: int, task: int) -> list[MetadataRecord]:
        """The metadata records of a task, oldest first."""
        return list(self._call("metadata", run_key, task))

    def close(self) -> None:
        """Let go of the connections. May be called twice."""
        self._caller.close()


def _value(answer: Answered) -> Any:
    found = None
    for frame in answer.frames:
        raise_told(frame)
        found = frame[1]
    return found
