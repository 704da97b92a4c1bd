"""aflow's records as rows of the service: what is told of flows, runs, tasks, and what passes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from aflow.clock import shown_time
from aflow.errors import RegistrationRefused
from aflow.service import facts
from aflow.service.own_rows import PER_TASK

if TYPE_CHECKING:
    from aflow.interop.copies import Copies, Copy
    from aflow.metadata.base import AttemptRecord, RunRecord, TaskView

_NAMES = {"user": "user_name", "run_id": "run_number"}  # of what is filtered by, where they differ
_COMPARED: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le,
    "gt": operator.gt, "ge": operator.ge, "co": operator.contains, "sw": str.startswith,
    "ew": str.endswith,
}  # fmt: skip


def status_of(run: RunRecord) -> str:
    """How a run stands, in the words of the service."""
    if run.finished_at is None:
        return "running"
    return "completed" if run.state.value == "succeeded" else "failed"


def flow_told(flow: str, at: float) -> dict[str, Any]:
    """A flow, for clients."""
    return {"flow_id": flow, "user_name": None, **_at(at), "tags": [], "system_tags": []}


def run_told(run: RunRecord) -> dict[str, Any]:
    """A run, for clients."""
    beat = None if run.heartbeat_at is None else int(run.heartbeat_at)
    return {
        **_head(run), "user_name": run.user, **_at(run.created_at), "last_heartbeat_ts": beat,
        **_tail(run),
    }  # fmt: skip


def steps_told(run: RunRecord, begun: Iterable[tuple[str, float]]) -> dict[str, Any]:
    """The steps of a run that have begun at these times, for clients, by name."""
    return {
        name: {**_head(run), "step_name": name, "user_name": run.user, **_at(at), **_tail(run)}
        for name, at in begun
    }


def task_told(run: RunRecord, view: TaskView) -> dict[str, Any]:
    """A task, for clients."""
    return {**_in_task(run, view), **_at(view.task.created_at), "last_heartbeat_ts": None}


def latest_told(run: RunRecord, view: TaskView) -> list[dict[str, Any]]:
    """What is said of the latest attempt of a task."""
    return facts_told(run, view, [] if view.attempt is None else [view.attempt], [])


def facts_told(
    run: RunRecord,
    view: TaskView,
    attempts: Iterable[AttemptRecord],
    more: Iterable[tuple[float, dict[str, Any]]],
    copies: Copies | None = None,
) -> list[dict[str, Any]]:
    """What is said of attempts of a task, where `copies` of what it has left are for Metaflow's
    client, and `more` with its times."""
    began = view.task.created_at
    around = dict(facts.surroundings(run, view))
    if copies is not None:
        around |= {"ds-type": copies.kind, "ds-root": copies.root}
    said: list[tuple[float, dict[str, Any]]] = []
    for attempt in attempts:
        begun = began if attempt.started_at is None else attempt.started_at
        said += [
            (begun, facts.fact(attempt.attempt, name, value, name))
            for name, value in around.items()
        ]
        at = attempt.finished_at or begun
        said += [(at, each) for each in facts.facts_of(attempt)]
    first = view.task.task * PER_TASK
    return [
        {**each, **_in_task(run, view), **_at(at), "id": first + place}
        for place, (at, each) in enumerate([*said, *more])
    ]


def artifacts_told(
    run: RunRecord, view: TaskView, copies: Copies | None = None, left: Iterable[Copy] = ()
) -> list[dict[str, Any]]:
    """What the attempt of the view has left: `left` are `copies` for Metaflow's client, and
    without them it cannot read the values."""
    if view.attempt is None:
        return []
    at = view.attempt.finished_at or view.task.created_at
    readable = [] if copies is None else facts.copies_told(view.attempt, copies, left)
    named = {each["name"] for each in readable}
    others = [each for each in facts.artifacts_of(view.attempt) if each["name"] not in named]
    return [{**each, **_in_task(run, view), **_at(at)} for each in (*readable, *others)]


def _in_task(run: RunRecord, view: TaskView) -> dict[str, Any]:
    return {
        **_head(run), "step_name": view.task.step, "task_id": view.task.task,
        "user_name": run.user, **_tail(run),
    }  # fmt: skip


def _head(run: RunRecord) -> dict[str, Any]:
    return {"flow_id": run.flow, "run_number": run.run}


def _tail(run: RunRecord) -> dict[str, Any]:
    return {"tags": list(run.tags), "system_tags": list(run.system_tags)}


def _at(seconds: float) -> dict[str, int]:
    return {"ts_epoch": round(shown_time(seconds) * 1000)}


def passes(query: Mapping[str, str], told: dict[str, Any], status: str = "") -> bool:
    """Whether a row is one of those that a query filters for. Raises RegistrationRefused."""
    for name, value in query.items():
        what, _, how = name.partition(":")
        if name in ("_limit", "_cursor"):
            continue
        if what == "_tags":
            tags = [tag for tag in value.split(",") if tag]
            has = [tag in told["tags"] or tag in told["system_tags"] for tag in tags]
            passed = not has or (any(has) if how == "any" else all(has))
        elif what == "status" and status:
            passed = (status == value) is (how != "ne")
        else:
            passed = _compared(told, what, how or "eq", value)
        if not passed:
            return False
    return True


def _compared(told: dict[str, Any], name: str, how: str, value: str) -> bool:
    name = _NAMES.get(name, name)
    if name not in told or how not in _COMPARED:
        raise RegistrationRefused.of(400, f"there is nothing to filter by {name[:80]!r}")
    if name in ("ts_epoch", "last_heartbeat_ts"):
        if not value.isascii() or not value.isdigit():
            raise RegistrationRefused.of(400, f"{name} has to be a whole number")
        return told[name] is not None and _COMPARED[how](told[name], int(value))
    return _COMPARED[how](str(told[name] or ""), value)
