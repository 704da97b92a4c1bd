"""Flows."""

from __future__ import annotations

import json
from typing import Any

from aflow.service import checks
from aflow.service.database import Row, Session, sql
from aflow.service.messages import Answer, Asked, Listing
from aflow.service.paging import Condition, filters, page_of
from aflow.service.scope import duplicate, missing

_FIELDS = {"flow_id": "f.flow_id", "user": "f.user_name", "ts_epoch": "f.ts_epoch"}


def get_flows(session: Session, asked: Asked) -> Listing:
    """All flows."""
    condition = filters(asked.query, _FIELDS, Condition())
    return Listing(sql()["flows"], condition, "f.flow_id", _told, page_of(asked.query, str))


def get_flow(session: Session, asked: Asked) -> Answer:
    """One flow; 404."""
    found = session.rows(sql()["flow"], [asked.flow])
    if not found:
        raise missing()
    return Answer(_told(found[0]))


def add_flow(session: Session, asked: Asked) -> Answer:
    """Register a flow; 409."""
    body = checks.parsed(asked.body, dict)
    values = [
        asked.flow,
        checks.text(body, "user_name"),
        asked.ts_epoch,
        checks.tags(body, "tags"),
        checks.tags(body, "system_tags"),
    ]
    if not session.change(sql()["add_flow"], values):
        raise duplicate(asked.flow)
    return Answer(_told(values))


def see_to(session: Session, asked: Asked) -> None:
    """Register a flow that aflow itself has run, unless it is registered already."""
    if not session.rows(sql()["flow"], [asked.flow]):
        session.change(sql()["add_flow"], [asked.flow, None, asked.ts_epoch, "[]", "[]"])


def _told(row: Row) -> dict[str, Any]:
    flow, user, ts_epoch, tags, system_tags = row
    return {
        "flow_id": flow,
        "user_name": user,
        "ts_epoch": ts_epoch,
        "tags": json.loads(tags),
        "system_tags": json.loads(system_tags),
    }
