"""Metadata in SQLite: one file, many processes; or in memory, for tests.

Write-ahead log: readers see whole commits and never wait for the writer. With durability `power`
each commit is on the disk before it returns (synchronous FULL), with `process` it survives any
crash but that of the machine (synchronous NORMAL).
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from aflow import ids
from aflow.errors import (
    InvalidName,
    InvalidSetting,
    MetadataUnavailable,
    NotFound,
    VersionConflict,
)
from aflow.metadata import rows
from aflow.metadata.base import (
    AttemptRecord,
    Batch,
    CachedTask,
    MetadataRecord,
    ReplacedLog,
    RunRecord,
    RunUpdate,
    StepProgress,
    TaskView,
)
from aflow.metadata.connections import OpenFiles, connect, damage_named, errors_named
from aflow.metadata.statements import statements
from aflow.scheduler.codec import encode_inputs
from aflow.scheduler.messages import NoInputs
from aflow.scheduler.states import AttemptState, RunState, TaskState

_CHUNKS = (64, 16, 4, 1)  # rows a statement; 64 of 17 values each are well below SQLite's limit
_PAGE = 500  # rows a fetch
_NO_TASK = 2**63 - 1  # above all numbers of tasks
_SYNCHRONOUS = {"power": "FULL", "process": "NORMAL"}


class SqliteMetadata:
    """The metadata store of one file, or of memory (path ":memory:")."""

    def __init__(
        self, path: Path | str, durability: str = "power", read_only: bool = False
    ) -> None:
        if durability not in _SYNCHRONOUS:
            raise InvalidSetting(f"durability={durability!r} is unknown: use power or process.")
        # Absolute, since the program may change its folder while it uses the store.
        self._path = None if str(path) == ":memory:" else Path(path).absolute()
        self._read_only = read_only
        self._synchronous = _SYNCHRONOUS[durability]
        self._lock = threading.RLock()
        self._writer: sqlite3.Connection | None = None
        self._files: OpenFiles | None = None
        self._idle: list[sqlite3.Connection] = []  # readers that nobody uses now
        self._idle_lock = threading.Lock()  # apart, so that no reader waits for a commit
        self._known_steps: set[tuple[int, str]] = set()
        if self._path is None:
            self._writer = self._connect(False)

    @property
    def url(self) -> str:
        """Where it is: `sqlite:///path`, or `memory:`."""
        if self._path is None:
            return "memory:"
        return "sqlite:///" + self._path.as_uri().removeprefix("file://")

    # ------------------------------------------------------------------ writing

    def create_run(self, run: RunRecord, parameters: bytes) -> RunRecord:
        """Record a new run with its parameters; see the port."""
        sql = statements("write")
        with self._transaction() as db:
            db.execute(sql["add_flow"], (run.flow, run.created_at))
            try:
                key = db.execute(sql["add_run"], rows.run_row(run)).lastrowid or 0
            except sqlite3.IntegrityError as error:
                raise VersionConflict(f"There is a run {run.flow}/{run.run} already.") from error
            tags = [(key, tag, 0) for tag in run.tags] + [(key, tag, 1) for tag in run.system_tags]
            db.executemany(sql["add_tag"], tags)
            at, step, task = run.created_at, ids.PARAMETERS_STEP, ids.PARAMETERS_TASK
            inputs = encode_inputs(NoInputs())
            db.execute(sql["add_task"], (key, task, step, at, None, None, inputs, "", None))
            attempt = AttemptRecord(task, 0, AttemptState.SUCCEEDED, at, at, manifest=parameters)
            db.execute(sql["put_attempt"], rows.attempt_row(key, attempt))
        return run._replace(key=key, version=0)

    def commit(self, run_key: int, version: int, batch: Batch) -> int:
        """Write the batch if the run is still at `version`; see the port."""
        sql = statements("write")
        with self._transaction() as db:
            if db.execute(sql["advance"], (run_key, version)).rowcount != 1:
                raise VersionConflict(
                    "Somebody else has written to this run: two coordinators drive it. This one "
                    "stops."
                )
            if batch.events:
                db.execute(sql["add_events"], (run_key, version + 1, batch.events))
            self._add_tasks(db, run_key, batch)
            if batch.attempts:
                attempts = [rows.attempt_row(run_key, attempt) for attempt in batch.attempts]
                _insert(db, sql["put_attempt"], attempts)
            if batch.metadata:
                more = [rows.metadata_row(run_key, record) for record in batch.metadata]
                db.executemany(sql["add_metadata"], more)
            if batch.run is not None:
                self._update_run(db, run_key, batch.run)
        self._known_steps.update((run_key, task.step) for task in batch.tasks)
        return version + 1

    def _add_tasks(self, db: sqlite3.Connection, run_key: int, batch: Batch) -> None:
        if not batch.tasks:
            return
        sql = statements("write")
        _insert(db, sql["add_task"], [rows.task_row(run_key, task) for task in batch.tasks])
        for task in batch.tasks:
            if (run_key, task.step) not in self._known_steps:
                db.execute(sql["add_step"], (run_key, task.step, task.created_at))

    def _update_run(self, db: sqlite3.Connection, run_key: int, update: RunUpdate) -> None:
        state = None if update.state is None else update.state.value
        reason = None if update.reason is None else rows.text(update.reason)
        values = (state, update.finished_at, reason, run_key)
        db.execute(statements("write")["update_run"], values)

    def beat(self, run_key: int, at: float) -> None:
        """Say that the run's coordinator is alive; see the port."""
        with self._transaction() as db:
            db.execute(statements("write")["beat"], (at, run_key))

    def change_tags(
        self, run_key: int, add: Sequence[str], remove: Sequence[str]
    ) -> tuple[str, ...]:
        """Remove, then add user tags; see the port."""
        sql = statements("write")
        for tag in [*add, *remove]:
            ids.tag(tag)
        with self._transaction() as db:
            if db.execute(statements("read")["run_exists"], (run_key,)).fetchone() is None:
                raise NotFound("The run whose tags were to be changed is not there any more.")
            known = dict(db.execute(statements("read")["tags_of_run"], (run_key,)).fetchall())
            for tag in [*add, *remove]:
                if known.get(tag):
                    raise InvalidName(f"{tag!r} is a system tag, which nobody may add or remove.")
            db.executemany(sql["remove_tag"], [(run_key, tag) for tag in remove])
            db.executemany(sql["add_tag"], [(run_key, tag, 0) for tag in add])
            now = db.execute(statements("read")["tags_of_run"], (run_key,)).fetchall()
            tags = tuple(tag for tag, is_system in now if not is_system)
            if len(tags) > ids.MAX_TAGS:
                raise InvalidName(
                    f"A run can have at most {ids.MAX_TAGS} tags; it would have {len(tags)}."
                )
        return tags

    def replace_logs(self, run_key: int, logs: Sequence[ReplacedLog]) -> None:
        """Put these logs in the place of others; see the port."""
        if not logs:
            return
        sql = statements("write")["replace_log"]
        values = [(*log[2:], run_key, log.task, log.attempt) for log in logs]
        with self._transaction() as db:
            db.executemany(sql, values)
        with self._lock, errors_named(self._where):
            # Pages keep what was moved or replaced until they are written anew, all of them; and
            # so does the log, until it is cut off.
            assert self._writer is not None, "there was a transaction"
            self._writer.execute("VACUUM")
            busy, *_ = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise MetadataUnavailable(
                f"The logs in {self._where} are redacted, but others use the file, and it may "
                "still hold the old ones: do the same again when they have ended."
            )

    def delete_run(self, run_key: int) -> None:
        """Remove a run with all its records; see the port."""
        sql = statements("write")
        with self._transaction() as db:
            found = db.execute(statements("read")["flow_of_run"], (run_key,)).fetchone()
            if found is None:
                return
            for table in ("journal", "metadata", "attempts", "tasks", "steps", "run_tags"):
                db.execute(sql[f"delete_{table}"], (run_key,))
            db.execute(sql["delete_run"], (run_key,))
            db.execute(sql["retire_key"], (run_key,))
            db.execute(sql["delete_empty_flow"], found)

    # ------------------------------------------------------------------ reading

    def all_manifests(self, run_key: int) -> Iterator[bytes]:
        """The manifests of all attempts of a run; see the port."""
        after, more = -1, True
        while more:
            found = self._all(statements("read")["all_manifests"], (run_key, after, _PAGE))
            yield from (manifest for _, manifest in found)
            # A page may end between the attempts of a task, of which there are fewer than a page:
            # the next one begins with that task again.
            more = len(found) == _PAGE
            after = found[-1][0] - 1 if more else after

    def journal(self, run_key: int) -> Iterator[bytes]:
        """The event batches of the run, oldest first."""
        for (events,) in self._stream(statements("read")["journal"], (run_key,)):
            yield events

    def flows(self) -> list[tuple[str, float]]:
        """Name and time of creation of every flow, newest first."""
        return self._all(statements("read")["flows"], ())

    def runs(
        self,
        flow: str,
        *,
        tags: Sequence[str] = (),
        states: Sequence[RunState] = (),
        since: float | None = None,
        until: float | None = None,
        after: tuple[float, int] | None = None,
        limit: int | None = None,
        kind: str = "",
    ) -> list[RunRecord]:
        """The flow's runs, newest first; see the port."""
        after_time, after_key = after or (None, None)
        found = self._all(
            statements("read")["runs"],
            {
                "flow": flow,
                "kind": kind,
                "since": since,
                "until": until,
                "after_time": after_time,
                "after_key": after_key,
                "states": json.dumps([state.value for state in states]),
                "tags": json.dumps(list(tags)),
                "limit": -1 if limit is None else limit,
            },
        )
        keys = json.dumps([row[0] for row in found])
        by_run: dict[int, list[tuple[str, int]]] = {}
        for key, tag, is_system in self._all(statements("read")["tags"], (keys,)):
            by_run.setdefault(key, []).append((tag, is_system))
        with damage_named(self._where):
            return [rows.run_record(row, by_run.get(row[0], ())) for row in found]

    def run(self, flow: str, run: str) -> RunRecord | None:
        """One run, whole; None where there is none."""
        found = self._all(statements("read")["run"], (flow, run))
        if not found:
            return None
        tags = self._all(statements("read")["tags_of_run"], (found[0][0],))
        with damage_named(self._where):
            return rows.run_record(found[0], tags)

    def steps(self, run_key: int) -> list[tuple[str, float, int]]:
        """Name, time and number of tasks of every step that has begun, newest first."""
        return self._all(statements("read")["steps"], (run_key,))

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
        sql = statements("read")[name]
        values = {
            "run_key": run_key,
            "step": step,
            "split": split,
            "steps": json.dumps(list(steps)),
            "after": -1 if after is None else after,
            "limit": -1 if limit is None else limit,
        }
        return self._views(_with_columns(sql, light), values)

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
        values = {
            "run_key": run_key,
            "step": step,
            "states": json.dumps(rows.attempt_states(states)),
            "before": _NO_TASK if before is None else before,
            "limit": -1 if limit is None else limit,
        }
        return self._views(_with_columns(statements("read")[name], light), values)

    def progress(self, run_key: int) -> list[StepProgress]:
        """How far every step that has begun has come, oldest first."""
        found = self._all(statements("read")["progress"], (run_key,))
        with damage_named(self._where):
            return rows.progress(found)

    def _views(self, sql: str, values: Any) -> Iterator[TaskView]:
        with damage_named(self._where):
            yield from map(rows.task_view, self._stream(sql, values))

    def task(self, run_key: int, task: int, attempt: int | None = None) -> TaskView | None:
        """One task with its latest attempt, or with the attempt asked for."""
        values = {"run_key": run_key, "task": task, "attempt": attempt}
        return next(self._views(_with_columns(statements("read")["task"]), values), None)

    def manifests(self, run_key: int, tasks: Sequence[int]) -> dict[int, bytes]:
        """The manifests of the latest attempts of these tasks, where they succeeded."""
        wanted = json.dumps(list(tasks))
        return dict(self._all(statements("read")["manifests"], (run_key, wanted)))

    def split_manifests(
        self, run_key: int, split: int, steps: Sequence[str], start: int = 0, limit: int = 1000
    ) -> list[tuple[int, int, str, bytes]]:
        """A page of a foreach join's inputs; see the port."""
        values = (run_key, split, start, json.dumps(list(steps)), limit)
        return self._all(statements("read")["split_manifests"], values)

    def cached(self, flow: str, key: bytes) -> CachedTask | None:
        """A succeeded task of the flow with this cache key; see the port."""
        found = self._all(statements("read")["cached"], (key, flow))
        if not found:
            return None
        run, step, task, run_key, manifest = found[0]
        return CachedTask(f"{run}/{step}/{task}", run_key, task, manifest)

    def attempts(self, run_key: int, task: int) -> list[AttemptRecord]:
        """All attempts of a task, oldest first."""
        found = self._all(statements("read")["attempts"], (run_key, task))
        with damage_named(self._where):
            return [rows.attempt_record(row) for row in found]

    def metadata(self, run_key: int, task: int) -> list[MetadataRecord]:
        """The metadata records of a task, oldest first."""
        found = self._all(statements("read")["metadata"], (run_key, task))
        return [MetadataRecord(*row) for row in found]

    # ------------------------------------------------------------------ connections

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """The writing connection, in a transaction that is kept if the block ends well."""
        with self._lock, errors_named(self._where):
            if self._writer is None:
                self._writer = self._connect(self._read_only)
                self._files = OpenFiles(self._path, self._writer) if self._path else None
            db = self._writer
            db.execute("BEGIN IMMEDIATE")
            try:
                if self._files is not None:
                    self._files.check()
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    def _all(self, sql: str, values: Any) -> list[Any]:
        with errors_named(self._where), self._reading() as db:
            return db.execute(sql, values).fetchall()

    def _stream(self, sql: str, values: Any) -> Iterator[Any]:
        if self._path is None:  # its one connection is everybody's: nobody may stay on it
            yield from self._all(sql, values)
            return
        with (
            errors_named(self._where),
            self._reading() as db,
            closing(db.execute(sql, values)) as cursor,
        ):
            while page := cursor.fetchmany(_PAGE):
                yield from page

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """A connection for one query. Nobody else has it meanwhile: a stream that is not finished
        keeps its own view of the database, and nobody else's."""
        if self._path is None:
            assert self._writer is not None, "a store in memory is open from the start"
            with self._lock:
                yield self._writer
            return
        idle = self._idle
        try:
            reader = idle.pop()
        except IndexError:
            reader = self._connect(self._read_only)
        try:
            yield reader
        finally:
            with self._idle_lock:
                if idle is self._idle:
                    idle.append(reader)
                else:  # the store was closed meanwhile
                    reader.close()

    def _connect(self, read_only: bool) -> sqlite3.Connection:
        return connect(self._path, synchronous=self._synchronous, read_only=read_only)

    @property
    def _where(self) -> str:
        return str(self._path or "memory")

    def close(self) -> None:
        """Let go of files and connections. May be called twice."""
        with self._idle_lock:
            idle, self._idle = self._idle, []
        for reader in idle:
            reader.close()
        with self._lock:
            if self._writer is not None and self._path is not None:
                self._writer.close()
                self._writer = None


def _insert(db: sqlite3.Connection, sql: str, values: Sequence[rows.Row]) -> None:
    """Insert many rows with few statements of many rows each.

    sqlite3 gives the interpreter's lock away for each statement and has to get it back from the
    coordinator's busy thread: for each of a thousand rows that would cost more than the rows.
    The sizes are few, so that the prepared statements are found again.
    """
    head, _, row = sql.partition("VALUES ")
    at = 0
    for size in _CHUNKS:
        while len(values) - at >= size:
            statement = f"{head}VALUES {', '.join([row] * size)}"
            db.execute(statement, [value for each in values[at : at + size] for value in each])
            at += size


def _with_columns(sql: str, light: bool = False) -> str:
    return sql.replace("{columns}", rows.LIGHT_COLUMNS if light else rows.COLUMNS)
