"""Tasks of steps: registered, alive, found by what is said of them."""

from __future__ import annotations

from aflow.service import checks
from aflow.service.database import Session, sql
from aflow.service.messages import Answer, Asked, Listing, empty
from aflow.service.paging import Condition, filters, page_of
from aflow.service.runs import heard, the_run
from aflow.service.scope import (
    RunScope,
    TaskScope,
    duplicate,
    find_run,
    find_task,
    missing,
    no_parent,
)

_FIELDS = {
    "user": "t.user_name",
    "ts_epoch": "t.ts_epoch",
    "last_heartbeat_ts": "t.last_heartbeat_ts",
}


def get_tasks(session: Session, asked: Asked) -> Listing | Answer:
    """The tasks of a step."""
    run = find_run(session, asked.flow, asked.run)
    if run is None:
        return empty()
    condition = filters(asked.query, _FIELDS, _of_step(run, asked))
    page = page_of(asked.query)
    return Listing(
        sql()["tasks"], condition, "t.task_id", lambda row: TaskScope(*row).told(run), page
    )


def get_task(session: Session, asked: Asked) -> Answer:
    """One task; 404."""
    run, task = the_task(session, asked)
    return Answer(task.told(run))


def get_filtered_tasks(session: Session, asked: Asked) -> Listing | Answer:
    """The pathspecs of the tasks of a step that have this metadata field with a value in which the
    regular expression `pattern` is found; both may be left out."""
    run = find_run(session, asked.flow, asked.run)
    if run is None:
        return empty()
    field = checks.word("metadata_field_name", asked.query.get("metadata_field_name"))
    pattern = checks.pattern(asked.query.get("pattern"))
    condition = _of_step(run, asked)
    if field is not None or pattern is not None:
        with_metadata = sql()["with_metadata"].replace("{matches}", asked.words["matches"])
        condition.add(with_metadata, field, field, pattern, pattern)
    head = f"{asked.flow}/{run.name or run.number}/{asked.step}"
    return Listing(
        sql()["tasks"],
        condition,
        "t.task_id",
        lambda row: f"{head}/{row[1] or row[0]}",
        page_of({key: asked.query[key] for key in asked.query if key in ("_limit", "_cursor")}),
    )


def add_task(session: Session, asked: Asked) -> Answer:
    """Register a task, which gets a number, or has a name; 409, 404 without its run or step."""
    body = checks.parsed(asked.body, dict)
    name = checks.given_name("task_id", body.get("task_id"))
    user = checks.text(body, "user_name")
    run = the_run(session, asked)
    if not session.rows(sql()["step"], [run.number, asked.step]):
        raise no_parent(f"step {asked.flow}/{asked.run}/{asked.step}")
    values = [run.number, asked.step, name, user, asked.ts_epoch]
    added = session.rows(sql()["add_task"], values)
    if not added:
        raise duplicate(f"{asked.flow}/{asked.run}/{asked.step}/{name}")
    task = TaskScope(added[0][0], name, asked.step, user, asked.ts_epoch, None)
    return Answer(task.told(run))


def beat_task(session: Session, asked: Asked) -> Answer:
    """A task is alive, and its run with it; 404."""
    run, task = the_task(session, asked)
    session.change(sql()["beat_run"], [int(asked.now), run.number])
    session.change(sql()["beat_task"], [int(asked.now), task.number])
    return heard()


def the_task(session: Session, asked: Asked) -> tuple[RunScope, TaskScope]:
    """The run and the task of the path; 404."""
    run = the_run(session, asked)
    task = find_task(session, run, asked.step, asked.task)
    if task is None:
        raise missing()
    return run, task


def _of_step(run: RunScope, asked: Asked) -> Condition:
    return Condition().add("t.run_number = ? AND t.step_name = ?", run.number, asked.step)
