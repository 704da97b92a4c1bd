"""The HTML that a notebook displays for flows, runs, steps, tasks and artifacts.

It is built from records and the ends of logs, without loading values: an object costs a few
queries.
"""

from __future__ import annotations

import html
from collections import deque
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import singledispatch
from itertools import islice
from typing import TYPE_CHECKING, Any, NewType

from aflow._core.clock import SystemClock, duration
from aflow._core.wording import size_text
from aflow.client.artifact import DataArtifact
from aflow.client.base import local_time
from aflow.client.flow import Flow, Metaflow
from aflow.client.run import Run
from aflow.client.step import Step
from aflow.client.task import Task
from aflow.metadata.base import failed_task, why
from aflow.scheduler.states import TaskState

if TYPE_CHECKING:
    from aflow.metadata.base import StepProgress, TaskView

# Pieces of HTML for notebooks: everything is escaped, limited in size and styled inline.
#
# Styles are inline because notebooks drop style sheets of untrusted outputs. Colours are those of
# the page, and greys and hues that are legible on light and dark backgrounds.


Html = NewType("Html", str)

ROWS = 20  # maximum rows of a table
_TEXT = 200  # maximum characters of a value
_LINE = "1px solid rgba(128,128,128,0.35)"
_HUES = {
    "succeeded": "46,157,88",
    "failed": "214,69,69",
    "running": "58,123,213",
    "cancelled": "190,130,30",
}
_GREY = "128,128,128"


def text(value: object, limit: int = _TEXT) -> Html:
    """Return the value as escaped text, truncated if it is long. Characters that are not valid
    Unicode become escapes.

    Args:
        value: Any value; its `str` is shown.
        limit: The maximum number of characters.
    """
    shown = str(value)
    shown = shown if len(shown) <= limit else shown[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return Html(html.escape(shown.encode("utf-8", "backslashreplace").decode()))


def badge(state: str) -> Html:
    """Return a state as a small coloured badge.

    Args:
        state: The state of a run or a task, which decides the colour.
    """
    hue = _HUES.get(state, _GREY)
    style = f"padding:1px 7px;border-radius:9px;background:rgba({hue},0.18);color:rgb({hue})"
    return Html(f'<span style="{style}">{text(state)}</span>')


def chips(names: Iterable[str]) -> Html:
    """Return tags in a row; if there are many, only the first ones.

    Args:
        names: The tags, in any order; the first 20 in sorted order are shown.
    """
    listed = sorted(names)
    style = f"border:{_LINE};border-radius:4px;padding:0 5px;margin-right:4px"
    shown = "".join(f'<span style="{style}">{text(name, 60)}</span>' for name in listed[:ROWS])
    return Html(shown + more(len(listed) - ROWS))


def more(number: int) -> Html:
    """Return a note on how many items are not shown; empty if all are.

    Args:
        number: The number of omitted items; 0 or less for none.
    """
    return Html(f'<span style="opacity:0.7">and {number:,} more</span>' if number > 0 else "")


def facts(pairs: Iterable[tuple[str, Html | None]]) -> Html:
    """Return names and values, one pair per row.

    Args:
        pairs: Names and values; pairs with an empty value or None are omitted.
    """
    cell = "padding:1px 14px 1px 0;text-align:left;vertical-align:top;border:none"
    rows = "".join(
        f'<tr><td style="{cell};opacity:0.7">{text(name)}</td><td style="{cell}">{value}</td></tr>'
        for name, value in pairs
        if value
    )
    return Html(f'<table style="border:none;margin:4px 0">{rows}</table>' if rows else "")


def table(head: Sequence[str], rows: Sequence[Sequence[Html]], left_out: int = 0) -> Html:
    """Return a table, with a note below it on how many rows are omitted.

    Args:
        head: The titles of the columns.
        rows: The cells of each row, as many as titles; if empty, no table is returned.
        left_out: The number of omitted rows.
    """
    if not rows:
        return Html("")
    cell = "padding:2px 12px 2px 0;text-align:left;vertical-align:top"
    titles = "".join(
        f'<th style="{cell};border-bottom:{_LINE};opacity:0.7">{text(name)}</th>' for name in head
    )
    body = "".join(
        "<tr>" + "".join(f'<td style="{cell}">{value}</td>' for value in row) + "</tr>"
        for row in rows
    )
    made = f"<thead><tr>{titles}</tr></thead><tbody>{body}</tbody>"
    return Html(
        f'<table style="border-collapse:collapse;margin:4px 0">{made}</table>{more(left_out)}'
    )


def code(value: object) -> Html:
    """Return a short piece of code.

    Args:
        value: Any value; its `str` is shown in a fixed-width font.
    """
    return Html(f'<code style="white-space:pre-wrap">{text(value)}</code>')


def block(title: str, lines: Sequence[str]) -> Html:
    """Return lines that a program has printed; empty if there are no lines.

    Args:
        title: The heading above the lines.
        lines: The lines without their newlines; long lines are truncated.
    """
    if not lines:
        return Html("")
    style = f"border-left:3px solid rgba({_GREY},0.5);padding:2px 8px;margin:2px 0"
    shown = "\n".join(text(line) for line in lines)
    return Html(
        f'<div style="opacity:0.7">{text(title)}</div>'
        f'<pre style="{style};overflow-x:auto;background:none;color:inherit">{shown}</pre>'
    )


def page(kind: str, name: str, *parts: Html) -> str:
    """Return the parts under a heading.

    Args:
        kind: The kind of object, such as `Run`.
        name: The pathspec of the object; empty for none.
        *parts: The HTML of the parts.
    """
    style = "font-family:system-ui,sans-serif;font-size:13px;line-height:1.5;color:inherit"
    return (
        f'<div style="{style}"><div style="font-size:15px">'
        f'<span style="opacity:0.7">{text(kind)}</span> <b>{text(name, 600)}</b></div>'
        f"{''.join(parts)}</div>"
    )


def preview(noted: dict[str, Any]) -> Html:
    """Return the preview of a value that was recorded when it was stored.

    Args:
        noted: The properties of the value that were recorded.
    """
    if "repr" in noted:
        return code(noted["repr"])
    if "columns" in noted:
        return code(", ".join(map(str, noted["columns"])))
    return Html("")


def shape(noted: dict[str, Any]) -> Html:
    """Return the dimensions of a value: its shape and element type, or its length.

    Args:
        noted: The properties of the value that were recorded when it was stored.
    """
    parts = [" \N{MULTIPLICATION SIGN} ".join(map(str, noted["shape"]))] if "shape" in noted else []
    if "len" in noted:
        parts.append(f"{noted['len']:,} items")
    if "dtype" in noted:
        parts.append(str(noted["dtype"]))
    return text(", ".join(parts))


@singledispatch
def html_of(shown: object) -> str:
    """Return the HTML that a notebook displays for a client object.

    Args:
        shown: The object to show.
    """
    raise TypeError(f"Nothing is known of how to show a {type(shown).__name__}.")


_COUNTED = 1000  # maximum number of omitted runs that are counted
_LINES = 12  # maximum lines of each stream
_NOTHING = Html("")


@html_of.register
def _metaflow(every: Metaflow) -> str:
    """Show all flows, with the latest run of each."""
    flows = every.flows
    rows = []
    for flow in flows[:ROWS]:
        run = flow.latest_run
        if run is not None:
            state = badge(run.status)
            rows.append((text(flow.id), text(run.id), state, _time(run.created_at)))
    head = ("Flow", "Latest run", "Status", "Started")
    return page("Metaflow", "", table(head, rows, len(flows) - ROWS))


@html_of.register
def _flow(shown: Flow) -> str:
    """Show the latest runs of a flow."""
    runs = list(shown.runs(limit=ROWS + _COUNTED + 1))
    left = len(runs) - ROWS
    rows = [
        (
            text(run.id),
            badge(run.status),
            _time(run.created_at),
            _took(run.created_at, run.finished_at),
            text(run._source.record.user),
            chips(run.user_tags),
        )
        for run in runs[:ROWS]
    ]
    head = ("Run", "Status", "Started", "Took", "User", "Tags")
    listed = table(head, rows, min(left, _COUNTED))
    return page("Flow", shown.id, listed, Html(" at least") if left > _COUNTED else _NOTHING)


@html_of.register
def _run(shown: Run) -> str:
    """Show a run: its state, the reason of its failure, its steps."""
    record = shown._source.refresh()
    metadata = shown._source.metadata
    failed = failed_task(metadata, record)
    steps = metadata.progress(record.key)
    return page(
        "Run",
        shown.pathspec,
        badge(record.state.value),
        facts(
            [
                ("started", _time(shown.created_at)),
                ("took", _took(shown.created_at, shown.finished_at)),
                ("user", text(record.user)),
                ("failed at" if failed else "reason", _error(why(record, failed))),
                ("resumed from", text(shown.origin_pathspec or "")),
                ("tags", chips(shown.user_tags)),
                ("system tags", chips(shown.system_tags)),
            ]
        ),
        table(
            ("Step", "Tasks", "Started", "Took"),
            [_step_row(step) for step in steps[: 2 * ROWS]],
            len(steps) - 2 * ROWS,
        ),
    )


def _step_row(step: StepProgress) -> tuple[Html, ...]:
    over = not {TaskState.RUNNING, TaskState.READY} & step.tasks.keys()
    ended = local_time(step.finished_at) if over else None
    began = local_time(step.created_at)
    return (text(step.step), _counts(step.tasks), _time(began), _took(began, ended))


def _counts(tasks: dict[TaskState, int]) -> Html:
    return Html(" ".join(f"{count:,} {badge(state.value)}" for state, count in tasks.items()))


@html_of.register
def _step(shown: Step) -> str:
    """Show a step: the number of its tasks by state, and its newest tasks, failed ones first."""
    source = shown._source
    tasks = next((s.tasks for s in source.metadata.progress(source.key) if s.step == shown.id), {})
    failed = list(islice(shown.tasks(status="failed"), ROWS))
    others = [task for task in shown.tasks(limit=ROWS) if task._view.state != "failed"]
    listed = [*failed, *others][:ROWS]
    head = ("Task", "Status", "Index", "Attempts", "Started", "Took", "Reason")
    return page(
        "Step",
        shown.pathspec,
        _counts(tasks),
        table(head, [_task_row(task._view) for task in listed], sum(tasks.values()) - len(listed)),
    )


def _task_row(view: TaskView) -> tuple[Html, ...]:
    began, attempt = local_time(view.task.created_at), view.attempt
    ended = None if attempt is None else local_time(attempt.finished_at)
    index = "" if view.task.index is None else view.task.index
    return (
        text(view.task.task),
        badge(view.state.value),
        text(index),
        text(view.attempts),
        _time(began),
        _took(began, ended),
        _error(attempt.reason if attempt else ""),
    )


@html_of.register
def _task(shown: Task) -> str:
    """Show a task: its state, its artifacts, the last lines of its output."""
    view = shown._now
    names = sorted(shown._names(), key=lambda name: (name.startswith("_"), name))
    artifacts = [shown[name] for name in names[:ROWS]]
    return page(
        "Task",
        shown.pathspec,
        badge(view.state.value),
        facts(
            [
                ("attempt", text(f"{shown.current_attempt} (of {view.attempts}, from 0)")),
                ("started", _time(shown.created_at)),
                ("took", _took(shown.created_at, shown.finished_at)),
                ("index", _NOTHING if shown.index is None else text(shown.index)),
                ("host", text(view.attempt.host if view.attempt else "")),
                ("reused from", text(shown.origin_pathspec or "")),
                ("reason", _error(view.attempt.reason if view.attempt else "")),
            ]
        ),
        table(
            ("Artifact", "Type", "Shape", "Size", "Value"),
            [_artifact_row(artifact) for artifact in artifacts],
            len(names) - ROWS,
        ),
        *(
            block(f"last lines of {stream}", _tail(shown.loglines(stream)))
            for stream in ("stdout", "stderr")
        ),
    )


def _artifact_row(shown: DataArtifact) -> tuple[Html, ...]:
    noted = shown.preview
    size = text(size_text(shown.size))
    return (text(shown.id), text(shown.type), shape(noted), size, preview(noted))


def _tail(lines: Iterable[tuple[datetime, str]]) -> list[str]:
    return [line for _, line in deque(lines, maxlen=_LINES)]


@html_of.register
def _artifact(shown: DataArtifact) -> str:
    """Show an artifact: the properties of its value that are known without loading it."""
    noted = shown.preview
    return page(
        "DataArtifact",
        shown.pathspec,
        facts(
            [
                ("type", text(shown.type)),
                ("shape", shape(noted)),
                ("size", text(size_text(shown.size))),
                ("value", preview(noted)),
                ("sha", code(shown.sha)),
            ]
        ),
    )


def _time(at: datetime | None) -> Html:
    return _NOTHING if at is None else text(f"{at:%Y-%m-%d %H:%M:%S}")


def _took(began: datetime, ended: datetime | None) -> Html:
    last = SystemClock.now() if ended is None else ended.timestamp()
    return text(duration(last - began.timestamp()) + (" so far" if ended is None else ""))


def _error(reason: str) -> Html:
    return code(reason.strip().splitlines()[0]) if reason.strip() else _NOTHING
