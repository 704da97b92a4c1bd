"""Metadata: what clients say of tasks, a name and a value each."""

from __future__ import annotations

from typing import Any

from aflow.errors import RegistrationRefused
from aflow.service import checks
from aflow.service.database import Row, Session, sql
from aflow.service.messages import Answer, Asked, Listing, empty
from aflow.service.paging import Condition, filters, page_of
from aflow.service.scope import RunScope, TaskScope, find_run, find_task

_FIELDS = {
    "field_name": "m.field_name",
    "value": "m.value",
    "type": "m.type",
    "user": "m.user_name",
    "ts_epoch": "m.ts_epoch",
}


def get_metadata_of_run(session: Session, asked: Asked) -> Listing | Answer:
    """What is said of all tasks of a run."""
    run = find_run(session, asked.flow, asked.run)
    if run is None:
        return empty()
    return _listing(run, asked, Condition().add("m.run_number = ?", run.number))


def get_metadata(session: Session, asked: Asked) -> Listing | Answer:
    """What is said of a task."""
    run = find_run(session, asked.flow, asked.run)
    task = run and find_task(session, run, asked.step, asked.task)
    if run is None or task is None:
        return empty()
    return _listing(run, asked, Condition().add("m.task_id = ?", task.number))


def add_metadata(session: Session, asked: Asked) -> Answer:
    """Say more of a task; 400 where there is none. Answers with how much was said."""
    items = checks.items(asked.body)
    run, task = registered(session, asked)
    rows = [
        (
            run.number,
            asked.step,
            task.number,
            checks.name_of(item, "field_name"),
            checks.text(item, "value", " "),
            checks.text(item, "type", " "),
            checks.text(item, "user_name"),
            asked.ts_epoch,
        )
        for item in items
    ]
    return Answer({"metadata_created": session.change_many(sql()["add_metadata"], rows)})


def registered(session: Session, asked: Asked) -> tuple[RunScope, TaskScope]:
    """The run and the task of the path, to which something is to be added; 400."""
    run = find_run(session, asked.flow, asked.run)
    task = run and find_task(session, run, asked.step, asked.task)
    if run is None or task is None:
        raise RegistrationRefused.of(400, "need to register run_id and task_id first")
    return run, task


def _listing(run: RunScope, asked: Asked, condition: Condition) -> Listing:
    filters(asked.query, _FIELDS, condition)
    page = page_of(asked.query)
    return Listing(sql()["metadata"], condition, "m.id", lambda row: _told(run, row), page)


def _told(run: RunScope, row: Row) -> dict[str, Any]:
    number, step, task, task_name, field, value, type_, user, ts_epoch = row
    return {
        "id": number,
        **run.head,
        "step_name": step,
        "task_id": task_name or task,
        "field_name": field,
        "value": value,
        "type": type_,
        "user_name": user,
        "ts_epoch": ts_epoch,
        **run.tail,
    }
