"""The run, or the task, that a path names; and rows as the service tells them."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from aflow.errors import RegistrationRefused
from aflow.service import checks
from aflow.service.database import Row, Session, sql


class RunScope(NamedTuple):
    """A run. `tags` and `system_tags` are those of everything in it."""

    flow: str
    number: int
    name: str | None
    user: str | None
    ts_epoch: int
    heartbeat: int | None
    tags: Any
    system_tags: Any

    @classmethod
    def of(cls, flow: str, row: Row) -> RunScope:
        """The run of the flow that a row describes."""
        number, name, user, ts_epoch, heartbeat, tags, system_tags = row
        told = json.loads(tags), json.loads(system_tags)
        return cls(flow, number, name, user, ts_epoch, heartbeat, *told)

    @property
    def head(self) -> dict[str, Any]:
        """How everything in this run begins."""
        return {"flow_id": self.flow, "run_number": self.name or self.number}

    @property
    def tail(self) -> dict[str, Any]:
        """How everything in this run ends."""
        return {"tags": self.tags, "system_tags": self.system_tags}

    def told(self) -> dict[str, Any]:
        """The run, for clients."""
        return {
            **self.head,
            "user_name": self.user,
            "ts_epoch": self.ts_epoch,
            "last_heartbeat_ts": self.heartbeat,
            **self.tail,
        }


class TaskScope(NamedTuple):
    """A task."""

    number: int
    name: str | None
    step: str
    user: str | None
    ts_epoch: int
    heartbeat: int | None

    def told(self, run: RunScope) -> dict[str, Any]:
        """The task, for clients."""
        return {
            **run.head,
            "step_name": self.step,
            "task_id": self.name or self.number,
            "user_name": self.user,
            "ts_epoch": self.ts_epoch,
            "last_heartbeat_ts": self.heartbeat,
            **run.tail,
        }


def find_run(session: Session, flow: str, run: str) -> RunScope | None:
    """The run that has this number or name."""
    number = checks.number(run)
    name = "run_by_name" if number is None else "run_by_number"
    found = session.rows(sql()[name], [flow, run if number is None else number])
    return RunScope.of(flow, found[0]) if found else None


def find_task(session: Session, run: RunScope, step: str, task: str) -> TaskScope | None:
    """The task of a step that has this number or name."""
    number = checks.number(task)
    name = "task_by_name" if number is None else "task_by_number"
    found = session.rows(sql()[name], [run.number, step, task if number is None else number])
    return TaskScope(*found[0]) if found else None


def missing() -> RegistrationRefused:
    """There is no such thing."""
    return RegistrationRefused(404, {})


def duplicate(what: str) -> RegistrationRefused:
    """It is there already. (Clients of the service are used to what PostgreSQL says.)"""
    return _database_said(409, "23505", f"duplicate key: {what} is there already")


def no_parent(what: str) -> RegistrationRefused:
    """That to which it would belong is not there."""
    return _database_said(404, "23503", f"foreign key: there is no {what}")


def _database_said(status: int, code: str, message: str) -> RegistrationRefused:
    said = {
        "pgerror": f"ERROR: {message}",
        "pgcode": code,
        "diag": {"message_primary": message, "severity": "ERROR"},
    }
    return RegistrationRefused(status, json.dumps({"err_msg": said}))
