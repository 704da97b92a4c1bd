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
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

from aflow import ids
from aflow.clock import Clock, LeaseClock, SystemClock
from aflow.errors import (
    InvalidSetting,
    MetadataUnavailable,
    NotFound,
    VersionConflict,
)
from aflow.metadata import rows, tags
from aflow.metadata.base import (
    LEASE,
    WORKER_EXPIRY,
    AttemptRecord,
    Batch,
    Hold,
    ReplacedLog,
    RunRecord,
    RunUpdate,
    WorkerRecord,
)
from aflow.metadata.connections import OpenFiles, Snapshot, connect, damage_named, errors_named
from aflow.metadata.documents import document_change, document_conflict
from aflow.metadata.reading import PAGE, RecordReader
from aflow.metadata.statements import statements
from aflow.scheduler.codec import encode_inputs
from aflow.scheduler.messages import NoInputs
from aflow.scheduler.states import TERMINAL_RUN_STATES, AttemptState

_CHUNKS = (64, 16, 4, 1)  # rows a statement; 64 of 17 values each are well below SQLite's limit
_TABLES = ("journal", "metadata", "attempts", "task_counts", "tasks", "steps", "run_tags", "leases")
_SYNCHRONOUS = {"power": "FULL", "process": "NORMAL"}


class SqliteMetadata(RecordReader):
    """The metadata store of one file, or of memory (path ":memory:")."""

    def __init__(
        self,
        path: Path | str,
        durability: str = "power",
        read_only: bool = False,
        clock: Clock | None = None,
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
        self._leases = LeaseClock(SystemClock() if clock is None else clock)
        if self._path is None:
            self._writer = self._connect(False)

    @property
    def url(self) -> str:
        """Where it is: `sqlite:///path`, or `memory:`."""
        if self._path is None:
            return "memory:"
        return "sqlite:///" + self._path.as_uri().removeprefix("file://")

    @property
    def address(self) -> str:
        """The URL that opens it in another process."""
        return self.url

    # ------------------------------------------------------------------ writing

    def create_run(
        self, run: RunRecord, parameters: bytes, owner: str = "", seconds: float = 0.0
    ) -> RunRecord:
        """Record a new run with its parameters; see the port."""
        sql = statements("write")
        with self._transaction() as db:
            db.execute(sql["add_flow"], (run.flow, run.created_at))
            try:
                key = db.execute(sql["add_run"], rows.run_row(run)).lastrowid or 0
            except sqlite3.IntegrityError as error:
                raise VersionConflict(f"There is a run {run.flow}/{run.run} already.") from error
            db.executemany(sql["add_tag"], rows.tag_rows(key, run))
            at, step, task = run.created_at, ids.PARAMETERS_STEP, ids.PARAMETERS_TASK
            inputs = encode_inputs(NoInputs())
            db.execute(sql["add_task"], (key, task, step, at, None, None, inputs, "", None))
            attempt = AttemptRecord(task, 0, AttemptState.SUCCEEDED, at, at, manifest=parameters)
            db.execute(sql["put_attempt"], rows.attempt_row(key, attempt, 0))
            if owner:
                db.execute(sql["hold"], (owner, seconds, key))
        return run._replace(key=key, version=0)

    def commit(self, run_key: int, version: int, batch: Batch, mark: str = "") -> int:
        """Write the batch if the run is still at `version`; see the port."""
        sql = statements("write")
        with self._transaction() as db:
            if db.execute(sql["advance"], (mark, run_key, version)).rowcount != 1:
                asked = {"run_key": run_key, "version": version + 1}
                written = db.execute(statements("read")["written_by"], asked).fetchone()
                if mark and written == (mark,):
                    return version + 1  # the answer to the try before was lost
                raise VersionConflict(
                    "Somebody else has written to this run: two coordinators drive it. This one "
                    "stops."
                )
            if batch.events:
                db.execute(sql["add_events"], (run_key, version + 1, batch.events))
            self._add_tasks(db, run_key, batch)
            if batch.tasks or batch.attempts:
                self._count(db, run_key, batch)
            if batch.attempts:
                attempts = [rows.attempt_row(run_key, each, version + 1) for each in batch.attempts]
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

    def _count(self, db: sqlite3.Connection, run_key: int, batch: Batch) -> None:
        sql = statements("write")
        before = rows.known_before(batch)
        latest: list[Any] = []
        if before:
            asked = {"run_key": run_key, "tasks": json.dumps(before)}
            latest = db.execute(statements("read")["latest_states"], asked).fetchall()
        counts, ended = rows.count_changes(batch, latest)
        db.executemany(sql["count_tasks"], [(run_key, *each) for each in counts])
        db.executemany(sql["step_ended"], [(at, run_key, step) for step, at in ended.items()])

    def _update_run(self, db: sqlite3.Connection, run_key: int, update: RunUpdate) -> None:
        state = None if update.state is None else update.state.value
        reason = None if update.reason is None else rows.text(update.reason)
        values = (state, update.finished_at, reason, run_key)
        db.execute(statements("write")["update_run"], values)
        if update.state in TERMINAL_RUN_STATES:
            db.execute(statements("write")["delete_leases"], (run_key,))

    def hold(self, run_key: int, owner: str, seconds: float, at: float) -> Hold:
        """Become, or stay, the run's owner; see the port."""
        sql = statements("write")
        with self._transaction() as db:
            mine = db.execute(sql["hold"], (owner, seconds, run_key)).rowcount == 1
            if mine:
                db.execute(sql["beat"], (at, run_key))
            found = db.execute(statements("read")["cancel"], {"run_key": run_key}).fetchone()
        return Hold(mine, found[0] if found else None)

    def let_go(self, run_key: int, owner: str) -> None:
        """The run may have another owner at once; see the port."""
        with self._transaction() as db:
            db.execute(statements("write")["let_go"], (run_key, owner))

    def request_cancel(self, run_key: int, reason: str) -> bool:
        """Ask the run's owner to stop it; see the port."""
        values = (rows.text(reason), run_key)
        with self._transaction() as db:
            return db.execute(statements("write")["request_cancel"], values).rowcount == 1

    def beat_worker(self, worker: WorkerRecord, seconds: float) -> str | None:
        """Register a worker, or renew that; see `WorkerRegistry`."""
        sql = statements("write")
        values = rows.worker_row(worker, seconds)
        with self._transaction() as db:
            db.execute(sql["expire_workers"])
            db.execute(sql["beat_worker"], values)
            asked = {"worker": worker.name}
            found = db.execute(statements("read")["drain_of_worker"], asked).fetchone()
        return found[0] if found else None

    def drain_worker(self, name: str, reason: str) -> bool:
        """Ask a worker to end; see `WorkerRegistry`."""
        values = (rows.text(reason), name)
        with self._transaction() as db:
            return db.execute(statements("write")["drain_worker"], values).rowcount == 1

    def remove_worker(self, name: str) -> None:
        """List a worker no longer; see `WorkerRegistry`."""
        with self._transaction() as db:
            db.execute(statements("write")["remove_worker"], (name,))

    def put_document(self, kind: str, name: str, data: bytes, version: int = 0) -> int:
        """Write or change a document; see `Documents`."""
        with self._transaction() as db:
            written = db.execute(*document_change(statements("write"), kind, name, data, version))
            if written.rowcount != 1:
                raise document_conflict(kind, name, version)
        return version + 1

    def delete_document(self, kind: str, name: str) -> bool:
        """Remove a document; see `Documents`."""
        with self._transaction() as db:
            return db.execute(statements("write")["delete_document"], (kind, name)).rowcount == 1

    def change_tags(
        self, run_key: int, add: Sequence[str], remove: Sequence[str]
    ) -> tuple[str, ...]:
        """Remove, then add user tags; see the port."""
        sql = statements("write")
        for tag in [*add, *remove]:
            ids.tag(tag)
        with self._transaction() as db:
            asked = {"run_key": run_key}
            if db.execute(statements("read")["run_exists"], asked).fetchone() is None:
                raise NotFound("The run whose tags were to be changed is not there any more.")
            known = db.execute(statements("read")["tags_of_run"], asked).fetchall()
            now = tags.changed(known, add, remove)
            db.executemany(sql["remove_tag"], [(run_key, tag) for tag in remove])
            db.executemany(sql["add_tag"], [(run_key, tag, 0) for tag in add])
        return now

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
            found = db.execute(statements("read")["flow_of_run"], {"run_key": run_key}).fetchone()
            if found is None:
                return
            for table in _TABLES:
                db.execute(sql[f"delete_{table}"], (run_key,))
            db.execute(sql["delete_run"], (run_key,))
            db.execute(sql["retire_key"], (run_key,))
            db.execute(sql["delete_empty_flow"], found)

    # ------------------------------------------------------------------ connections

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """The writing connection, in a transaction that is kept if the block ends well."""
        with self._lock, errors_named(self._where):
            if self._writer is None:
                self._writer = self._connect(self._read_only)
                self._files = OpenFiles(self._path, self._writer) if self._path else None
            db, first = self._writer, False
            db.execute("BEGIN IMMEDIATE")
            try:
                if self._files is not None:
                    self._files.check()
                first = self._leases.begin(db)
                if first:  # the leases of coordinators that may live elsewhere are renewed
                    db.execute(statements("write")["shorten_leases"], (LEASE,))
                    db.execute(statements("write")["shorten_workers"], (WORKER_EXPIRY,))
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                if first:
                    self._leases.forget()
                raise

    def _all(self, name: str, light: bool = False, **values: Any) -> list[Any]:
        with errors_named(self._where), self._reading() as db:
            return db.execute(_with_columns(name, light), _plain(values)).fetchall()

    def _stream(self, name: str, light: bool = False, **values: Any) -> Iterator[Any]:
        if self._path is None:  # its one connection is everybody's: nobody may stay on it
            yield from self._all(name, light, **values)
            return
        with (
            errors_named(self._where),
            self._reading() as db,
            closing(db.execute(_with_columns(name, light), _plain(values))) as cursor,
        ):
            while page := cursor.fetchmany(PAGE):
                yield from page

    def _damage_named(self) -> AbstractContextManager[None]:
        return damage_named(self._where)

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
            self._leases.read(reader)
            yield reader
        finally:
            with self._idle_lock:
                if idle is self._idle and not isinstance(reader, Snapshot):
                    idle.append(reader)
                else:  # the store was closed meanwhile
                    reader.close()

    def _connect(self, read_only: bool) -> sqlite3.Connection:
        db = connect(self._path, synchronous=self._synchronous, read_only=read_only)
        db.create_function("lease_now", 0, self._leases.now)
        return db

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


def _with_columns(name: str, light: bool) -> str:
    sql = statements("read")[name]
    return sql.replace("{columns}", rows.LIGHT_COLUMNS if light else rows.COLUMNS)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Values as SQLite takes them: lists as JSON."""
    return {
        name: json.dumps(value) if type(value) is list else value for name, value in values.items()
    }
