"""Records as rows, and rows as records."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from aflow import ids
from aflow.clock import shown_time
from aflow.metadata.base import (
    DAMAGED,
    TASK_STATES,
    AttemptRecord,
    Batch,
    Lease,
    MetadataRecord,
    RunningTask,
    RunRecord,
    StepProgress,
    TaskColumns,
    TaskRecord,
    TaskView,
    WorkerRecord,
)
from aflow.scheduler.states import AttemptState, RunState, TaskState

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

# By value: calling an enum's class for each of many rows costs more than all the rest.
_STATES = {state.value: state for state in AttemptState}
_RUN_STATES = {state.value: state for state in RunState}


def text(value: str) -> str:
    """The value as SQLite can hold it. What Python could not decode (a file's name in the message
    of an exception) becomes an escape such as `\\udce9`: no message is a reason to lose a run."""
    return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()


def run_row(run: RunRecord) -> Row:
    """A new run as `add_run` takes it."""
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


def tag_rows(run_key: int, run: RunRecord) -> list[Row]:
    """The tags of a new run as `add_tag` takes them: key, tag, and whether it is a system tag."""
    user: list[Row] = [(run_key, tag, False) for tag in run.tags]
    return user + [(run_key, tag, True) for tag in run.system_tags]


def run_record(row: Row, tags: Iterable[tuple[str, int]]) -> RunRecord:
    """A run from its row and its tags. What is damaged in the row is shown as nothing, and in the
    reason: one such record keeps nobody from seeing, or deleting, all the others."""
    tags = list(tags)
    state, graph, settings = _RUN_STATES.get(row[3]), _object(row[8]), _object(row[9])
    reason = str(row[10] or "")
    if state is None or graph is None or settings is None:
        state, reason = state or RunState.FAILED, f"The record of this run is damaged. {reason}"
    return RunRecord(
        key=row[0],
        flow=row[1],
        run=row[2],
        state=state,
        user=row[4],
        created_at=row[5] if isinstance(row[5], float | int) else 0.0,  # as it is: pages go by it
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
        lease=None if row[14] is None else Lease(row[14], float(row[15]), row[16]),
    )


def _object(text: Any) -> dict[str, Any] | None:
    """The JSON object in a column; None for what is none."""
    try:
        found = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def time_of(value: Any) -> float:
    """A time that people can be shown, whatever is in the column."""
    return shown_time(value) if isinstance(value, float | int) else 0.0


def task_row(run_key: int, task: TaskRecord) -> Row:
    """A task as `add_task` takes it."""
    return (run_key, *task)


def attempt_row(run_key: int, attempt: AttemptRecord, version: int) -> Row:
    """An attempt as `put_attempt` takes it; `version` is that of the run after the commit."""
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
    """An attempt from the columns of the query `attempts`."""
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
    """A task and its attempt from COLUMNS or LIGHT_COLUMNS."""
    task = TaskRecord(row[1], row[2], time_of(row[3]), *row[4:9])
    attempt = None if row[10] is None else attempt_record((row[1], *row[10:]))
    return TaskView(row[0], task, attempt, row[9])


def task_columns(row: Row) -> TaskColumns:
    """What a timeline shows of a task, from the columns of the query `task_columns`."""
    task, step, created_at, started_at, finished_at, state, attempt, reused, host, pid = row
    return TaskColumns(
        task, step, created_at, started_at, finished_at, _STATES[state],
        attempt, bool(reused), host, pid,
    )  # fmt: skip


def attempt_states(states: Sequence[TaskState]) -> list[str]:
    """The states of latest attempts that tasks in these states have, as the queries take them:
    "" is that of no attempt."""
    none = [""] if TaskState.READY in states else []
    return none + [state.value for state, made in TASK_STATES.items() if made in states]


def count_changes(batch: Batch, latest: Iterable[Row]) -> tuple[list[Row], dict[str, float]]:
    """What a commit changes of the kept counts.

    Args:
        batch: what is written.
        latest: task, step, attempt and state (both None without an attempt) of the tasks in the
            batch's attempts that were there before, as the query `latest_states` gives them.

    Returns:
        Rows of step, state and difference of the number of tasks, and by step the latest time at
        which one of the attempts has ended.
    """
    now = {task: (step, attempt, state) for task, step, attempt, state in latest}
    changes: dict[tuple[str, str], int] = {}

    def change(step: str, state: str, by: int) -> None:
        changes[step, state] = changes.get((step, state), 0) + by

    for task in batch.tasks:
        now[task.task] = (task.step, None, None)
        change(task.step, "", 1)
    ended: dict[str, float] = {}
    for each in batch.attempts:
        if each.task not in now:  # an attempt of a task that nobody has recorded counts nowhere
            continue
        step, attempt, state = now[each.task]
        if each.finished_at is not None:
            ended[step] = max(each.finished_at, ended.get(step, each.finished_at))
        if attempt is None or each.attempt >= attempt:
            change(step, state or "", -1)
            change(step, each.state.value, 1)
            now[each.task] = (step, each.attempt, each.state.value)
    return [(*key, by) for key, by in changes.items() if by], ended


def known_before(batch: Batch) -> list[int]:
    """The tasks in the batch's attempts that an earlier commit has written."""
    new = {task.task for task in batch.tasks}
    return list({each.task for each in batch.attempts} - new)


def progress(found: Iterable[Row]) -> list[StepProgress]:
    """What the query `progress` tells of each step, in the order of their first tasks."""
    steps: dict[str, StepProgress] = {}
    for step, created_at, state, count, finished_at in found:
        made = TASK_STATES[_STATES.get(state, AttemptState.FAILED)] if state else TaskState.READY
        so_far = steps.setdefault(step, StepProgress(step, time_of(created_at), {}, None))
        so_far.tasks[made] = so_far.tasks.get(made, 0) + count
        ends = [at for at in (so_far.finished_at, finished_at) if at is not None]
        steps[step] = so_far._replace(finished_at=max(ends, default=None))
    return list(steps.values())


def metadata_row(run_key: int, record: MetadataRecord) -> Row:
    """A metadata record as `add_metadata` takes it."""
    return (
        run_key,
        record.task,
        record.attempt,
        record.field,
        text(record.value),
        record.type,
        record.created_at,
    )


_OF_THE_STORE = ("name", "heartbeat_at", "left", "drain")  # not in the data of a worker


def worker_row(worker: WorkerRecord, seconds: float) -> Row:
    """A worker as `beat_worker` takes it. Raises InvalidName."""
    fields = {name: value for name, value in worker._asdict().items() if name not in _OF_THE_STORE}
    return (ids.worker_name(worker.name), json.dumps(fields), seconds)


def worker_record(row: Row) -> WorkerRecord | None:
    """A worker from the columns of the query `workers`; None where its data are damaged, or those
    of a later version."""
    name, data, heartbeat_at, left, drain = row
    try:
        fields = json.loads(data)
        known = {field: fields[field] for field in WorkerRecord._fields if field in fields}
        known["pools"] = tuple(map(str, known["pools"]))
        known["labels"] = {str(key): str(value) for key, value in known["labels"].items()}
        known["running"] = tuple(
            RunningTask(str(spec), int(attempt), float(since), bool(begun))
            for spec, attempt, since, begun in known["running"]
        )
        known |= {"heartbeat_at": time_of(heartbeat_at), "left": float(left), "drain": drain}
        return WorkerRecord(**{**known, "name": name})
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
