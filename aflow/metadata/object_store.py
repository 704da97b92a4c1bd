"""The metadata store in an object store: for runs whose jobs cannot reach another metadata store.

The records of a run are objects numbered from 0: the run itself, then one object per commit. They
are written with `put_if_absent`, so that of two concurrent writers one fails, and reads the other's
object before it retries. A reader replays the objects of a run into a store in memory, and then
fetches only new objects. After every SNAPSHOT objects, a snapshot of all records so far is stored,
from which readers start; it has no events, since runs without a coordinator have none. Lists are
built from a small index object per run.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from aflow._core import ids
from aflow._core.clock import SystemClock
from aflow._core.records import dataclass
from aflow.errors import InvalidMessage, NotFound, ObjectNotFound, StorageError, VersionConflict
from aflow.metadata import base
from aflow.metadata.base import Batch, ReplacedLog, RunFilter, RunRecord, RunUpdate
from aflow.metadata.sqlite import SqliteMetadata
from aflow.metadata.wire import pack, unpack

if TYPE_CHECKING:
    from aflow.storage.base import ObjectStore

PREFIX = "metadata"
SNAPSHOT = 32
SCHEME = "store+"
"""The prefix of the URL of metadata in an object store; the URL of the store follows."""

_CONFLICT = "Another coordinator has written to this run: this one stops."
_AT_ONCE = 16  # objects fetched concurrently


_KEYED = (
    ("runs", "key"), ("run_tags", "run_key"), ("tasks", "run_key"), ("attempts", "run_key"),
    ("steps", "run_key"), ("task_counts", "run_key"), ("leases", "run_key"),
)  # fmt: skip


def _key_of(nonce: str) -> int:
    """Return the key of a run: the same in all processes, and increasing with time."""
    return int(nonce[:14], 16)  # less than FIRST_KEY


def _new_nonce() -> str:
    return f"{int(SystemClock.now() * 1e6) << 4:014x}{uuid4().hex}"


@dataclass(slots=True)
class _Known:
    """How far a run was read: its key in memory, and number and mark of its last object."""

    key: int
    last: int
    mark: str = ""


class StoreMetadata(SqliteMetadata):
    """The metadata store of the runs whose records are in one object store."""

    def __init__(self, store: ObjectStore) -> None:
        super().__init__(":memory:")
        self._store = store
        self._found: dict[tuple[str, str], _Known] = {}
        self._names: dict[int, tuple[str, str]] = {}
        self._threads = ThreadPoolExecutor(_AT_ONCE, "metadata")
        # Threads must apply objects one after another: an object that two threads apply would be in
        # the journal twice.
        self._objects_lock = threading.RLock()

    @property
    def url(self) -> str:
        """The URL of the object store."""
        return self._store.url

    @property
    def address(self) -> str:
        """The URL that opens the metadata in another process."""
        return f"{SCHEME}{self._store.url}"

    @property
    def has_runs(self) -> bool:
        """Whether there are any runs."""
        return next(iter(self._store.list(f"{PREFIX}/index/")), None) is not None

    def close(self) -> None:
        """Release threads and memory. Idempotent."""
        self._threads.shutdown()
        super().close()

    # ------------------------------------------------------------ objects

    def _name(self, flow: str, run: str, what: int | str) -> str:
        return f"{PREFIX}/runs/{flow}/{run}/{what if isinstance(what, str) else f'{what:08d}'}"

    def _catch_up(self, flow: str, run: str) -> _Known | None:
        """Read the new objects of a run; return None if there is no such run."""
        with self._objects_lock:
            known = self._found.get((flow, run))
            if known is None:
                known = self._from_snapshot(flow, run)
            last, width = (-1 if known is None else known.last), 1
            while True:
                numbers = range(last + 1, last + 1 + width)
                width = min(2 * width, _AT_ONCE)
                found = self._threads.map(lambda each: self._read(flow, run, each), numbers)
                for number, entry in zip(numbers, found, strict=True):
                    if entry is None:
                        return known
                    known = self._apply(flow, run, known, number, entry)
                    last = number

    def _read(self, flow: str, run: str, what: int | str) -> list[Any] | None:
        name = self._name(flow, run, what)
        try:
            entry = unpack(bytes(self._store.get(name)))
        except ObjectNotFound:
            return None
        if not isinstance(entry, list) or not entry:
            raise InvalidMessage(f"{name} in {self._store.url} is not a record of a run.")
        return entry

    def _apply(
        self, flow: str, run: str, known: _Known | None, number: int, entry: list[Any]
    ) -> _Known:
        """Apply an object to the store in memory."""
        kind, *values = entry
        if kind == "run":
            record, parameters, holder, seconds, nonce = values
            made = super().create_run(record, parameters, holder, seconds)
            key = _key_of(nonce)
            with self._transaction() as db:
                db.execute("PRAGMA defer_foreign_keys = ON")
                for table, column in _KEYED:
                    db.execute(
                        f"UPDATE {table} SET {column} = ? WHERE {column} = ?",  # noqa: S608 -- ours
                        (key, made.key),
                    )
            known = self._found[flow, run] = _Known(key, number)
            self._names[key] = flow, run
            return known
        if known is None:
            raise InvalidMessage(f"The records of {flow}/{run} in {self.url} begin in the middle.")
        if kind == "batch":
            super().commit(known.key, self._version(flow, run), values[0])
        elif kind == "tags":
            super().change_tags(known.key, *values[:2])
        elif kind == "logs":
            super().replace_logs(known.key, values[0])
        known.last, known.mark = number, values[1] if kind == "batch" else ""
        return known

    def _version(self, flow: str, run: str) -> int:
        return self._in_memory(flow, run).version

    def _in_memory(self, flow: str, run: str) -> RunRecord:
        """Return a run as of the last read of its objects."""
        record = super().run(flow, run)
        assert record is not None, "it is in memory"
        return record

    def _from_snapshot(self, flow: str, run: str) -> _Known | None:
        found = self._read(flow, run, "snapshot")
        if found is None:
            return None
        number, record, parameters, batch, version = found
        holder, left = ("", 0.0) if record.lease is None else record.lease[:2]
        entry = ["run", record, parameters, holder, left, f"{record.key:014x}"]
        known = self._apply(flow, run, None, 0, entry)
        super().commit(known.key, 0, batch)
        with self._transaction() as db:
            db.execute("UPDATE runs SET version = ? WHERE key = ?", (version, known.key))
            # Readers that know the run up to an earlier version get all attempts again.
            db.execute("UPDATE attempts SET changed = ? WHERE run_key = ?", (version, known.key))
        known.last = number
        return known

    def _write_snapshot(self, flow: str, run: str, known: _Known) -> None:
        record = self._in_memory(flow, run)
        views = list(super().tasks(known.key))
        parameters = next(v.attempt for v in views if v.task.task == 0)
        batch = Batch(run=RunUpdate(record.state, record.finished_at, record.reason))
        for view in views:
            if view.task.task:
                batch.tasks.append(view.task)
                batch.attempts += super().attempts(known.key, view.task.task)
            batch.metadata += super().metadata(known.key, view.task.task)
        manifest = b"" if parameters is None else parameters.manifest
        entry = [known.last, record, manifest, batch, record.version]
        self._store.put(self._name(flow, run, "snapshot"), [pack(entry)])

    def _place_of(self, run_key: int) -> tuple[str, str]:
        self._find(run_key)
        found = self._names.get(run_key)
        if found is None:
            raise NotFound("The run that was to be changed no longer exists.")
        return found

    def _append(self, run_key: int, entry: list[Any]) -> None:
        """Write the next object of a run. The last value of `entry` is unique, so that a caller
        that lost the response recognizes its own object. Raises VersionConflict if another writer
        has written that object, which is then applied."""
        with self._objects_lock:
            flow, run = self._place_of(run_key)
            known = self._found[flow, run]
            data = pack(entry)
            name = self._name(flow, run, known.last + 1)
            if not self._store.put_if_absent(name, [data]) and bytes(self._store.get(name)) != data:
                self._catch_up(flow, run)
                raise VersionConflict(_CONFLICT)
            self._apply(flow, run, known, known.last + 1, entry)
            if known.last % SNAPSHOT == 0:
                with suppress(StorageError):  # what was appended counts, and has no use for it
                    self._write_snapshot(flow, run, known)

    def _put_index(self, flow: str, run: str) -> None:
        record = self._in_memory(flow, run)
        light = record._replace(graph={}, settings={})
        self._store.put(f"{PREFIX}/index/{flow}/{run}/{record.key}", [pack([light])])

    # ------------------------------------------------------------ writing

    def create_run(
        self, run: RunRecord, parameters: bytes, holder: str = "", seconds: float = 0.0
    ) -> RunRecord:
        """Record a new run; see `Journal`."""
        entry = ["run", run, parameters, holder, seconds, _new_nonce()]
        data = pack(entry)
        name = self._name(run.flow, run.run, 0)
        if not self._store.put_if_absent(name, [data]) and bytes(self._store.get(name)) != data:
            raise VersionConflict(f"The run {run.flow}/{run.run} already exists.")
        with self._objects_lock:
            known = self._found.get((run.flow, run.run))
            if known is None:  # otherwise another thread has read the run in the meantime
                known = self._apply(run.flow, run.run, None, 0, entry)
        self._put_index(run.flow, run.run)
        return run._replace(key=known.key, version=0)

    def commit(self, run_key: int, version: int, batch: Batch, mark: str = "") -> int:
        """Write the batch if the run is at `version`; see `Journal`."""
        with self._objects_lock:  # so that the version does not change after the check
            if run_key not in self._names:
                raise VersionConflict(_CONFLICT)
            flow, run = self._place_of(run_key)
            now = self._version(flow, run)
            if mark and now == version + 1 and self._found[flow, run].mark == mark:
                return now  # the response to the previous attempt was lost
            if now != version:
                raise VersionConflict(_CONFLICT)
            numbers = [task.task for task in batch.tasks]
            if len(set(numbers)) < len(numbers) or any(self.task(run_key, n) for n in numbers):
                # Once written, such a batch would make the run unreadable for everybody.
                raise InvalidMessage(f"The numbers of tasks of {flow}/{run} have to be unique.")
            self._append(run_key, ["batch", batch, mark or uuid4().hex])
            if batch.run is not None:
                self._put_index(flow, run)
            return version + 1

    def change_tags(
        self, run_key: int, add: Sequence[str], remove: Sequence[str]
    ) -> tuple[str, ...]:
        """Remove and then add user tags; see `Records`."""
        flow, run = self._place_of(run_key)
        self._catch_up(flow, run)
        for each in (*add, *remove):
            ids.tag(each)
        known = self._in_memory(flow, run).all_tags()
        base.changed(known, add, remove)  # raises before an invalid change is written
        self._again(run_key, ["tags", list(add), list(remove), uuid4().hex])
        self._put_index(flow, run)
        return self._in_memory(flow, run).tags

    def replace_logs(self, run_key: int, logs: Sequence[ReplacedLog]) -> None:
        """Replace the logs of attempts; see `Records`. Earlier objects keep the old logs."""
        self._again(run_key, ["logs", list(logs), uuid4().hex])

    def _again(self, run_key: int, entry: list[Any]) -> None:
        while True:
            try:
                return self._append(run_key, entry)
            except VersionConflict:  # the entry does not depend on the other writer's object
                continue

    def delete_run(self, run_key: int) -> None:
        """Delete a run with all its records; see `Records`."""
        self._find(run_key)
        with self._objects_lock:
            if run_key not in self._names:
                return
            flow, run = self._names.pop(run_key)
            self._found.pop((flow, run), None)
        self._store.delete(f"{PREFIX}/index/{flow}/{run}/{run_key}")
        for name in list(self._store.list(f"{PREFIX}/runs/{flow}/{run}/")):
            self._store.delete(name)
        super().delete_run(run_key)

    # ------------------------------------------------------------ reading

    def _all(self, name: str, light: bool = False, **values: Any) -> list[Any]:
        self._find(values.get("run_key"))
        return super()._all(name, light, **values)

    def _stream(self, name: str, light: bool = False, **values: Any) -> Iterator[Any]:
        self._find(values.get("run_key"))
        return super()._stream(name, light, **values)

    def _find(self, run_key: object) -> None:
        """Read a run whose key comes from another process."""
        if run_key is None or run_key in self._names:
            return
        for name in self._store.list(f"{PREFIX}/index/"):
            flow, run, key = name.split("/")[2:]
            if key == str(run_key):
                self._catch_up(flow, run)

    def flows(self) -> list[tuple[str, float]]:
        """Return name and time of creation of every flow, newest first."""
        found: dict[str, float] = {}
        for record in self._indexed(None):
            found[record.flow] = min(found.get(record.flow, record.created_at), record.created_at)
        return sorted(found.items(), key=lambda each: each[1], reverse=True)

    def _indexed(self, flow: str | None) -> list[RunRecord]:
        prefix = f"{PREFIX}/index/" if flow is None else f"{PREFIX}/index/{flow}/"

        def read(name: str) -> RunRecord | None:
            try:
                found = unpack(bytes(self._store.get(name)))
            except ObjectNotFound:  # deleted a moment ago
                return None
            return found[0] if found and isinstance(found[0], RunRecord) else None

        return [each for each in self._threads.map(read, self._store.list(prefix)) if each]

    def runs(self, flow: str | None, **which: Any) -> list[RunRecord]:
        """Return the runs of the flow, or of all flows, newest first; see `Records`."""
        wanted = RunFilter(**which)
        passing = [
            run
            for run in self._indexed(flow)
            if run.kind == wanted.kind
            and (not wanted.states or run.state in wanted.states)
            and wanted.passes({*run.tags, *run.system_tags}, run.user, run.created_at, run.key)
        ]
        passing.sort(key=lambda run: (run.created_at, run.key), reverse=True)
        whole = (self.run(run.flow, run.run) for run in passing)
        light = (run._replace(graph={}) for run in whole if run is not None)
        return list(islice(light, wanted.limit))

    def run(self, flow: str, run: str) -> RunRecord | None:
        """Return one run with its graph, read again; None if there is none."""
        return super().run(flow, run) if self._catch_up(flow, run) is not None else None
