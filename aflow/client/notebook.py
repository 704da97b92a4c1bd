"""What a notebook shows of flows, runs, steps, tasks and artifacts.

Reads records and the ends of logs, never a value: showing an object costs a few queries.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING

from aflow.client import html
from aflow.client.html import Html, text
from aflow.client.times import local_time
from aflow.clock import SystemClock, duration
from aflow.metadata.failures import failed_task, why
from aflow.scheduler.states import TaskState

if TYPE_CHECKING:
    from aflow.client.artifact import DataArtifact
    from aflow.client.flow import Flow, Metaflow
    from aflow.client.run import Run
    from aflow.client.step import Step
    from aflow.client.task import Task
    from aflow.metadata.base import StepProgress, TaskView

_COUNTED = 1000  # runs that are counted beyond those that are shown
_LINES = 12  # of each stream
_NOTHING = Html("")


def metaflow(every: Metaflow) -> str:
    """All flows, with the latest run of each."""
    flows = every.flows
    rows = []
    for flow in flows[: html.ROWS]:
        run = flow.latest_run
        if run is not None:
            state = html.badge(run.status)
            rows.append((text(flow.id), text(run.id), state, _time(run.created_at)))
    head = ("Flow", "Latest run", "Status", "Started")
    return html.page("Metaflow", "", html.table(head, rows, len(flows) - html.ROWS))


def flow(shown: Flow) -> str:
    """The latest runs of a flow."""
    runs = list(shown.runs(limit=html.ROWS + _COUNTED + 1))
    left = len(runs) - html.ROWS
    rows = [
        (
            text(run.id),
            html.badge(run.status),
            _time(run.created_at),
            _took(run.created_at, run.finished_at),
            text(run._source.record.user),
            html.chips(run.user_tags),
        )
        for run in runs[: html.ROWS]
    ]
    head = ("Run", "Status", "Started", "Took", "User", "Tags")
    listed = html.table(head, rows, min(left, _COUNTED))
    return html.page("Flow", shown.id, listed, Html(" at least") if left > _COUNTED else _NOTHING)


def run(shown: Run) -> str:
    """A run: how it goes, why it failed, its steps."""
    record = shown._source.refresh()
    metadata = shown._source.metadata
    failed = failed_task(metadata, record)
    steps = metadata.progress(record.key)
    return html.page(
        "Run",
        shown.pathspec,
        html.badge(record.state.value),
        html.facts(
            [
                ("started", _time(shown.created_at)),
                ("took", _took(shown.created_at, shown.finished_at)),
                ("user", text(record.user)),
                ("failed at" if failed else "reason", _error(why(record, failed))),
                ("resumed from", text(shown.origin_pathspec or "")),
                ("tags", html.chips(shown.user_tags)),
                ("system tags", html.chips(shown.system_tags)),
            ]
        ),
        html.table(
            ("Step", "Tasks", "Started", "Took"),
            [_step_row(step) for step in steps[: 2 * html.ROWS]],
            len(steps) - 2 * html.ROWS,
        ),
    )


def _step_row(step: StepProgress) -> tuple[Html, ...]:
    over = not {TaskState.RUNNING, TaskState.READY} & step.tasks.keys()
    ended = local_time(step.finished_at) if over else None
    began = local_time(step.created_at)
    return (text(step.step), _counts(step.tasks), _time(began), _took(began, ended))


def _counts(tasks: dict[TaskState, int]) -> Html:
    return Html(" ".join(f"{count:,} {html.badge(state.value)}" for state, count in tasks.items()))


def step(shown: Step) -> str:
    """A step: how many tasks are where, the newest of them, and first of all one that failed."""
    source = shown._source
    tasks = next((s.tasks for s in source.metadata.progress(source.key) if s.step == shown.id), {})
    failed = list(islice(shown.tasks(status="failed"), html.ROWS))
    others = [task for task in shown.tasks(limit=html.ROWS) if task._view.state != "failed"]
    listed = [*failed, *others][: html.ROWS]
    head = ("Task", "Status", "Index", "Attempts", "Started", "Took", "Reason")
    return html.page(
        "Step",
        shown.pathspec,
        _counts(tasks),
        html.table(
            head, [_task_row(task._view) for task in listed], sum(tasks.values()) - len(listed)
        ),
    )


def _task_row(view: TaskView) -> tuple[Html, ...]:
    began, attempt = local_time(view.task.created_at), view.attempt
    ended = None if attempt is None else local_time(attempt.finished_at)
    index = "" if view.task.index is None else view.task.index
    return (
        text(view.task.task),
        html.badge(view.state.value),
        text(index),
        text(view.attempts),
        _time(began),
        _took(began, ended),
        _error(attempt.reason if attempt else ""),
    )


def task(shown: Task) -> str:
    """A task: how it went, what it left, the last of what it printed."""
    view = shown._now
    names = sorted(shown._names(), key=lambda name: (name.startswith("_"), name))
    artifacts = [shown[name] for name in names[: html.ROWS]]
    return html.page(
        "Task",
        shown.pathspec,
        html.badge(view.state.value),
        html.facts(
            [
                ("attempt", text(f"{shown.current_attempt} (of {view.attempts}, from 0)")),
                ("started", _time(shown.created_at)),
                ("took", _took(shown.created_at, shown.finished_at)),
                ("index", _NOTHING if shown.index is None else text(shown.index)),
                ("host", text(view.attempt.host if view.attempt else "")),
                ("taken over from", text(shown.origin_pathspec or "")),
                ("reason", _error(view.attempt.reason if view.attempt else "")),
            ]
        ),
        html.table(
            ("Artifact", "Type", "Shape", "Size", "Value"),
            [_artifact_row(artifact) for artifact in artifacts],
            len(names) - html.ROWS,
        ),
        *(
            html.block(f"last lines of {stream}", _tail(shown.loglines(stream)))
            for stream in ("stdout", "stderr")
        ),
    )


def _artifact_row(shown: DataArtifact) -> tuple[Html, ...]:
    noted = shown.preview
    size = html.size(shown.size)
    return (text(shown.id), text(shown.type), html.shape(noted), size, html.preview(noted))


def _tail(lines: Iterable[tuple[datetime, str]]) -> list[str]:
    return [line for _, line in deque(lines, maxlen=_LINES)]


def artifact(shown: DataArtifact) -> str:
    """An artifact: what is known of its value without loading it."""
    noted = shown.preview
    return html.page(
        "DataArtifact",
        shown.pathspec,
        html.facts(
            [
                ("type", text(shown.type)),
                ("shape", html.shape(noted)),
                ("size", html.size(shown.size)),
                ("value", html.preview(noted)),
                ("sha", html.code(shown.sha)),
            ]
        ),
    )


def _time(at: datetime | None) -> Html:
    return _NOTHING if at is None else text(f"{at:%Y-%m-%d %H:%M:%S}")


def _took(began: datetime, ended: datetime | None) -> Html:
    last = SystemClock.now() if ended is None else ended.timestamp()
    return text(duration(last - began.timestamp()) + (" so far" if ended is None else ""))


def _error(reason: str) -> Html:
    return html.code(reason.strip().splitlines()[0]) if reason.strip() else _NOTHING
