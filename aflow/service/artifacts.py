"""Artifacts: what attempts of tasks have left, and where. Of a task, only the latest attempt's are
told, unless an attempt is asked for."""

from __future__ import annotations

from typing import Any

from aflow.service import checks
from aflow.service.database import Row, Session, sql
from aflow.service.messages import Answer, Asked, Listing, empty
from aflow.service.metadata import registered
from aflow.service.paging import Condition, filters, page_of
from aflow.service.scope import RunScope, find_run, missing
from aflow.service.tasks import the_task

_TEXTS = ("location", "ds_type", "sha", "type", "content_type", "user_name")
_TOLD = ("name", *_TEXTS, "attempt_id", "ts_epoch")  # as in queries.sql, from the fifth on
_FIELDS = {"name": "a.name", "type": "a.type", "user": "a.user_name", "ts_epoch": "a.ts_epoch"}


def get_artifacts_of_run(session: Session, asked: Asked) -> Listing | Answer:
    """Those of all tasks of a run."""
    run = find_run(session, asked.flow, asked.run)
    if run is None:
        return empty()
    return _listing(run, asked, _latest().add("a.run_number = ?", run.number))


def get_artifacts_of_step(session: Session, asked: Asked) -> Listing | Answer:
    """Those of all tasks of a step."""
    run = find_run(session, asked.flow, asked.run)
    if run is None:
        return empty()
    of_step = _latest().add("a.run_number = ? AND a.step_name = ?", run.number, asked.step)
    return _listing(run, asked, of_step)


def get_artifacts(session: Session, asked: Asked) -> Listing | Answer:
    """Those of a task, or of the attempt that the path names."""
    run = find_run(session, asked.flow, asked.run)
    if run is None:
        return empty()
    condition = _chosen_attempt(asked).add("t.run_number = ?", run.number)
    condition.add("t.step_name = ?", asked.step)
    number = checks.number(asked.task)
    if number is None:
        condition.add("t.task_name = ?", asked.task)
    else:
        condition.add("t.task_id = ?", number)
    return _listing(run, asked, condition)


def get_artifact(session: Session, asked: Asked) -> Answer:
    """One artifact of a task, by the latest attempt that has it, or by the one asked for; 404."""
    run, task = the_task(session, asked)
    condition = Condition().add("a.task_id = ?", task.number)
    condition.add("a.name = ?", asked.names["artifact_name"])
    if "attempt_id" in asked.names:
        condition.add("a.attempt_id = ?", int(asked.names["attempt_id"]))
    found = session.rows(
        f"{sql()['artifacts']}{condition.sql} ORDER BY a.attempt_id DESC LIMIT 1", condition.values
    )
    if not found:
        raise missing()
    return Answer(_told(run, found[0]))


def add_artifacts(session: Session, asked: Asked) -> Answer:
    """Register artifacts of a task; 400 where there is none. Answers with how many were new."""
    items = checks.items(asked.body)
    run, task = registered(session, asked)
    rows = [
        (
            run.number,
            asked.step,
            task.number,
            checks.attempt(item),
            checks.name_of(item, "name", "artifact_name"),
            *(checks.text(item, key, " ") for key in _TEXTS),
            asked.ts_epoch,
        )
        for item in items
    ]
    return Answer({"artifacts_created": session.change_many(sql()["add_artifact"], rows)})


def _latest() -> Condition:
    return Condition().add(sql()["latest_attempt"])


def _chosen_attempt(asked: Asked) -> Condition:
    if "attempt_id" in asked.names:
        return Condition().add("a.attempt_id = ?", int(asked.names["attempt_id"]))
    return _latest()


def _listing(run: RunScope, asked: Asked, condition: Condition) -> Listing:
    filters(asked.query, _FIELDS, condition)
    page = page_of(asked.query)
    return Listing(sql()["artifacts"], condition, "a.number", lambda row: _told(run, row), page)


def _told(run: RunScope, row: Row) -> dict[str, Any]:
    _, step, task, task_name, *rest = row
    return {
        **run.head,
        "step_name": step,
        "task_id": task_name or task,
        **dict(zip(_TOLD, rest, strict=True)),
        **run.tail,
    }
