"""Steps of runs."""

from __future__ import annotations

from typing import Any

from aflow.service import checks
from aflow.service.database import Row, Session, sql
from aflow.service.messages import Answer, Asked, Listing, empty
from aflow.service.paging import Condition, filters, page_of
from aflow.service.runs import the_run
from aflow.service.scope import RunScope, duplicate, find_run, missing

_FIELDS = {"step_name": "s.step_name", "user": "s.user_name", "ts_epoch": "s.ts_epoch"}


def get_steps(session: Session, asked: Asked) -> Listing | Answer:
    """The steps of a run that have begun."""
    run = find_run(session, asked.flow, asked.run)
    if run is None:
        return empty()
    condition = filters(asked.query, _FIELDS, Condition().add("s.run_number = ?", run.number))
    page = page_of(asked.query, str)
    return Listing(sql()["steps"], condition, "s.step_name", lambda row: _told(run, row), page)


def get_step(session: Session, asked: Asked) -> Answer:
    """One step; 404."""
    run = the_run(session, asked)
    found = session.rows(sql()["step"], [run.number, asked.step])
    if not found:
        raise missing()
    return Answer(_told(run, found[0]))


def add_step(session: Session, asked: Asked) -> Answer:
    """Register a step; 409, 404 without its run."""
    user = checks.text(checks.parsed(asked.body, dict), "user_name")
    run = the_run(session, asked)
    values = [run.number, asked.step, user, asked.ts_epoch]
    if not session.change(sql()["add_step"], values):
        raise duplicate(f"{asked.flow}/{asked.run}/{asked.step}")
    return Answer(_told(run, values[1:]))


def _told(run: RunScope, row: Row) -> dict[str, Any]:
    step, user, ts_epoch = row
    return {**run.head, "step_name": step, "user_name": user, "ts_epoch": ts_epoch, **run.tail}
