"""Metaflow's recorded runs as a read-only metadata store of aflow's.

Listing runs takes a few requests per run. When a single run is requested, all its records are read
into a store in memory, which then serves all queries about it. Values, logs and cards are not
copied; `open_store` reads them.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar, cast

from aflow._core import ids
from aflow._core.clock import shown_time
from aflow._core.ids import PARAMETERS_STEP
from aflow._core.records import NamedTuple, dataclass, field
from aflow.errors import (
    AflowError,
    InvalidName,
    MetadataUnavailable,
    NotFound,
    StoreUnavailable,
)
from aflow.flow.graph import Graph, Kind
from aflow.metadata.base import (
    FIRST_KEY,
    MARK,
    AttemptRecord,
    Batch,
    MetadataRecord,
    RunFilter,
    RunRecord,
    RunUpdate,
    TaskRecord,
)
from aflow.metadata.metaflow import layout, theirs
from aflow.metadata.metaflow.sources import number_in, time_of
from aflow.metadata.sqlite import SqliteMetadata
from aflow.scheduler.messages import encode_inputs
from aflow.scheduler.states import AttemptState, RunState
from aflow.storage.artifacts import Entry, ForeachFrame, Manifest
from aflow.storage.codecs import gunzipped
from aflow.storage.logs import STREAMS, LogBuffer
from aflow.storage.previews import preview

if TYPE_CHECKING:
    from aflow.metadata.base import TaskView
    from aflow.metadata.metaflow.sources import RecordSource, Row
    from aflow.storage.base import Buffer, ObjectStore
    from aflow.storage.logs import LogRecord

T = TypeVar("T")
Task = tuple[str, str]  # step, and Metaflow's name of the task
SCHEME = MARK

_ALIVE = 60.0  # seconds since the last heartbeat for which a run is considered running
_AT_ONCE = 16  # concurrent calls
_MOST_LOADED = 200  # runs in memory
_SHOWN = 10_000  # maximum size of a parameter that is previewed, in bytes
_END = "end"
_DESCRIBED = frozenset(
    {
        "attempt",
        "attempt_ok",
        "attempt-done",
        "ds-type",
        "ds-root",
        "foreach-stack",
        "origin-run-id",
    }
)


class _Key(NamedTuple):
    flow: str
    run: str


@dataclass(slots=True)
class _Loaded:
    """A run in memory: its key there, whether it has finished, Metaflow's names of its tasks, and
    when it was read."""

    key: int
    over: bool
    names: Mapping[int, str]
    record: RunRecord = field(repr=False)
    at: float = 0.0


class MetaflowHistory:
    """The runs of one source. `open_place` opens the datastore in a folder or at an S3 URL.
    `left_out` selects rows that are not listed: aflow's runs that are registered there. Lists are
    cached for `remember` seconds."""

    def __init__(
        self,
        source: RecordSource,
        open_place: Callable[[str], ObjectStore],
        now: Callable[[], float],
        left_out: Callable[[Row], bool],
        remember: float,
    ) -> None:
        self._source = source
        self._open_place = open_place
        self._now = now
        self._left_out = left_out
        self._remember = remember
        self._read: dict[tuple[str, ...], tuple[float, Any]] = {}
        self._memory = SqliteMetadata(":memory:")
        self._keys: dict[_Key, int] = {}
        self._of_key: dict[int, _Key] = {}
        self._loaded: dict[_Key, _Loaded] = {}
        self._stores: dict[str, ObjectStore] = {}
        self._threads = ThreadPoolExecutor(_AT_ONCE, "history")
        self._lock = threading.RLock()

    @property
    def url(self) -> str:
        """The URL of the source, for messages."""
        return self._source.url

    def close(self) -> None:
        """Release threads and connections. Idempotent."""
        self._threads.shutdown()
        self._source.close()
        self._memory.close()

    # ------------------------------------------------------------ lists

    def flows(self) -> list[tuple[str, float]]:
        """Return name and time of creation of every flow, newest first."""
        listed = self._remembered(("flows",), self._source.flows)
        rows = [(str(row["flow_id"]), time_of(row)) for row in listed]
        valid = [row for row in rows if _is(ids.flow_name, row[0])]
        return sorted(valid, key=lambda row: row[1], reverse=True)

    def runs(self, flow: str | None, **which: Any) -> list[RunRecord]:
        """Return the runs of a flow, or of all flows, newest first; see `Records.runs`.

        Args:
            flow: The flow's name; None for all flows.
            **which: The fields of RunFilter.
        """
        wanted = RunFilter(**which)
        if wanted.kind:
            return []
        flows = [name for name, _ in self.flows()] if flow is None else [flow]
        lists = self._threads.map(self._runs_of, flows)
        rows = [row for each in lists for row in each if self._is_listed(row)]
        keyed = [(time_of(row), self._key(str(row["flow_id"]), row), row) for row in rows]
        keyed.sort(key=lambda each: each[:2], reverse=True)
        passing = [
            row
            for at, key, row in keyed
            if wanted.passes(_tags(row), row.get("user_name"), at, key)
        ]
        if not wanted.states:
            return list(self._threads.map(self._light, passing[: wanted.limit]))
        runs = self._threads.map(self._light, passing)
        return list(islice((run for run in runs if run.state in wanted.states), wanted.limit))

    def _runs_of(self, flow: str) -> list[Row]:
        return self._remembered(("runs", flow), lambda: self._source.runs(flow))

    def _remembered(self, what: tuple[str, ...], read: Callable[[], T]) -> T:
        """Return the cached result of `read`, or a new one: servers list runs frequently."""
        until, found = self._read.get(what, (0.0, None))
        if until <= self._now():
            found = read()
            self._read[what] = (self._now() + self._remember, found)
        return cast("T", found)

    def _is_listed(self, row: Row) -> bool:
        return _is(ids.run_id, str(row["run_number"])) and not self._left_out(row)

    def _key(self, flow: str, row: Row) -> int:
        with self._lock:
            key = _Key(flow, str(row["run_number"]))
            if key not in self._keys:
                self._keys[key] = FIRST_KEY + len(self._keys)
                self._of_key[self._keys[key]] = key
            return self._keys[key]

    def _light(self, row: Row) -> RunRecord:
        """Return a run for a list: its state, without its graph."""
        key = _Key(str(row["flow_id"]), str(row["run_number"]))
        end = self._remembered(("end", *key), lambda: self._end(*key))
        state, at = self._state(row, *end)
        settings = {"metaflow": self._source.url}
        return self._record(key, row, state, at, graph={}, settings=settings)

    def _record(
        self, key: _Key, row: Row, state: RunState, finished_at: float | None, **more: Any
    ) -> RunRecord:
        return RunRecord(
            key=self._key(key.flow, row),
            flow=key.flow,
            run=key.run,
            state=state,
            user=str(row.get("user_name") or ""),
            created_at=time_of(row),
            finished_at=finished_at,
            version=0,
            tags=_texts(row, "tags"),
            system_tags=_texts(row, "system_tags"),
            heartbeat_at=_heartbeat(row),
            **more,
        )

    def _end(self, flow: str, run: str) -> tuple[bool | None, float | None]:
        """Return whether the last task of a run has succeeded (None if it has not finished), and
        when it finished."""
        step = _END
        tasks = self._source.tasks(flow, run, step)
        if not tasks:  # the last step may have another name
            for task in self._source.tasks(flow, run, PARAMETERS_STEP):
                rows = self._source.metadata(flow, run, PARAMETERS_STEP, str(task["task_id"]))
                step = next((r["value"] for r in rows if r["field_name"] == "end_step"), _END)
            tasks = self._source.tasks(flow, run, step) if step != _END else []
        for task in tasks:
            rows = self._source.metadata(flow, run, step, str(task["task_id"]))
            ended_well, at = _end_in(rows)
            if ended_well is not None:
                return ended_well, at
        return None, None

    def _state(
        self, row: Row, ended_well: bool | None, at: float | None
    ) -> tuple[RunState, float | None]:
        if ended_well:
            return RunState.SUCCEEDED, at
        last_seen = max(_heartbeat(row) or 0.0, time_of(row))
        if ended_well is None and last_seen > self._now() - _ALIVE:
            return RunState.RUNNING, None
        return RunState.FAILED, at or last_seen

    # ------------------------------------------------------------ one run

    def run(self, flow: str, run: str) -> RunRecord | None:
        """Return one run with its graph, or None if there is none."""
        row = self._source.run(flow, run)
        if row is None or not self._is_listed(row):
            return None
        self._key(flow, row)
        return self._load(_Key(flow, run), row).record

    def _load(self, key: _Key, row: Row | None = None) -> _Loaded:
        with self._lock:
            there = self._loaded.get(key)
            if there is not None and (there.over or there.at + self._remember > self._now()):
                return there
            row = row or self._source.run(*key)
            if row is None:
                raise NotFound(f"The run {key.flow}/{key.run} no longer exists in {self.url}.")
            if there is not None:
                del self._loaded[key]
                self._memory.delete_run(there.key)
            while len(self._loaded) >= _MOST_LOADED:  # a server may show any number of them
                self._memory.delete_run(self._loaded.pop(next(iter(self._loaded))).key)
            try:
                found = _Reading(self, key, row).read()
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
                raise MetadataUnavailable(
                    f"What Metaflow has recorded of the run {key.flow}/{key.run} in {self.url} is "
                    f"damaged ({type(error).__name__}: {error}): Metaflow's own client may read it."
                ) from error
            found.at = self._now()
            self._loaded[key] = found
            return found

    def _there(self, run_key: int) -> _Loaded:
        key = self._of_key.get(run_key)
        if key is None:
            raise NotFound(f"The run no longer exists in {self.url}.")
        return self._loaded.get(key) or self._load(key)

    def name_of(self, flow: str, run: str, task: int) -> str:
        """Return Metaflow's name of a task.

        Args:
            flow: The flow's name, the first part of a pathspec.
            run: The run's name in Metaflow.
            task: The task's number in aflow.
        """
        return self._load(_Key(flow, run)).names.get(task, str(task))

    def tasks_of(self, flow: str, run: str) -> list[tuple[str, int]]:
        """Return step and number of each task of a run.

        Args:
            flow: The flow's name, the first part of a pathspec.
            run: The run's name in Metaflow.
        """
        key = self._load(_Key(flow, run)).key
        return [(v.task.step, v.task.task) for v in self._memory.tasks(key, light=True)]

    def _views(self, run_key: int, views: Iterable[TaskView]) -> Iterator[TaskView]:
        return (view._replace(run_key=run_key) for view in views)

    def tasks(self, run_key: int, **how: Any) -> Iterator[TaskView]:
        """Return tasks with their latest attempts; see `Records.tasks`.

        Args:
            run_key: `RunRecord.key` of the run.
            **how: The options of `Records.tasks`.
        """
        return self._views(run_key, self._memory.tasks(self._there(run_key).key, **how))

    def newest_tasks(self, run_key: int, **how: Any) -> Iterator[TaskView]:
        """Return tasks with their latest attempts, newest first; see `Records.newest_tasks`.

        Args:
            run_key: `RunRecord.key` of the run.
            **how: The options of `Records.newest_tasks`.
        """
        return self._views(run_key, self._memory.newest_tasks(self._there(run_key).key, **how))

    def task(self, run_key: int, task: int, attempt: int | None = None) -> TaskView | None:
        """Return one task with the requested attempt; see `Records.task`."""
        found = self._memory.task(self._there(run_key).key, task, attempt)
        return None if found is None else found._replace(run_key=run_key)

    def __getattr__(self, name: str) -> Any:
        """Return a method that reads a run by its key, and whose results contain no keys."""
        if name not in _BY_KEY:
            raise AttributeError(name)
        method = getattr(self._memory, name)
        return lambda run_key, *args, **more: method(self._there(run_key).key, *args, **more)

    # ------------------------------------------------------------ where values are

    def open_store(self, url: str) -> ObjectStore:
        """Return the object store of a run, for reading.

        Args:
            url: The setting `storage` of the run's record.
        """
        return TheirStore(self, self.place(url.removeprefix(SCHEME)), url)

    def place(self, root: str) -> ObjectStore:
        """Return the object store at a root of Metaflow's datastore; it is opened only once.

        Args:
            root: The folder or S3 URL, from the records of the artifacts.
        """
        if root not in self._stores:
            self._stores[root] = self._open_place(root)
        return self._stores[root]

    def _in_threads(self, call: Callable[[Any], T], values: Iterable[Any]) -> list[T]:
        return list(self._threads.map(call, values))


_BY_KEY = frozenset(
    {
        "all_manifests", "attempts", "journal", "journal_after", "manifests", "metadata",
        "progress", "split_manifests", "steps", "task_columns",
    }
)  # fmt: skip


class _Reading:
    """Reads all records of one run."""

    def __init__(self, history: MetaflowHistory, key: _Key, row: Row) -> None:
        self._history = history
        self._source = history._source
        self._flow, self._run = key
        self._row = row
        self._metadata: defaultdict[Task, list[Row]] = defaultdict(list)
        self._artifacts: defaultdict[Task, dict[int, list[Row]]] = defaultdict(dict)  # by attempt
        for row in self._source.metadata_of_run(*key):
            self._metadata[_task_of(row)].append(row)
        for rows in self._metadata.values():
            _mark_attempts(rows)
        for row in self._source.artifacts(*key):
            attempts = self._artifacts[_task_of(row)]
            attempts.setdefault(number_in(row, "attempt_id"), []).append(row)
        self._root = self._find_root()

    def read(self) -> _Loaded:
        """Load the run into the store in memory."""
        steps = [str(row["step_name"]) for row in self._source.steps(self._flow, self._run)]
        rows = [row for step in steps for row in self._source.tasks(self._flow, self._run, step)]
        tasks = {_task_of(row): row for row in rows}
        self._numbers = theirs.numbered(list(tasks))
        info = self._graph_info()
        self._graph = theirs.graph_of(self._flow, info, [step for step in steps if step[0] != "_"])
        state, at = self._state(tasks)
        names = {str(each.get("name")) for each in (info or {}).get("parameters") or ()}
        record = self._history._record(
            _Key(self._flow, self._run),
            self._row,
            state,
            None,
            graph=self._graph.as_dict(),
            settings={
                "storage": f"{SCHEME}{self._root}",
                "parameters": sorted(names),
                "script": self._fact("script-name") or "",
                "metaflow": self._source.url,
            },
            origin_run=self._origin_run(),
        )
        manifest = Manifest(PARAMETERS_STEP)
        parameters = next((task for task in tasks if task[0] == PARAMETERS_STEP), None)
        if parameters is not None:
            found = self._entries(self._latest(parameters))
            manifest.artifacts = {name: self._previewed(name, e) for name, e in found.items()}
        batch = self._batch(
            {task: row for task, row in tasks.items() if task[0] != PARAMETERS_STEP}
        )
        failed = _failed(batch)
        if failed is not None and not _is_running(batch):
            state, at = RunState.FAILED, at or failed.finished_at
        over = state is not RunState.RUNNING
        reason = failed.reason if failed is not None and state is RunState.FAILED else ""
        batch.run = RunUpdate(state, at if over else None, reason)
        memory = self._history._memory
        made = memory.create_run(record, manifest.encode())
        memory.commit(made.key, 0, batch)
        whole = memory.run(self._flow, self._run)
        assert whole is not None, "it was recorded a moment ago"
        called = {number: id_ for (_, id_), number in self._numbers.items()}
        return _Loaded(made.key, over, called, whole._replace(key=record.key))

    # ------------------------------------------------------------ rows

    def _find_root(self) -> str:
        """Return the root of the datastore with the values of the run; empty if unknown."""
        rows = (row for each in self._artifacts.values() for rows in each.values() for row in rows)
        first = next(rows, None)
        root = self._fact("ds-root") or ""
        if first is not None:
            location = str(first.get("location") or "")
            if location.startswith(":root:"):
                root = location.removeprefix(":root:")
            elif f"/{self._flow}/" in location:  # older versions record a location per value
                root = location.partition(f"/{self._flow}/")[0]
            if str(first.get("ds_type")) == "s3" and "://" not in root:
                root = f"s3://{root.lstrip('/')}"
        folder = self._source.folder
        if folder is not None and not root.startswith("s3://"):
            root = folder  # the recorded folder may have been moved
        return root

    def _fact(self, name: str) -> str | None:
        rows = (row for rows in self._metadata.values() for row in rows)
        found = next((row["value"] for row in rows if row["field_name"] == name), None)
        return None if found in (None, "None") else str(found)

    def _origin_run(self) -> str | None:
        found = self._fact("origin-run-id")
        return found if found and _is(ids.run_id, found) else None

    def _latest(self, task: Task) -> list[Row]:
        attempts = self._artifacts.get(task)
        return attempts[max(attempts)] if attempts else []

    def _entries(self, rows: Iterable[Row]) -> dict[str, Entry]:
        found = {}
        for row in rows:
            name, sha = str(row["name"]), str(row.get("sha") or "")
            if not _is(ids.artifact_name, name) or not sha.isalnum():
                continue
            size = number_in(row, "size")
            kind = str(row.get("of_type") or "").removeprefix("<class '").removesuffix("'>")
            encoding = str(row.get("content_type") or "gzip+pickle-v2")
            if not encoding.startswith(("gzip+pickle", "pickle")):
                encoding = "gzip+pickle-v2"
            blob = (layout.data_name(self._flow, sha), size)
            found[name] = Entry(
                encoding=encoding, size=size, type=kind, preview={}, inline=None, blobs=(blob,)
            )
        return found

    def _log(self, task: Task, attempt: int) -> LogBuffer:
        try:
            store = self._history.place(self._root)
        except AflowError:  # the run is shown even if its datastore is not available
            return LogBuffer(1)
        return read_theirs(store, (self._flow, self._run, *task), attempt)

    def _previewed(self, name: str, entry: Entry) -> Entry:
        """Return the entry of a parameter, with a preview if the value is plain and small."""
        if name.startswith("_") or entry.size > _SHOWN:
            return entry
        kind, facts = preview(self._value(entry))
        return entry._replace(preview=facts) if kind == entry.type else entry

    def _value(self, entry: Entry | None) -> Any:
        """Return an artifact's value from Metaflow's datastore; None if missing or unreadable."""
        if entry is None:
            return None
        try:
            name = entry.blobs[0][0]
            place = self._history.place(self._root)
            return theirs.plain(gunzipped(place.get(name), name))
        except AflowError:
            return None

    def _graph_info(self) -> Any:
        for attempts in self._artifacts.values():
            for rows in attempts.values():
                found = [row for row in rows if row["name"] == "_graph_info"]
                if entries := self._entries(found):
                    return self._value(entries["_graph_info"])
        return None

    # ------------------------------------------------------------ records

    def _state(self, tasks: Iterable[Task]) -> tuple[RunState, float | None]:
        rows = (row for task in tasks if task[0] == self._graph.end for row in self._rows_of(task))
        return self._history._state(self._row, *_end_in(rows))

    def _rows_of(self, task: Task) -> Sequence[Row]:
        """Return the metadata of a task."""
        return self._metadata.get(task, ())

    def _batch(self, tasks: Mapping[Task, Row]) -> Batch:
        in_threads = self._history._in_threads
        self._left = {task: self._entries(self._latest(task)) for task in tasks}
        paths = {
            (task[0], self._numbers[task]): path
            for task, path in zip(tasks, in_threads(self._path, tasks), strict=True)
        }
        opening = [
            task
            for task in tasks
            if (node := self._graph.nodes.get(task[0])) and node.kind in theirs.OPENS_ITEMS
        ]
        self._counts = {
            self._numbers[task]: count
            for task, count in zip(opening, in_threads(self._count, opening), strict=True)
            if count is not None
        }
        positions = theirs.MetaflowPositions(self._graph, paths, self._counts)
        batch = Batch()
        for task, attempts in zip(tasks, in_threads(self._attempts, tasks), strict=True):
            number = self._numbers[task]
            position = positions.of(task[0], number)
            for each in attempts:
                manifest = self._manifest(task, each)
                if manifest is not None:
                    path = paths[task[0], number]
                    manifest.stack = _frames(self._graph, task[0], path, position.split)
                    each = each._replace(manifest=manifest.encode())
                batch.attempts.append(each)
            batch.tasks.append(
                TaskRecord(
                    task=number,
                    step=task[0],
                    created_at=time_of(tasks[task]),
                    split=position.split,
                    index=position.index,
                    inputs=encode_inputs(position.inputs),
                    origin=self._origin(task),
                )
            )
            batch.metadata += self._facts(task)
        return batch

    def _origin(self, task: Task) -> str:
        facts = {row["field_name"]: str(row["value"]) for row in self._rows_of(task)}
        run, origin = facts.get("origin-run-id"), facts.get("origin-task-id")
        # An id that is not a number does not identify a task in aflow.
        if not run or not origin or not origin.isdecimal() or not _is(ids.run_id, run):
            return ""
        return f"{run}/{task[0]}/{origin}"

    def _facts(self, task: Task) -> list[MetadataRecord]:
        number = self._numbers[task]
        found = [
            MetadataRecord(
                task=number,
                attempt=_attempt_of(row),
                field=str(row["field_name"]),
                value=str(row["value"]),
                type=str(row.get("type") or row["field_name"]),
                created_at=time_of(row),
            )
            for row in self._rows_of(task)
            if row["field_name"] not in _DESCRIBED
        ]
        if task[1] != str(number):
            name, at = "metaflow-task-id", time_of(self._row)
            found.append(
                MetadataRecord(
                    task=number, attempt=0, field=name, value=task[1], type=name, created_at=at
                )
            )
        return found

    def _path(self, task: Task) -> theirs.Path:
        node = self._graph.nodes.get(task[0])
        found = theirs.path_of(
            (row["field_name"], str(row["value"])) for row in self._rows_of(task)
        )
        if found is not None or node is None or not node.splits:
            return found or ()
        stack = self._value(self._left[task].get("_foreach_stack"))
        return tuple(int(frame.index or 0) for frame in stack or ())

    def _count(self, task: Task) -> int | None:
        """Return the number of items that a task has opened; None if unknown."""
        value = self._value(self._left[task].get("_foreach_num_splits"))
        return value if isinstance(value, int) else None

    def _attempts(self, task: Task) -> list[AttemptRecord]:
        rows: defaultdict[int, list[Row]] = defaultdict(list)
        for row in self._rows_of(task):
            rows[_attempt_of(row)].append(row)
        attempts = sorted({*rows, *(self._artifacts.get(task) or ())}) or [0]
        return [self._attempt(task, each, rows.get(each, ())) for each in attempts]

    def _attempt(self, task: Task, attempt: int, rows: Sequence[Row]) -> AttemptRecord:
        started = min(map(time_of, rows), default=time_of(self._row))
        ended_well, at = _end_in(rows)
        state, reason = AttemptState.RUNNING, ""
        if ended_well:
            state = AttemptState.SUCCEEDED
        elif ended_well is not None:
            state = AttemptState.FAILED
            error = self._exception(task, attempt)
            reason = f"{error['type']}: {error['message']}" if error else "The task failed."
        elif self._history._state(self._row, None, None)[0] is not RunState.RUNNING:
            state, at = AttemptState.LOST, started
            reason = "Metaflow has recorded no end of the task."
        log = self._log(task, attempt)
        return AttemptRecord(
            task=self._numbers[task],
            attempt=attempt,
            state=state,
            started_at=started,
            finished_at=at,
            reason=reason,
            log=log.take_chunk(),
            stdout_size=log.stdout_size,
            stderr_size=log.stderr_size,
        )

    def _exception(self, task: Task, attempt: int) -> dict[str, Any] | None:
        rows = (self._artifacts.get(task) or {}).get(attempt, [])
        found = self._value(self._entries(rows).get("_exception"))
        if found is None:
            return None
        module, _, kind = str(getattr(found, "type", "Exception")).rpartition(".")
        return {
            "type": kind,
            "module": module or "builtins",
            "message": str(getattr(found, "exception", "")),
            "traceback": str(getattr(found, "stacktrace", "") or ""),
            "caught": False,
        }

    def _manifest(self, task: Task, attempt: AttemptRecord) -> Manifest | None:
        if attempt.state not in (AttemptState.SUCCEEDED, AttemptState.FAILED):
            return None
        attempts = self._artifacts.get(task) or {}
        if not attempts or attempt.attempt == max(attempts):
            entries = self._left[task]
        else:
            entries = self._entries(attempts.get(attempt.attempt, ()))
        node = self._graph.nodes.get(task[0])
        manifest = Manifest(task[0], entries)
        if attempt.state is AttemptState.FAILED:
            manifest.error = self._exception(task, attempt.attempt)
        elif node is not None:
            steps: tuple[str, ...] = node.next
            if node.kind is Kind.SWITCH:
                taken = self._value(entries.get("_transition"))
                steps = tuple(taken[0]) if taken else steps
            opens_items = node.kind in theirs.OPENS_ITEMS
            count = self._counts.get(attempt.task, 0) if opens_items else None
            manifest.transition = (steps, node.foreach, count)
        return manifest


def _failed(batch: Batch) -> AttemptRecord | None:
    """Return the failed attempt of the first task whose latest attempt has failed, or None."""
    latest = {each.task: each for each in batch.attempts}
    return next((a for a in latest.values() if a.state is AttemptState.FAILED), None)


def _is_running(batch: Batch) -> bool:
    """Return whether there are unfinished attempts."""
    return any(each.state is AttemptState.RUNNING for each in batch.attempts)


def _frames(
    graph: Graph, step: str, path: theirs.Path, split: int | None
) -> tuple[ForeachFrame, ...]:
    node = graph.nodes.get(step)
    openers = [] if node is None else theirs.openers_of(graph, node)
    return tuple(
        ForeachFrame(
            step=each,
            var=graph[each].foreach or "",
            num_splits=None,
            index=index,
            value="",
            split=split or 0,
        )
        for each, index in zip(openers, path, strict=False)
    )


# ------------------------------------------------------------------ values, logs, cards


def read_theirs(place: ObjectStore, task: Sequence[str], attempt: int) -> LogBuffer:
    """Return the output of an attempt, from its log files in Metaflow's datastore.

    Args:
        place: Metaflow's datastore.
        task: Flow, run, step and task, with Metaflow's names.
        attempt: The number of the attempt, from 0.
    """
    found: list[LogRecord] = []
    for stream in STREAMS:
        for source in layout.SOURCES:
            name = "/".join((*task, f"{attempt}.{source}_{stream}.log"))
            try:
                if place.size(name) is not None:
                    found += layout.log_records(place.get(name), stream)
            except (AflowError, OSError):  # missing logs are treated as empty
                continue
    buffer = LogBuffer(1 << 40)
    for record in sorted(found, key=lambda each: each.at):
        buffer.add(record.at, STREAMS.index(record.stream), record.text)
    return buffer


class TheirStore:
    """The read-only object store of a run of Metaflow's. Values have their names there; cards have
    the names that aflow gives them."""

    def __init__(self, history: MetaflowHistory, place: ObjectStore, url: str) -> None:
        self._history = history
        self._place = place
        self.url = url

    def get(self, name: str, start: int = 0, length: int | None = None) -> Buffer:
        """Return the bytes of an object; see `ObjectStore`."""
        return self._place.get(self._theirs(name), start, length)

    def size(self, name: str) -> int | None:
        """Return the size of an object in bytes; see `ObjectStore`."""
        return self._place.size(self._theirs(name))

    def list(self, prefix: str) -> Iterator[str]:
        """Return the names with a prefix; names of cards are translated to aflow's."""
        parts = prefix.rstrip("/").split("/")
        if parts[0] == "cards" and len(parts) == 3:
            tasks = self._history.tasks_of(*parts[1:])
            folders = (f"{'/'.join(parts)}/{step}/{task}/" for step, task in tasks)
            return (name for folder in folders for name in self.list(folder))
        if parts[0] != "cards" or len(parts) != 5:
            return self._place.list(prefix)
        folder = self._folder(*parts[1:])
        found = []
        for number, name in enumerate(self._place.list(folder)):
            kind, *id_, digest = name.rpartition("/")[2].removesuffix(".html").split("-")
            card_id = "_".join(id_)
            found.append(f"{prefix.rstrip('/')}/{number}-{kind}-{card_id}-{digest}.html")
        return iter(found)

    def _folder(self, flow: str, run: str, step: str, task: str) -> str:
        name = self._history.name_of(flow, run, int(task))
        return f"mf.cards/{layout.card_folder(flow, run, step, name)}"

    def _theirs(self, name: str) -> str:
        parts = name.split("/")
        if parts[0] != "cards" or len(parts) != 6:
            return name
        folder = self._folder(*parts[1:5])
        kind, id_, digest = parts[5].partition("-")[2].removesuffix(".html").rsplit("-", 2)
        return f"{folder}{'-'.join(filter(None, (kind, id_, digest)))}.html"

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise StoreUnavailable(f"What Metaflow has left in {self.url} is read, and never changed.")

    put = batch = put_if_absent = delete = touch = remove_untouched = sweep = _refuse


def _heartbeat(row: Row) -> float | None:
    beat = row.get("last_heartbeat_ts")
    return shown_time(beat) if beat and isinstance(beat, int | float) else None


def _texts(row: Row, name: str) -> tuple[str, ...]:
    found = row.get(name)
    return tuple(sorted(map(str, filter(None, found)))) if isinstance(found, list) else ()


def _tags(row: Row) -> set[str]:
    return {*_texts(row, "tags"), *_texts(row, "system_tags")}


def _task_of(row: Row) -> Task:
    return str(row["step_name"]), str(row["task_id"])


def _end_in(rows: Iterable[Row]) -> tuple[bool | None, float | None]:
    """Return whether the last finished attempt has succeeded, and when it finished; None for both
    if none has finished."""
    ends = [row for row in rows if row["field_name"] == "attempt_ok"]
    return (str(ends[-1]["value"]) == "True", time_of(ends[-1])) if ends else (None, None)


def _mark_attempts(rows: list[Row]) -> None:
    """Set the attempt of each row: from its tag or, if a service returns the tags of the run
    instead, from its time."""
    rows.sort(key=time_of)
    begun = [
        (time_of(row), number_in(row, "value")) for row in rows if row["field_name"] == "attempt"
    ]
    for row in rows:
        tagged = next(
            (tag[11:] for tag in _texts(row, "tags") if tag.startswith("attempt_id:")), ""
        )
        at = time_of(row)
        by_time = max((number for time, number in begun if time <= at), default=0)
        row["attempt"] = int(tagged) if tagged.isdecimal() else by_time


def _attempt_of(row: Row) -> int:
    return number_in(row, "attempt")


def _is(check: Callable[[str], object], value: str) -> bool:
    try:
        check(value)
    except InvalidName:
        return False
    return True
