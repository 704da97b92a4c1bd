"""What Metaflow has recorded, as a metadata store of aflow's that can only be read.

Lists of runs cost a few requests each. When a run itself is asked for, its records are put into a
store in memory, which answers all that is asked of it then. Values, logs and cards stay where they
are, and are read by `open_store`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar, cast

from aflow._core import ids
from aflow._core.records import NamedTuple, dataclass, field
from aflow.errors import AflowError, InvalidName, NotFound, StoreUnavailable
from aflow.flow.graph import Graph
from aflow.metadata.base import (
    FIRST_KEY,
    MARK,
    AttemptRecord,
    Batch,
    MetadataRecord,
    RunRecord,
    RunUpdate,
    TaskRecord,
)
from aflow.metadata.metaflow import layout, theirs
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
SCHEME = MARK

_ALIVE = 60.0  # seconds after a heartbeat in which a run counts as running
_AT_ONCE = 16  # calls
_MOST_LOADED = 200  # runs
_SHOWN = 10_000  # bytes of a parameter
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


class _RunFilter(NamedTuple):
    """Which runs are asked for, as MetadataStore.runs has it."""

    tags: Sequence[str] = ()
    states: Sequence[RunState] = ()
    users: Sequence[str] = ()
    since: float | None = None
    until: float | None = None
    after: tuple[float, int] | None = None
    limit: int | None = None
    kind: str = ""

    def passes(self, row: Row, at: float, key: int) -> bool:
        """Whether a run of this time of creation and key is asked for, but for its state."""
        return (
            set(self.tags) <= {*_texts(row, "tags"), *_texts(row, "system_tags")}
            and (not self.users or row.get("user_name") in self.users)
            and (self.since is None or at >= self.since)
            and (self.until is None or at < self.until)
            and (self.after is None or (at, key) < self.after)
        )


@dataclass(slots=True)
class _Loaded:
    """A run in memory: its key there, whether it was over, what its tasks are called, and when it
    was read."""

    key: int
    over: bool
    names: Mapping[int, str]
    record: RunRecord = field(repr=False)
    at: float = 0.0


class MetaflowHistory:
    """The runs of one source. `open_place` opens the object store of a folder or a place in S3.
    `left_out` says which runs are not listed: those of aflow's own that are registered there.
    `remember` are the seconds for which lists are not read again."""

    def __init__(
        self,
        source: RecordSource,
        open_place: Callable[[str], ObjectStore],
        now: Callable[[], float],
        left_out: Callable[[Row], bool] = lambda _: False,
        remember: float = 0.0,
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
        """Where it is, for people."""
        return self._source.url

    def close(self) -> None:
        """Release everything. May be called twice."""
        self._threads.shutdown()
        self._source.close()
        self._memory.close()

    # ------------------------------------------------------------ lists

    def flows(self) -> list[tuple[str, float]]:
        """Name and time of creation of every flow, newest first."""
        listed = self._remembered(("flows",), self._source.flows)
        rows = [(str(row["flow_id"]), _time(row)) for row in listed]
        valid = [row for row in rows if _is(ids.flow_name, row[0])]
        return sorted(valid, key=lambda row: row[1], reverse=True)

    def runs(self, flow: str | None, **which: Any) -> list[RunRecord]:
        """Return the runs of the flow, or of all, newest first; see MetadataStore for what may be
        asked for.

        Args:
            flow: The name of the flow; None for all.
            **which: The options of the port.
        """
        wanted = _RunFilter(**which)
        if wanted.kind:
            return []
        flows = [name for name, _ in self.flows()] if flow is None else [flow]
        lists = self._threads.map(self._runs_of, flows)
        rows = [row for each in lists for row in each if self._is_listed(row)]
        keyed = [(_time(row), self._key(str(row["flow_id"]), row), row) for row in rows]
        keyed.sort(key=lambda each: each[:2], reverse=True)
        passing = [row for at, key, row in keyed if wanted.passes(row, at, key)]
        if not wanted.states:
            return list(self._threads.map(self._light, passing[: wanted.limit]))
        runs = self._threads.map(self._light, passing)
        found = (run for run in runs if run.state in wanted.states)
        return [run for run, _ in zip(found, _up_to(wanted.limit), strict=False)]

    def _runs_of(self, flow: str) -> list[Row]:
        return self._remembered(("runs", flow), lambda: self._source.runs(flow))

    def _remembered(self, what: tuple[str, ...], read: Callable[[], T]) -> T:
        """What was read a moment ago, or is read now: a server lists runs again and again."""
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
        """A run as lists have it: how it stands, without its graph."""
        flow, run = str(row["flow_id"]), str(row["run_number"])
        end = self._remembered(("end", flow, run), lambda: self._end(flow, run))
        state, at = self._state(row, *end)
        return RunRecord(
            key=self._key(flow, row),
            flow=flow,
            run=run,
            state=state,
            user=str(row.get("user_name") or ""),
            created_at=_time(row),
            finished_at=at,
            version=0,
            tags=_texts(row, "tags"),
            system_tags=_texts(row, "system_tags"),
            graph={},
            settings={"metaflow": self._source.url},
            heartbeat_at=_heartbeat(row),
        )

    def _end(self, flow: str, run: str) -> tuple[bool | None, float | None]:
        """Whether the last task of a run has ended well (None: it has not ended), and when."""
        step = _END
        tasks = self._source.tasks(flow, run, step)
        if not tasks:  # the last step may have another name
            for task in self._source.tasks(flow, run, "_parameters"):
                said = self._source.metadata(flow, run, "_parameters", str(task["task_id"]))
                step = next((r["value"] for r in said if r["field_name"] == "end_step"), _END)
            tasks = self._source.tasks(flow, run, step) if step != _END else []
        for task in tasks:
            said = self._source.metadata(flow, run, step, str(task["task_id"]))
            oks = [row for row in said if row["field_name"] == "attempt_ok"]
            if oks:
                return str(oks[-1]["value"]) == "True", _time(oks[-1])
        return None, None

    def _state(
        self, row: Row, ended_well: bool | None, at: float | None
    ) -> tuple[RunState, float | None]:
        if ended_well:
            return RunState.SUCCEEDED, at
        heard = max(_heartbeat(row) or 0.0, _time(row))
        if ended_well is None and heard > self._now() - _ALIVE:
            return RunState.RUNNING, None
        return RunState.FAILED, at or heard

    # ------------------------------------------------------------ one run

    def run(self, flow: str, run: str) -> RunRecord | None:
        """One run, whole; None where there is none."""
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
            while len(self._loaded) >= _MOST_LOADED:  # a server may show any number of runs
                self._memory.delete_run(self._loaded.pop(next(iter(self._loaded))).key)
            found = _Reading(self, key, row).read()
            found.at = self._now()
            self._loaded[key] = found
            return found

    def _there(self, run_key: int) -> _Loaded:
        key = self._of_key.get(run_key)
        if key is None:
            raise NotFound(f"The run no longer exists in {self.url}.")
        return self._loaded.get(key) or self._load(key)

    def name_of(self, flow: str, run: str, task: int) -> str:
        """Return what Metaflow calls a task, which has this number here.

        Args:
            flow: The name of the flow.
            run: The id of the run.
            task: The number of the task within its run.
        """
        return self._load(_Key(flow, run)).names.get(task, str(task))

    def tasks_of(self, flow: str, run: str) -> list[tuple[str, int]]:
        """Return the steps and numbers of the tasks of a run.

        Args:
            flow: The name of the flow.
            run: The id of the run.
        """
        key = self._load(_Key(flow, run)).key
        return [(v.task.step, v.task.task) for v in self._memory.tasks(key, light=True)]

    def _views(self, run_key: int, views: Iterable[TaskView]) -> Iterator[TaskView]:
        return (view._replace(run_key=run_key) for view in views)

    def tasks(self, run_key: int, **how: Any) -> Iterator[TaskView]:
        """Return tasks with their latest attempts; see MetadataStore.

        Args:
            run_key: The key of the run in the metadata store.
            **how: The options of the port.
        """
        return self._views(run_key, self._memory.tasks(self._there(run_key).key, **how))

    def newest_tasks(self, run_key: int, **how: Any) -> Iterator[TaskView]:
        """Return tasks with their latest attempts, the newest first; see MetadataStore.

        Args:
            run_key: The key of the run in the metadata store.
            **how: The options of the port.
        """
        return self._views(run_key, self._memory.newest_tasks(self._there(run_key).key, **how))

    def task(self, run_key: int, task: int, attempt: int | None = None) -> TaskView | None:
        """One task; see MetadataStore."""
        found = self._memory.task(self._there(run_key).key, task, attempt)
        return None if found is None else found._replace(run_key=run_key)

    def __getattr__(self, name: str) -> Any:
        """What reads a run by its key, and tells of no key."""
        if name not in _BY_KEY:
            raise AttributeError(name)
        method = getattr(self._memory, name)
        return lambda run_key, *args, **more: method(self._there(run_key).key, *args, **more)

    # ------------------------------------------------------------ where values lie

    def open_store(self, url: str) -> ObjectStore:
        """Return the object store of a run, by the URL that its record has.

        Args:
            url: The URL in the record of the run.
        """
        return TheirStore(self, self.place(url.removeprefix(SCHEME)), url)

    def place(self, root: str) -> ObjectStore:
        """Return the object store at a root of Metaflow's datastore. It is opened once.

        Args:
            root: The root, as the artifacts' records name it.
        """
        if root not in self._stores:
            self._stores[root] = self._open_place(root)
        return self._stores[root]

    def in_threads(self, call: Callable[[Any], Any], values: Iterable[Any]) -> list[Any]:
        """Return the results of a call for many values, in their order, made in several threads.

        Args:
            call: The call, which blocks.
            values: Its arguments.
        """
        return list(self._threads.map(call, values))

    @property
    def source(self) -> RecordSource:
        """Where the rows come from."""
        return self._source

    @property
    def memory(self) -> SqliteMetadata:
        """Where runs are that were read."""
        return self._memory


_BY_KEY = frozenset(
    {
        "all_manifests", "attempts", "journal", "journal_after", "manifests", "metadata",
        "progress", "split_manifests", "steps", "task_columns",
    }
)  # fmt: skip


class _Reading:
    """Reads one run whole."""

    def __init__(self, history: MetaflowHistory, key: _Key, row: Row) -> None:
        self._history = history
        self._source = history.source
        self._flow, self._run = key
        self._row = row
        self._key = history._key(key.flow, row)
        self._said: dict[tuple[str, str], list[Row]] = {}
        self._left: dict[tuple[str, str], dict[int, list[Row]]] = {}
        self._place: ObjectStore | None = None
        self._root = ""

    def read(self) -> _Loaded:
        """The run, in memory."""
        steps = [str(row["step_name"]) for row in self._source.steps(self._flow, self._run)]
        rows = [row for step in steps for row in self._source.tasks(self._flow, self._run, step)]
        tasks = {(str(row["step_name"]), str(row["task_id"])): row for row in rows}
        self._gather()
        self._find_root()
        numbers = theirs.numbered(list(tasks))
        info = self._internal("_graph_info", self._left)
        graph = theirs.graph_of(self._flow, info, [step for step in steps if step[0] != "_"])
        state, at = self._state(graph, tasks)
        names = {str(each.get("name")) for each in (info or {}).get("parameters") or ()}
        record = RunRecord(
            key=0,
            flow=self._flow,
            run=self._run,
            state=state,
            user=str(self._row.get("user_name") or ""),
            created_at=_time(self._row),
            finished_at=None,
            version=0,
            tags=_texts(self._row, "tags"),
            system_tags=_texts(self._row, "system_tags"),
            graph=graph.as_dict(),
            settings={
                "storage": f"{SCHEME}{self._root}",
                "parameters": sorted(names),
                "script": self._fact("script-name") or "",
                "metaflow": self._source.url,
            },
            heartbeat_at=_heartbeat(self._row),
            origin_run=self._origin_run(),
        )
        parameters = next(((k, n) for k, n in numbers.items() if k[0] == "_parameters"), None)
        manifest = Manifest("_parameters")
        if parameters is not None:
            found = self._entries(self._latest(parameters[0]))
            manifest.artifacts = {name: self._previewed(name, e) for name, e in found.items()}
        made = self._history.memory.create_run(record, manifest.encode())
        batch = self._batch(graph, tasks, numbers)
        failed = _failed(batch)
        if failed is not None and not _goes_on(batch):
            state, at = RunState.FAILED, at or failed.finished_at
        over = state is not RunState.RUNNING
        reason = failed.reason if failed is not None and state is RunState.FAILED else ""
        batch.run = RunUpdate(state, at if over else None, reason)
        self._history.memory.commit(made.key, 0, batch)
        whole = self._history.memory.run(self._flow, self._run)
        assert whole is not None, "it was recorded a moment ago"
        called = {number: id_ for (_, id_), number in numbers.items()}
        return _Loaded(made.key, over, called, whole._replace(key=self._key))

    # ------------------------------------------------------------ rows

    def _gather(self) -> None:
        for row in self._source.metadata_of_run(self._flow, self._run):
            place = str(row["step_name"]), str(row["task_id"])
            self._said.setdefault(place, []).append(row)
        for rows in self._said.values():
            _mark_attempts(rows)
        for row in self._source.artifacts(self._flow, self._run):
            place = str(row["step_name"]), str(row["task_id"])
            attempts = self._left.setdefault(place, {})
            attempts.setdefault(int(row.get("attempt_id") or 0), []).append(row)

    def _find_root(self) -> None:
        """Where the values of the run lie."""
        rows = (row for each in self._left.values() for rows in each.values() for row in rows)
        first = next(rows, None)
        root = self._fact("ds-root") or ""
        if first is not None:
            location = str(first.get("location") or "")
            kind, said = str(first.get("ds_type")), location.removeprefix(":root:")
            if location.startswith(":root:"):
                root = said
            elif f"/{self._flow}/" in location:  # older versions name each value
                root = location.partition(f"/{self._flow}/")[0]
            if kind == "s3" and "://" not in root:
                root = f"s3://{root.lstrip('/')}"
        folder = self._source.folder
        if folder is not None and not root.startswith("s3://"):
            root = folder  # which may have been moved
        self._root = root

    def _fact(self, name: str) -> str | None:
        values = (
            row["value"]
            for rows in self._said.values()
            for row in rows
            if row["field_name"] == name
        )
        found = next(values, None)
        return None if found in (None, "None") else str(found)

    def _origin_run(self) -> str | None:
        found = self._fact("origin-run-id")
        return found if found and _is(ids.run_id, found) else None

    def _latest(self, place: tuple[str, str]) -> list[Row]:
        attempts = self._left.get(place) or {}
        return attempts[max(attempts)] if attempts else []

    def _entries(self, rows: Iterable[Row]) -> dict[str, Entry]:
        found = {}
        for row in rows:
            name, sha = str(row["name"]), str(row.get("sha") or "")
            if not _is(ids.artifact_name, name) or not sha.isalnum():
                continue
            size = int(row.get("size") or 0)
            kind = str(row.get("of_type") or "").removeprefix("<class '").removesuffix("'>")
            encoding = str(row.get("content_type") or "gzip+pickle-v2")
            if not encoding.startswith(("gzip+pickle", "pickle")):
                encoding = "gzip+pickle-v2"
            blob = (layout.data_name(self._flow, sha), size)
            found[name] = Entry(
                encoding=encoding, size=size, type=kind, preview={}, inline=None, blobs=(blob,)
            )
        return found

    def _log(self, place: tuple[str, str], attempt: int) -> LogBuffer:
        try:
            store = self._history.place(self._root)
        except AflowError:  # a run is shown though nothing of what it has left can be read here
            return LogBuffer(1)
        return read_theirs(store, (self._flow, self._run, *place), attempt)

    def _previewed(self, name: str, entry: Entry) -> Entry:
        """The entry of a parameter, with what lists show of it: of plain, small values alone."""
        if name.startswith("_") or entry.size > _SHOWN:
            return entry
        value = self._value(entry)
        kind, facts = preview(value)
        return entry._replace(preview=facts) if kind == entry.type else entry

    def _value(self, entry: Entry) -> Any:
        """A value that Metaflow itself keeps; None where it cannot be read."""
        try:
            name = entry.blobs[0][0]
            place = self._history.place(self._root)
            return theirs.plain(gunzipped(place.get(name), name))
        except AflowError:
            return None

    def _internal(self, name: str, left: Mapping[Any, Mapping[int, list[Row]]]) -> Any:
        for attempts in left.values():
            for rows in attempts.values():
                entry = self._entries(row for row in rows if row["name"] == name).get(name)
                if entry is not None:
                    return self._value(entry)
        return None

    # ------------------------------------------------------------ records

    def _state(
        self, graph: Graph, tasks: Mapping[tuple[str, str], Row]
    ) -> tuple[RunState, float | None]:
        oks = [
            row
            for place in tasks
            if place[0] == graph.end
            for row in self._said.get(place, ())
            if row["field_name"] == "attempt_ok"
        ]
        ended = (str(oks[-1]["value"]) == "True", _time(oks[-1])) if oks else (None, None)
        return self._history._state(self._row, *ended)

    def _batch(
        self, graph: Graph, tasks: Mapping[tuple[str, str], Row], numbers: Mapping[Any, int]
    ) -> Batch:
        places = [place for place in tasks if place[0] != "_parameters"]
        entries = {place: self._entries(self._latest(place)) for place in places}
        paths = self._paths(graph, places, entries, numbers)
        counts = self._counts(graph, places, entries, numbers)
        standing = theirs.MetaflowPositions(graph, paths, counts)
        batch = Batch()
        known = self._history.in_threads(
            lambda place: self._attempts(place, numbers[place], graph, entries[place], counts),
            places,
        )
        for place, attempts in zip(places, known, strict=True):
            number = numbers[place]
            stands = standing.standing(place[0], number)
            for each in attempts:
                manifest = self._manifest(place, each, graph, entries[place], counts, number)
                frames = _frames(graph, place[0], paths[place[0], number], stands.split)
                if manifest is not None:
                    manifest.stack = frames
                    each = each._replace(manifest=manifest.encode())
                batch.attempts.append(each)
            batch.tasks.append(
                TaskRecord(
                    task=number,
                    step=place[0],
                    created_at=_time(tasks[place]),
                    split=stands.split,
                    index=stands.index,
                    inputs=encode_inputs(stands.inputs),
                    origin=self._origin(place),
                )
            )
            batch.metadata += self._facts(place, number)
        return batch

    def _origin(self, place: tuple[str, str]) -> str:
        said = {row["field_name"]: str(row["value"]) for row in self._said.get(place, ())}
        run, task = said.get("origin-run-id"), said.get("origin-task-id")
        # Without a number it is a task that aflow knows by another name.
        if not run or not task or not task.isdigit() or not _is(ids.run_id, run):
            return ""
        return f"{run}/{place[0]}/{task}"

    def _facts(self, place: tuple[str, str], number: int) -> list[MetadataRecord]:
        found = [
            MetadataRecord(
                task=number,
                attempt=_attempt_of(row),
                field=str(row["field_name"]),
                value=str(row["value"]),
                type=str(row.get("type") or row["field_name"]),
                created_at=_time(row),
            )
            for row in self._said.get(place, ())
            if row["field_name"] not in _DESCRIBED
        ]
        if place[1] != str(number):
            at = _time(self._row)
            name = "metaflow-task-id"
            found.append(
                MetadataRecord(
                    task=number, attempt=0, field=name, value=place[1], type=name, created_at=at
                )
            )
        return found

    def _paths(
        self,
        graph: Graph,
        places: Sequence[tuple[str, str]],
        entries: Mapping[tuple[str, str], Mapping[str, Entry]],
        numbers: Mapping[Any, int],
    ) -> dict[tuple[str, int], theirs.Path]:
        def path(place: tuple[str, str]) -> theirs.Path:
            said = self._said.get(place, ())
            node = graph.nodes.get(place[0])
            found = theirs.path_of((row["field_name"], str(row["value"])) for row in said)
            if found is not None or node is None or not node.splits:
                return found or ()
            entry = entries[place].get("_foreach_stack")
            stack = self._value(entry) if entry is not None else None
            return tuple(int(frame.index or 0) for frame in stack or ())

        found = self._history.in_threads(path, places)
        return {
            (step, numbers[step, id_]): each
            for (step, id_), each in zip(places, found, strict=True)
        }

    def _counts(
        self,
        graph: Graph,
        places: Sequence[tuple[str, str]],
        entries: Mapping[tuple[str, str], Mapping[str, Entry]],
        numbers: Mapping[Any, int],
    ) -> dict[int, int]:
        """How many items tasks have opened."""
        opening = [
            place
            for place in places
            if (node := graph.nodes.get(place[0])) and node.kind in theirs._OPENS_ITEMS
        ]

        def count(place: tuple[str, str]) -> int | None:
            entry = entries[place].get("_foreach_num_splits")
            value = self._value(entry) if entry is not None else None
            return value if isinstance(value, int) else None

        found = self._history.in_threads(count, opening)
        return {
            numbers[place]: each
            for place, each in zip(opening, found, strict=True)
            if each is not None
        }

    def _attempts(
        self,
        place: tuple[str, str],
        number: int,
        graph: Graph,
        entries: Mapping[str, Entry],
        counts: Mapping[int, int],
    ) -> list[AttemptRecord]:
        said = self._said.get(place, ())
        begun: dict[int, float] = {}
        ended: dict[int, tuple[bool, float]] = {}
        for row in said:
            attempt = _attempt_of(row)
            begun[attempt] = min(begun.get(attempt, _time(row)), _time(row))
            if row["field_name"] == "attempt_ok":
                ended[attempt] = str(row["value"]) == "True", _time(row)
        attempts = sorted({*begun, *ended, *(self._left.get(place) or ())}) or [0]
        return [self._attempt(place, number, each, begun, ended) for each in attempts]

    def _attempt(
        self,
        place: tuple[str, str],
        number: int,
        attempt: int,
        begun: Mapping[int, float],
        ended: Mapping[int, tuple[bool, float]],
    ) -> AttemptRecord:
        well, at = ended.get(attempt, (None, None))
        started = begun.get(attempt, _time(self._row))
        state = AttemptState.RUNNING
        if well is not None:
            state = AttemptState.SUCCEEDED if well else AttemptState.FAILED
        elif self._history._state(self._row, None, None)[0] is not RunState.RUNNING:
            state, at = AttemptState.LOST, started
        log = self._log(place, attempt)
        reason = ""
        if state is AttemptState.FAILED:
            reason = self._reason(place, attempt)
        elif state is AttemptState.LOST:
            reason = "Metaflow has recorded no end of the task."
        return AttemptRecord(
            task=number,
            attempt=attempt,
            state=state,
            started_at=started,
            finished_at=at,
            reason=reason,
            log=log.take_chunk(),
            stdout_size=log.stdout_size,
            stderr_size=log.stderr_size,
        )

    def _exception(self, place: tuple[str, str], attempt: int) -> dict[str, Any] | None:
        rows = (self._left.get(place) or {}).get(attempt, [])
        entry = self._entries(rows).get("_exception")
        found = None if entry is None else self._value(entry)
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

    def _reason(self, place: tuple[str, str], attempt: int) -> str:
        error = self._exception(place, attempt)
        if error is None:
            return "The task failed."
        return f"{error['type']}: {error['message']}"

    def _manifest(
        self,
        place: tuple[str, str],
        attempt: AttemptRecord,
        graph: Graph,
        latest: Mapping[str, Entry],
        counts: Mapping[int, int],
        number: int,
    ) -> Manifest | None:
        if attempt.state not in (AttemptState.SUCCEEDED, AttemptState.FAILED):
            return None
        attempts = self._left.get(place) or {}
        is_latest = not attempts or attempt.attempt == max(attempts)
        rows = attempts.get(attempt.attempt, ())
        entries = dict(latest) if is_latest else self._entries(rows)
        node = graph.nodes.get(place[0])
        manifest = Manifest(place[0], entries)
        if attempt.state is AttemptState.FAILED:
            manifest.error = self._exception(place, attempt.attempt)
        elif node is not None:
            following: tuple[str, ...] = node.next
            if node.kind.value == "switch" and "_transition" in entries:
                taken = self._value(entries["_transition"])
                following = tuple(taken[0]) if taken else following
            count = None
            if node.kind in theirs._OPENS_ITEMS:
                count = counts.get(number, 0)
            manifest.transition = (following, node.foreach, count)
        return manifest


def _failed(batch: Batch) -> AttemptRecord | None:
    """The attempt that a run has failed of: the latest one of a task."""
    latest = {each.task: each for each in batch.attempts}
    return next((a for a in latest.values() if a.state is AttemptState.FAILED), None)


def _goes_on(batch: Batch) -> bool:
    """Whether there are attempts that have not ended."""
    return any(each.state is AttemptState.RUNNING for each in batch.attempts)


def _frames(
    graph: Graph, step: str, path: theirs.Path, split: int | None
) -> tuple[ForeachFrame, ...]:
    node = graph.nodes.get(step)
    if node is None:
        return ()
    openers = [each for each in node.splits if graph[each].kind in theirs._OPENS_ITEMS]
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
    """Return what an attempt has printed, by its files in Metaflow's datastore.

    Args:
        place: Metaflow's datastore.
        task: Flow, run, step and task.
        attempt: The number of the attempt, from 0.
    """
    found: list[LogRecord] = []
    for stream in STREAMS:
        for source in layout.SOURCES:
            name = "/".join((*task, f"{attempt}.{source}_{stream}.log"))
            try:
                if place.size(name) is not None:
                    found += layout.log_records(place.get(name), stream)
            except (AflowError, OSError):  # logs that are gone are as if nothing was printed
                continue
    buffer = LogBuffer(1 << 40)
    for record in sorted(found, key=lambda each: each.at):
        buffer.add(record.at, STREAMS.index(record.stream), record.text)
    return buffer


class TheirStore:
    """The object store of a run of Metaflow's: values by the names that they have there, and cards
    by those that aflow gives them. Nothing can be written."""

    def __init__(self, history: MetaflowHistory, place: ObjectStore, url: str) -> None:
        self._history = history
        self._place = place
        self.url = url

    def get(self, name: str, start: int = 0, length: int | None = None) -> Buffer:
        """The bytes of an object; see the port."""
        return self._place.get(self._theirs(name), start, length)

    def size(self, name: str) -> int | None:
        """How many bytes the object has; see the port."""
        return self._place.size(self._theirs(name))

    def list(self, prefix: str) -> Iterator[str]:
        """The names that begin so: those of cards."""
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


def _time(row: Row) -> float:
    return float(row.get("ts_epoch") or 0) / 1000


def _heartbeat(row: Row) -> float | None:
    beat = row.get("last_heartbeat_ts")
    return float(beat) if beat else None


def _texts(row: Row, name: str) -> tuple[str, ...]:
    return tuple(sorted(str(each) for each in row.get(name) or () if each))


def _mark_attempts(rows: list[Row]) -> None:
    """Note of which attempt each row speaks: by its tag, or where a service gives a row the tags of
    its run, by when it was written."""
    rows.sort(key=_time)
    begun = [
        (_time(row), int(row["value"]))
        for row in rows
        if row["field_name"] == "attempt" and str(row["value"]).isdigit()
    ]
    for row in rows:
        tags = (str(tag) for tag in row.get("tags") or ())
        tagged = next((tag[11:] for tag in tags if tag.startswith("attempt_id:")), "")
        at = _time(row)
        by_time = max((number for time, number in begun if time <= at), default=0)
        row["attempt"] = int(tagged) if tagged.isdigit() else by_time


def _attempt_of(row: Row) -> int:
    return int(row.get("attempt") or 0)


def _is(check: Callable[[str], object], value: str) -> bool:
    try:
        check(value)
    except InvalidName:
        return False
    return True


def _up_to(limit: int | None) -> Iterable[int]:
    return range(limit) if limit is not None else iter(int, 1)
