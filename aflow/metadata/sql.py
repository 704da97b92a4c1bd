"""The metadata store in SQL: implements the port with named statements.

A backend only implements how a statement is executed. The names of statements and parameters, and
the columns of results, are the same for all backends.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from aflow._core import ids
from aflow._core.clock import shown_time
from aflow._core.statements import statements_in
from aflow.errors import (
    InvalidMessage,
    MetadataTooNew,
    MetadataUnavailable,
    NotFound,
    VersionConflict,
)
from aflow.metadata.base import (
    DAMAGED,
    LARGEST_JOBS,
    TASK_STATES,
    AttemptRecord,
    Batch,
    CachedTask,
    Document,
    HandedAttempt,
    LeaseState,
    MetadataRecord,
    ReplacedLog,
    RunFilter,
    RunLease,
    RunningTask,
    RunRecord,
    StepProgress,
    TaskColumns,
    TaskRecord,
    TaskView,
    WorkerRecord,
    changed,
)
from aflow.scheduler.messages import NoInputs, encode_inputs
from aflow.scheduler.states import TERMINAL_RUN_STATES, AttemptState, RunState, TaskState

# Conversion between records and rows.


N = TypeVar("N", int, float)
T = TypeVar("T")
Row = Sequence[Any]

_TASK = (
    "t.run_key, t.task, t.step, t.created_at, t.split, t.split_index, t.inputs, t.origin, "
    "t.cache_key"
)
_ATTEMPT = (
    "a.attempt, a.state, a.started_at, a.finished_at, a.reason, {bulk}, a.log_chunks, "
    "a.stdout_size, a.stderr_size, a.host, a.pid, a.handle, a.max_rss, a.cpu"
)
_ATTEMPTS = "(SELECT count(*) FROM attempts WHERE run_key = t.run_key AND task = t.task)"
COLUMNS = f"{_TASK}, {_ATTEMPTS}, {_ATTEMPT.format(bulk='a.manifest, a.log')}"
LIGHT_COLUMNS = f"{_TASK}, {_ATTEMPTS}, {_ATTEMPT.format(bulk='NULL, NULL')}"

_JOBS = "jobs"  # the kind of the documents in which runs publish their jobs

# Dictionaries, since calling the enum for each of many rows would dominate the run time.
_STATES = {state.value: state for state in AttemptState}
_RUN_STATES = {state.value: state for state in RunState}


def text(value: str) -> str:
    """Return the text without surrogates, which SQLite cannot store: bytes that Python could not
    decode (such as a file name in an exception's message) become escapes such as `\\udce9`. An
    undecodable message must not make a run fail.

    Args:
        value: Any text; surrogates are allowed.
    """
    return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()


def run_row(run: RunRecord) -> Row:
    """Return the values of a new run for the statement `add_run`.

    Args:
        run: The record to write; its key and version are ignored.
    """
    return (
        run.flow,
        run.run,
        run.state.value,
        run.user,
        run.created_at,
        run.finished_at,
        json.dumps(run.graph),
        json.dumps(run.settings),
        text(run.reason),
        run.heartbeat_at,
        run.origin_run,
        run.kind,
    )


def run_record(row: Row, tags: Iterable[tuple[str, int]]) -> RunRecord:
    """Return a run from its row and its tags. Damaged fields are replaced and reported in the
    reason, so that one damaged record does not hide all others.

    Args:
        row: A row of the query `run`, `runs` or one like it, its columns in order.
        tags: The tags, each with 1 for a system tag.
    """
    tags = list(tags)
    state, graph, settings = _RUN_STATES.get(row[3]), _object(row[8]), _settings(row[9])
    reason = str(row[10] or "")
    if state is None or graph is None or settings is None:
        state, reason = state or RunState.FAILED, f"The record of this run is damaged. {reason}"
    return RunRecord(
        key=row[0],
        flow=row[1],
        run=row[2],
        state=state,
        user=row[4],
        created_at=row[5] if isinstance(row[5], float | int) else 0.0,  # unchanged: pages use it
        finished_at=None if row[6] is None else time_of(row[6]),
        version=row[7],
        tags=tuple(tag for tag, is_system in tags if not is_system),
        system_tags=tuple(tag for tag, is_system in tags if is_system),
        graph=graph or {},
        settings=DAMAGED if settings is None else settings,
        reason=reason,
        heartbeat_at=None if row[11] is None else time_of(row[11]),
        origin_run=row[12],
        kind=row[13],
        lease=None if row[14] is None else RunLease(row[14], float(row[15]), row[16]),
    )


_OF_SETTINGS = {"storage": str, "code": dict, "parameters": list, "defaults": dict}


def _settings(text: Any) -> dict[str, Any] | None:
    """Return the settings of a run; None if they are damaged."""
    found = _object(text)
    for name, kind in _OF_SETTINGS.items() if found else ():
        if not isinstance((found or {}).get(name), kind | None):
            return None
    return found


def _object(text: Any) -> dict[str, Any] | None:
    """Return the JSON object in a column; None if it contains anything else."""
    try:
        found = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def time_of(value: Any) -> float:
    """Return the time in a column in seconds since the epoch, limited to the years that can be
    shown; 0 if it is not a number.

    Args:
        value: The value of the column, which may be damaged.
    """
    return shown_time(value) if isinstance(value, float | int) else 0.0


def task_row(run_key: int, task: TaskRecord) -> Row:
    """Return the values of a task for the statement `add_task`.

    Args:
        run_key: `RunRecord.key` of the run.
        task: The record to write.
    """
    return (run_key, *task)


def attempt_row(run_key: int, attempt: AttemptRecord, version: int) -> Row:
    """Return the values of an attempt for the statement `put_attempt`.

    Args:
        run_key: `RunRecord.key` of the run.
        attempt: The record to write.
        version: The version of the run after the commit.
    """
    task, number, state, started_at, finished_at, reason, *rest = attempt
    return (
        run_key,
        task,
        number,
        state.value,
        started_at,
        finished_at,
        text(reason),
        *rest,
        version,
    )


def attempt_record(row: Row) -> AttemptRecord:
    """Return an attempt from a row of the query `attempts`.

    Args:
        row: A row of the query, its columns in order.
    """
    task, attempt, state, started_at, finished_at, *rest = row
    return AttemptRecord(
        task,
        attempt,
        _STATES.get(state, AttemptState.FAILED),
        None if started_at is None else time_of(started_at),
        None if finished_at is None else time_of(finished_at),
        *rest,
    )


def task_view(row: Row) -> TaskView:
    """Return a task and its attempt from the columns COLUMNS or LIGHT_COLUMNS.

    Args:
        row: A row of the query, its columns in order.
    """
    task = TaskRecord(row[1], row[2], time_of(row[3]), *row[4:9])
    attempt = None if row[10] is None else attempt_record((row[1], *row[10:]))
    return TaskView(row[0], task, attempt, row[9])


def task_columns(rows: Iterable[Row]) -> Iterator[TaskColumns]:
    """Yield the timeline data of tasks. A run may have a million tasks, and calling the record's
    constructor for each would take twice as long.

    Args:
        rows: Rows of the query `task_columns`.
    """
    new, states = tuple.__new__, _STATES
    for task, step, created_at, started_at, finished_at, state, attempt, reused, host, pid in rows:
        yield new(
            TaskColumns,
            (task, step, created_at, started_at, finished_at, states[state], attempt,
             reused != 0, host, pid),
        )  # fmt: skip


def attempt_states(states: Sequence[TaskState]) -> list[str]:
    """Return the states of the latest attempts of tasks in these states, as values for the queries;
    "" stands for a task without attempts.

    Args:
        states: States of tasks; empty for any.
    """
    none = [""] if TaskState.READY in states else []
    return none + [state.value for state, made in TASK_STATES.items() if made in states]


def count_changes(batch: Batch, latest: Iterable[Row]) -> tuple[list[Row], list[Row]]:
    """Return the changes that a commit makes to the counts and figures of steps.

    Args:
        batch: The content of the commit.
        latest: Rows of the query `latest_states`: task, step, attempt and state (both None without
            an attempt) of the tasks in the batch's attempts that earlier commits have written.

    Returns:
        Rows of step, state and change of the number of tasks; and rows of the latest end of an
        attempt, the peak memory of an attempt (each None if unknown), and their step.
    """
    now = {task: (step, attempt, state) for task, step, attempt, state in latest}
    changes: dict[tuple[str, str], int] = {}

    def change(step: str, state: str, by: int) -> None:
        changes[step, state] = changes.get((step, state), 0) + by

    for task in batch.tasks:
        now[task.task] = (task.step, None, None)
        change(task.step, "", 1)
    figures: dict[str, tuple[float | None, int | None]] = {}
    for each in batch.attempts:
        if each.task not in now:  # an attempt without a recorded task is not counted
            continue
        step, attempt, state = now[each.task]
        if each.finished_at is not None or each.max_rss is not None:
            finished_at, max_rss = figures.get(step, (None, None))
            figures[step] = (_most(finished_at, each.finished_at), _most(max_rss, each.max_rss))
        if attempt is None or each.attempt >= attempt:
            change(step, state or "", -1)
            change(step, each.state.value, 1)
            now[each.task] = (step, each.attempt, each.state.value)
    counts: list[Row] = [(*key, by) for key, by in changes.items() if by]
    return counts, [(*most, step) for step, most in figures.items()]


def _most(one: N | None, other: N | None) -> N | None:
    """Return the larger of two numbers; None if neither is known."""
    return max((each for each in (one, other) if each is not None), default=None)


def known_before(batch: Batch) -> list[int]:
    """Return the tasks in the batch's attempts that an earlier commit has written.

    Args:
        batch: The content of the commit.
    """
    new = {task.task for task in batch.tasks}
    return list({each.task for each in batch.attempts} - new)


def progress(found: Iterable[Row]) -> list[StepProgress]:
    """Return the progress of each step, ordered by its first task.

    Args:
        found: Rows of the query `progress`: step, creation, state, number of tasks, last end, peak
            memory.
    """
    steps: dict[str, StepProgress] = {}
    for step, created_at, state, count, finished_at, max_rss in found:
        made = TASK_STATES[_STATES.get(state, AttemptState.FAILED)] if state else TaskState.READY
        begun = StepProgress(step, time_of(created_at), {}, finished_at, max_rss)
        tasks = steps.setdefault(step, begun).tasks
        tasks[made] = tasks.get(made, 0) + count
    return list(steps.values())


_KINDS_OF_WORKER: dict[type, Sequence[str]] = {
    str: ("host", "queue", "version", "python"),
    int: ("pid", "slots", "done", "failed"),
    float: ("started_at",),
    bool: ("draining",),
}
_OF_THE_STORE = ("name", "heartbeat_at", "left", "drain")  # not in the JSON of a worker


def worker_data(worker: WorkerRecord) -> str:
    """Return a worker's description of itself as JSON, which `worker_record` reads.

    Args:
        worker: The worker; the fields that the store sets are omitted.
    """
    fields = {name: value for name, value in worker._asdict().items() if name not in _OF_THE_STORE}
    return json.dumps(fields)


def worker_record(row: Row) -> WorkerRecord | None:
    """Return a worker, or None if its data are damaged or written by a later version.

    Args:
        row: A row of the query `workers`.
    """
    name, data, heartbeat_at, left, drain = row
    try:
        fields = json.loads(data)
        known = {field: fields[field] for field in WorkerRecord._fields if field in fields}
        for kind, names in _KINDS_OF_WORKER.items():
            known |= {name: kind(known[name]) for name in names if name in known}
        known["pools"] = tuple(map(str, known["pools"]))
        known["labels"] = {str(key): str(value) for key, value in known["labels"].items()}
        known["ended"] = {str(key): int(value) for key, value in known.get("ended", {}).items()}
        known["running"] = tuple(
            RunningTask(str(spec), int(attempt), float(since), bool(begun))
            for spec, attempt, since, begun in known["running"]
        )
        known |= {"heartbeat_at": time_of(heartbeat_at), "left": float(left), "drain": drain}
        return WorkerRecord(**{**known, "name": name})
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


PAGE = 500  # rows per fetch
_OF_A_RUN = (
    "journal", "metadata", "attempts", "task_counts", "tasks", "steps", "run_tags", "leases", "run"
)  # fmt: skip
_RARE = 1000  # a tag is rare if at most this many runs have it; all of them are then looked up
_NO_TASK = 2**63 - 1  # greater than all task numbers


class Session(ABC):
    """A transaction of one connection, which executes statements by name. `again`: whether it was
    tried before, and may have been executed then."""

    dialect = ""

    def __init__(self, db: Any, again: bool = False) -> None:
        self._db = db
        self.again = again
        self._sql = statements("write", self.dialect)

    @abstractmethod
    def do(self, name: str, *values: Any) -> int:
        """Execute a writing statement.

        Args:
            name: A statement in `queries/write.sql`.
            values: Its parameters, in order.

        Returns:
            The number of changed rows.
        """

    @abstractmethod
    def do_all(self, name: str, values: Sequence[Row]) -> None:
        """Execute a writing statement once for each row.

        Args:
            name: A statement in `queries/write.sql`.
            values: The parameters for each row, in order.
        """

    @abstractmethod
    def all(self, name: str, **values: Any) -> list[Any]:
        """Return the rows of a reading statement.

        Args:
            name: A statement in `queries/read.sql`.
            values: Its parameters, by name.
        """

    def together(self) -> AbstractContextManager[Any]:
        """Return a context in which a backend may send several writes to the database at once."""
        return nullcontext()


class SqlMetadata(ABC):
    """Implements the port with the statements of `queries/read.sql` and `queries/write.sql`."""

    _damaged = "a record in it is damaged"

    def __init__(self) -> None:
        self._known_steps: defaultdict[int, set[str]] = defaultdict(set)  # by unfinished run

    # ------------------------------------------------------------------ writing

    @abstractmethod
    def _transact(self, work: Callable[[Session], T]) -> T:
        """Call `work` in a transaction, which is rolled back if it raises; return its result."""

    @abstractmethod
    def _add_run(self, session: Session, run: RunRecord, mark: str) -> tuple[int, bool]:
        """Insert a run, and its flow if it is new. Returns the key, and False if an earlier attempt
        with the same mark, whose response was lost, has inserted the run. Raises VersionConflict.
        """

    @abstractmethod
    def _before_delete(self, session: Session, flow: str, run_key: int) -> None:
        """Prepare the deletion of a run, within its transaction."""

    def _mark(self, mark: str) -> str:
        """Return the mark to store with a commit; a backend may generate a missing one."""
        return mark

    def create_run(
        self, run: RunRecord, parameters: bytes, holder: str = "", seconds: float = 0.0
    ) -> RunRecord:
        """Record a new run with its parameters; see `Journal`."""
        mark = self._mark("")

        def create(session: Session) -> int:
            key, is_new = self._add_run(session, run, mark)
            if is_new:
                session.do_all("add_tag", [(key, *each) for each in run.all_tags()])
                at, task = run.created_at, ids.PARAMETERS_TASK
                made = TaskRecord(task, ids.PARAMETERS_STEP, at, inputs=encode_inputs(NoInputs()))
                session.do("add_task", *task_row(key, made))
                state = AttemptState.SUCCEEDED
                attempt = AttemptRecord(task, 0, state, at, at, manifest=parameters)
                session.do("put_attempt", *attempt_row(key, attempt, 0))
                if holder:
                    session.do("acquire_lease", holder, seconds, key)
            return key

        return run._replace(key=self._transact(create), version=0)

    def commit(self, run_key: int, version: int, batch: Batch, mark: str = "") -> int:
        """Write the batch if the run is at `version`; see `Journal`."""
        mark = self._mark(mark)

        def commit(session: Session) -> None:
            if session.do("advance", mark, run_key, version) != 1:
                written = session.all("written_by", run_key=run_key, version=version + 1)
                if mark and [*map(tuple, written)] == [(mark,)]:
                    return  # the response to the previous attempt was lost
                raise VersionConflict(
                    "Another coordinator has written to this run: this one stops."
                )
            before, latest = known_before(batch), []
            if before:
                latest = session.all("latest_states", run_key=run_key, tasks=before)
            with session.together():
                self._write(session, run_key, version + 1, batch, latest)

        self._transact(commit)
        if batch.run is not None and batch.run.state in TERMINAL_RUN_STATES:
            self._known_steps.pop(run_key, None)
        else:
            self._known_steps[run_key].update(task.step for task in batch.tasks)
        return version + 1

    def _write(
        self, session: Session, run_key: int, version: int, batch: Batch, latest: list[Any]
    ) -> None:
        if batch.events:
            session.do("add_events", run_key, version, batch.events)
        if batch.tasks:
            steps = {task.step: task.created_at for task in reversed(batch.tasks)}
            for step, at in steps.items():
                if step not in self._known_steps.get(run_key, ()):
                    session.do("add_step", run_key, step, at)
            session.do_all("add_task", [task_row(run_key, task) for task in batch.tasks])
        if batch.tasks or batch.attempts:
            counts, figures = count_changes(batch, latest)
            session.do_all("count_tasks", [(run_key, *each) for each in counts])
            session.do_all("step_ended", [(at, size, run_key, step) for at, size, step in figures])
        if batch.attempts:
            attempts = [attempt_row(run_key, each, version) for each in batch.attempts]
            session.do_all("put_attempt", attempts)
        if batch.metadata:
            facts = [(run_key, *each._replace(value=text(each.value))) for each in batch.metadata]
            session.do_all("add_metadata", facts)
        if batch.run is not None:
            state, finished_at, reason = batch.run
            session.do(
                "update_run",
                None if state is None else state.value,
                finished_at,
                None if reason is None else text(reason),
                run_key,
            )
            if state in TERMINAL_RUN_STATES:
                session.do("delete_leases", run_key)

    def acquire_lease(self, run_key: int, holder: str, seconds: float, at: float) -> LeaseState:
        """Acquire or renew the lease of a run; see `Leases`."""

        def acquire(session: Session) -> LeaseState:
            mine = session.do("acquire_lease", holder, seconds, run_key) == 1
            if mine:
                session.do("beat", at, run_key)
            found = session.all("cancel", run_key=run_key)
            return LeaseState(mine, found[0][0] if found else None)

        return self._transact(acquire)

    def release_lease(self, run_key: int, holder: str) -> None:
        """Release the lease of a run; see `Leases`."""
        self._transact(lambda session: session.do("release_lease", run_key, holder))

    def request_cancel(self, run_key: int, reason: str) -> bool:
        """Ask the lease holder of a run to cancel it; see `Leases`."""
        values = (text(reason), run_key)
        return self._transact(lambda session: session.do("request_cancel", *values)) == 1

    def beat_worker(self, worker: WorkerRecord, seconds: float) -> str | None:
        """Register a worker, or renew its registration; see `WorkerRegistry`."""
        values = ids.worker_name(worker.name), worker_data(worker), seconds

        def beat(session: Session) -> str | None:
            session.do("expire_workers")
            session.do("beat_worker", *values)
            found = session.all("drain_of_worker", worker=worker.name)
            return found[0][0] if found else None

        return self._transact(beat)

    def drain_worker(self, name: str, reason: str) -> bool:
        """Ask a worker to finish its tasks and exit; see `WorkerRegistry`."""
        values = (text(reason), name)
        return self._transact(lambda session: session.do("drain_worker", *values)) == 1

    def remove_worker(self, name: str) -> None:
        """Delete the registration of a worker; see `WorkerRegistry`."""
        self._transact(lambda session: session.do("remove_worker", name))

    def put_document(self, kind: str, name: str, data: bytes, version: int = 0) -> int:
        """Create or change a document; see `Documents`."""

        def put(session: Session) -> bool:
            if version == 0:
                changed = session.do("add_document", kind, name, data)
            else:
                changed = session.do("change_document", data, kind, name, version)
            if changed or not session.again:
                return changed == 1
            found = session.all("document", kind=kind, document=name)
            return (name, version + 1, data) in found  # whether the previous attempt has written it

        if not self._transact(put):
            raise VersionConflict(
                f"There is a {kind} {name} already."
                if version == 0
                else f"The {kind} {name} was changed or removed by someone else in the meantime."
            )
        return version + 1

    def delete_document(self, kind: str, name: str) -> bool:
        """Delete a document; see `Documents`."""

        def delete(session: Session) -> bool:
            # If it was tried before, it may be that attempt that has deleted the document.
            return session.do("delete_document", kind, name) == 1 or session.again

        return self._transact(delete)

    def put_jobs(self, name: str, data: bytes) -> None:
        """Replace the document in which a run publishes its jobs; see `HandedAttempts`."""
        # The metadata service passes any value, and all clients read what is stored here.
        if type(name) is not str or type(data) is not bytes or len(data) > LARGEST_JOBS:
            raise InvalidMessage(
                f"A document about the jobs of a run has a name and {LARGEST_JOBS} bytes at most."
            )

        def put(session: Session) -> None:
            session.do("delete_document", _JOBS, name)
            if data:
                session.do("add_document", _JOBS, name, data)

        self._transact(put)

    def change_tags(
        self, run_key: int, add: Sequence[str], remove: Sequence[str]
    ) -> tuple[str, ...]:
        """Remove and then add user tags; see `Records`."""
        for tag in [*add, *remove]:
            ids.tag(tag)

        def change(session: Session) -> tuple[str, ...]:
            if not session.all("run_exists", run_key=run_key):
                raise NotFound("The run whose tags were to be changed no longer exists.")
            now = changed(session.all("tags_of_run", run_key=run_key), add, remove)
            session.do_all("remove_tag", [(run_key, tag) for tag in remove])
            session.do_all("add_tag", [(run_key, tag, False) for tag in add])
            return now

        return self._transact(change)

    def replace_logs(self, run_key: int, logs: Sequence[ReplacedLog]) -> None:
        """Replace the logs of attempts; see `Records`. The files of a database server, its
        write-ahead log and archives of it may contain the old logs for a while."""
        values = [(*log[2:], run_key, log.task, log.attempt) for log in logs]
        if values:
            self._transact(lambda session: session.do_all("replace_log", values))

    def delete_run(self, run_key: int) -> None:
        """Delete a run with all its records; see `Records`."""

        def delete(session: Session) -> None:
            for flow, _ in session.all("name_of_run", run_key=run_key):
                self._before_delete(session, flow, run_key)
                for table in _OF_A_RUN:
                    session.do(f"delete_{table}", run_key)
                session.do("delete_empty_flow", flow)

        self._transact(delete)

    # ------------------------------------------------------------------ reading

    @abstractmethod
    def _all(self, name: str, light: bool = False, **values: Any) -> list[Any]:
        """Return the rows of a statement. `light` omits manifests and logs from its `{columns}`."""

    @abstractmethod
    def _stream(self, name: str, light: bool = False, **values: Any) -> Iterator[Any]:
        """Like `_all`, but fetches PAGE rows at a time."""

    @property
    @abstractmethod
    def url(self) -> str:
        """The URL for messages, without a password."""

    @property
    def _where(self) -> str:
        """The place of the store for error messages."""
        return self.url

    @contextmanager
    def _damage_named(self) -> Iterator[None]:
        """Convert errors caused by a damaged record to MetadataUnavailable: databases detect
        damaged pages, but not damaged values."""
        try:
            yield
        except (KeyError, TypeError, ValueError) as error:
            raise MetadataUnavailable(
                f"The metadata in {self._where} cannot be used: {self._damaged}."
            ) from error

    def all_manifests(self, run_key: int) -> Iterator[bytes]:
        """Yield the manifests of all attempts of a run; see `Records`."""
        after, more = -1, True
        while more:
            found = self._all("all_manifests", run_key=run_key, after=after, limit=PAGE)
            yield from (manifest for _, manifest in found)
            # A page may end between two attempts of a task, so the next one starts with the same
            # task. A task has fewer attempts than a page has rows.
            more = len(found) == PAGE
            after = found[-1][0] - 1 if more else after

    def journal(self, run_key: int) -> Iterator[bytes]:
        """Return the event batches of the run, oldest first."""
        return (events for _, events in self.journal_after(run_key, 0))

    def journal_after(self, run_key: int, version: int) -> Generator[tuple[int, bytes], None, None]:
        """Yield the event batches after a version, each with its version; see `Journal`."""
        for row in self._stream("journal", run_key=run_key, after=version):
            yield row[0], row[1]

    def orphaned(self, kind: str, limit: int = 100) -> list[tuple[str, str]]:
        """Return the runs whose lease has expired; see `Leases`."""
        return [(flow, run) for flow, run in self._all("orphaned", kind=kind, limit=limit)]

    def workers(self) -> list[WorkerRecord]:
        """Return the workers whose registration has not expired; see `WorkerRegistry`."""
        found = map(worker_record, self._all("workers"))
        return [each for each in found if each is not None]

    def documents(self, kind: str) -> list[Document]:
        """Return all documents of a kind; see `Documents`."""
        return [Document(*row) for row in self._all("documents", kind=kind)]

    def jobs(self) -> list[Document]:
        """Return the documents in which runs publish their jobs; see `HandedAttempts`."""
        return self.documents(_JOBS)

    def document(self, kind: str, name: str) -> Document | None:
        """Return one document; see `Documents`."""
        found = self._all("document", kind=kind, document=name)
        return Document(*found[0]) if found else None

    def flows(self) -> list[tuple[str, float]]:
        """Return name and time of creation of every flow, newest first."""
        return [(flow, time_of(at)) for flow, at in self._all("flows")]

    def runs(self, flow: str | None, **which: Any) -> list[RunRecord]:
        """Return runs, newest first; see `Records`.

        Args:
            flow: The flow's name; None for all flows.
            **which: The fields of RunFilter.
        """
        wanted = RunFilter(**which)
        after_time, after_key = wanted.after or (None, None)
        tag, second_tag, *_ = [*wanted.tags, None, None]
        name = "runs" if flow is not None else "all_runs"
        more: dict[str, Any] = {} if flow is None else {"flow": flow}
        if wanted.tags and (keys := self._with_a_rare_tag(wanted.tags)) is not None:
            name, more = "runs_of_keys", {"flow": flow, "keys": keys}
        found = self._all(
            name,
            **more,
            kind=wanted.kind,
            users=list(wanted.users),
            since=wanted.since,
            until=wanted.until,
            after_time=after_time,
            after_key=after_key,
            states=[state.value for state in wanted.states],
            tag=tag,
            second_tag=second_tag,
            more_tags=list(wanted.tags[2:]),
            limit=wanted.limit,
        )
        by_run: dict[int, list[tuple[str, int]]] = {}
        for key, tag, is_system in self._all("tags", run_keys=[row[0] for row in found]):
            by_run.setdefault(key, []).append((tag, is_system))
        with self._damage_named():
            return [run_record(row, by_run.get(row[0], ())) for row in found]

    def _with_a_rare_tag(self, tags: Sequence[str]) -> list[int] | None:
        """Return the keys of all runs with one of the tags, if one of the tags is rare: looking
        these up is faster than a search that starts from the newest run."""
        for tag in tags:
            found = self._all("runs_with_tag", tag=tag, limit=_RARE + 1)
            if len(found) <= _RARE:
                return [key for (key,) in found]
        return None

    def run(self, flow: str, run: str) -> RunRecord | None:
        """Return one run with its graph, or None if there is none."""
        found = self._all("run", flow=flow, run=run)
        if not found:
            return None
        tags = self._all("tags_of_run", run_key=found[0][0])
        with self._damage_named():
            return run_record(found[0], tags)

    def steps(self, run_key: int) -> list[tuple[str, float, int]]:
        """Return name, time and number of tasks of every step that has started, newest first."""
        found = self._all("steps", run_key=run_key)
        return [(step, time_of(at), count) for step, at, count in found]

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
        """Return tasks with their latest attempts, in one streaming query; see `Records`."""
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
        """Return tasks with their latest attempts, newest first; see `Records`."""
        name = "newest_tasks" if step is None else "newest_tasks_of_step"
        return self._views(
            name,
            light,
            run_key=run_key,
            step=step,
            states=attempt_states(states),
            before=_NO_TASK if before is None else before,
            limit=limit,
        )

    def progress(self, run_key: int) -> list[StepProgress]:
        """Return the progress of every step that has started, oldest first."""
        found = self._all("progress", run_key=run_key)
        with self._damage_named():
            return progress(found)

    def live_counts(self, run_key: int) -> dict[str, dict[AttemptState, int]]:
        """Return the numbers of unfinished attempts by step and state; see `HandedAttempts`."""
        found: dict[str, dict[AttemptState, int]] = {}
        with self._damage_named():
            for step, state, tasks in self._all("live_counts", run_key=run_key):
                found.setdefault(step, {})[AttemptState(state)] = tasks
        return found

    def handed(self, run_key: int, step: str | None, after: int, limit: int) -> list[HandedAttempt]:
        """Return a page of the attempts that other executors have accepted; see
        `HandedAttempts`."""
        rows = self._all("handed", run_key=run_key, step=step, after=after, limit=limit)
        with self._damage_named():
            return [
                HandedAttempt(
                    task=task,
                    step=step,
                    attempt=attempt,
                    state=AttemptState(state),
                    created_at=time_of(created_at),
                    started_at=None if started_at is None else time_of(started_at),
                    handle=handle,
                    host=host,
                )
                for task, step, attempt, state, created_at, started_at, handle, host in rows
            ]

    def task_columns(self, run_key: int, after: int = 0) -> Iterator[TaskColumns]:
        """Yield timeline data of tasks with a latest attempt after a version; see `Records`."""
        with self._damage_named():
            if after > 0:
                rows = self._stream("task_columns", run_key=run_key, after=after)
            else:
                rows = self._all_task_columns(run_key)
            yield from task_columns(rows)

    def _all_task_columns(self, run_key: int) -> Iterator[Row]:
        latest = None  # the query returns the latest attempt of a task before its other attempts
        for row in self._stream("all_task_columns", run_key=run_key):
            if row[0] != latest:
                latest = row[0]
                yield row

    def _views(self, name: str, light: bool, **values: Any) -> Iterator[TaskView]:
        with self._damage_named():
            yield from map(task_view, self._stream(name, light, **values))

    def task(self, run_key: int, task: int, attempt: int | None = None) -> TaskView | None:
        """Return one task with the requested attempt, by default the latest."""
        found = self._all("task", run_key=run_key, task=task, attempt=attempt)
        with self._damage_named():
            return task_view(found[0]) if found else None

    def manifests(self, run_key: int, tasks: Sequence[int]) -> dict[int, bytes]:
        """Return the manifests of the latest attempts of tasks; see `Records`."""
        return dict(self._all("manifests", run_key=run_key, tasks=list(tasks)))

    def split_manifests(
        self, run_key: int, split: int, steps: Sequence[str], start: int = 0, limit: int = 1000
    ) -> list[tuple[int, int, str, bytes]]:
        """Return a page of the inputs of a foreach join; see `Records`."""
        return self._all(
            "split_manifests",
            run_key=run_key,
            split=split,
            start=start,
            steps=list(steps),
            limit=limit,
        )

    def cached(self, flow: str, key: bytes) -> CachedTask | None:
        """Return a succeeded task of the flow with this cache key; see `Records`."""
        found = self._all("cached", key=key, flow=flow)
        if not found:
            return None
        run, step, task, run_key, manifest = found[0]
        return CachedTask(f"{run}/{step}/{task}", run_key, task, manifest)

    def attempts(self, run_key: int, task: int) -> list[AttemptRecord]:
        """Return all attempts of a task, oldest first."""
        found = self._all("attempts", run_key=run_key, task=task)
        with self._damage_named():
            return [attempt_record(row) for row in found]

    def metadata(self, run_key: int, task: int) -> list[MetadataRecord]:
        """Return the metadata records of a task, oldest first."""
        found = self._all("metadata", run_key=run_key, task=task)
        records = [MetadataRecord(*row) for row in found]
        return [each._replace(created_at=time_of(each.created_at)) for each in records]


# The SQL statements by name, read from files next to this module when first needed.


_FOLDER = Path(__file__).parent


@cache
def statements(kind: str, dialect: str = "") -> dict[str, str]:
    """Return the statements of `queries/<kind>.sql` by name. For another dialect, statements of the
    same name in `queries_<dialect>/<kind>.sql` override them, and the others are translated.

    Args:
        kind: `read` or `write`.
        dialect: The dialect of the backend; empty for SQLite.
    """
    found = statements_in(_FOLDER / "queries" / f"{kind}.sql")
    if dialect:
        own = statements_in(_FOLDER / f"queries_{dialect}" / f"{kind}.sql")
        found = {name: _for_postgres(sql) for name, sql in found.items()} | own
    return found


def reading(name: str, light: bool = False, dialect: str = "") -> str:
    """Return the text of a reading statement.

    Args:
        name: A statement in `queries/read.sql`.
        light: Whether to omit manifests and logs from its `{columns}`.
        dialect: The dialect of the backend; empty for SQLite.
    """
    sql = statements("read", dialect)[name]
    return sql.replace("{columns}", LIGHT_COLUMNS if light else COLUMNS)


def _for_postgres(sql: str) -> str:
    """Translate a statement from SQLite's syntax to that of PostgreSQL and psycopg."""
    import re  # imported here as most runs are recorded in SQLite

    sql = re.sub(r"(?<!:):(\w+)", r"%(\1)s", sql.replace("?", "%s"))
    return sql.replace("lease_now()", "extract(epoch FROM clock_timestamp())")


def migrations(folder: str = "migrations") -> list[tuple[int, str]]:
    """Return number and text of every migration, ordered: `<folder>/<number>_<what>.sql`.

    Args:
        folder: The folder of a backend's migrations, next to this module.
    """
    files = sorted((_FOLDER / folder).glob("*.sql"))
    return [(int(file.name[:4]), file.read_text("utf-8")) for file in files]


LATEST = 12
"""The number of the last migration, which tests verify; a constant saves listing the folder."""


def is_current(version: int, latest: int, where: str, another: str, read_only: bool) -> bool:
    """Return whether a database has the current schema; if not, the caller must migrate it.

    Args:
        version: The version of its schema; 0 if it has none.
        latest: The version that this aflow writes.
        where: The place of the database, for error messages.
        another: What the error message advises to change: `folder` or `database`.
        read_only: Whether the database is open for reading only, so that it cannot be migrated.

    Raises:
        MetadataTooNew: If a newer aflow has written the schema.
        MetadataUnavailable: If the schema is old, and the database is open for reading only.
    """
    if version > latest:
        raise MetadataTooNew(
            f"The metadata in {where} has version {version}, written by a newer aflow; this one "
            f"knows versions up to {latest}. Upgrade aflow, or use another {another}."
        )
    if version < latest and read_only:
        raise MetadataUnavailable(
            f"The metadata in {where} has version {version} and cannot be read as it is: run any "
            "flow there once, which brings it up to date."
        )
    return version == latest
