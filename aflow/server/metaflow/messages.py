"""Requests, responses, filters and pages of the service's routes, independent of the HTTP
library."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from typing import Any

from aflow._core.records import NamedTuple, dataclass, field
from aflow.errors import RegistrationRefused
from aflow.server.metaflow import checks
from aflow.server.metaflow.database import Row, Transaction

# The run and the task that a path names.


class RunScope(NamedTuple):
    """A run. Its `tags` and `system_tags` also apply to all objects in it."""

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
        """Return the run in a row.

        Args:
            flow: The name of the flow, which is not part of the row.
            row: A row of the query `run_by_number` or `run_by_name`.
        """
        number, name, user, ts_epoch, heartbeat, tags, system_tags = row
        decoded = json.loads(tags), json.loads(system_tags)
        return cls(flow, number, name, user, ts_epoch, heartbeat, *decoded)

    @property
    def head(self) -> dict[str, Any]:
        """The first fields of all objects in this run."""
        return {"flow_id": self.flow, "run_number": self.name or self.number}

    @property
    def tail(self) -> dict[str, Any]:
        """The last fields of all objects in this run."""
        return {"tags": self.tags, "system_tags": self.system_tags}

    def step_row(self, step: str, user: str | None, ts_epoch: int) -> dict[str, Any]:
        """Return a step of the run in the JSON form of Metaflow's service.

        Args:
            step: The name of the step.
            user: The user that registered it.
            ts_epoch: The time of registration, in milliseconds since the epoch.
        """
        named = {"step_name": step, "user_name": user, "ts_epoch": ts_epoch}
        return {**self.head, **named, **self.tail}

    def in_task(self, step: str, task: int | str) -> dict[str, Any]:
        """Return the fields that all objects in a task share.

        Args:
            step: The name of the step.
            task: The name of the task, or else its number.
        """
        return {**self.head, "step_name": step, "task_id": task, **self.tail}

    def row(self) -> dict[str, Any]:
        """Return the run in the JSON form of Metaflow's service."""
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

    def row(self, run: RunScope) -> dict[str, Any]:
        """Return the task in the JSON form of Metaflow's service.

        Args:
            run: The run that the task belongs to.
        """
        return {
            **run.in_task(self.step, self.name or self.number),
            "user_name": self.user,
            "ts_epoch": self.ts_epoch,
            "last_heartbeat_ts": self.heartbeat,
        }


def missing() -> RegistrationRefused:
    """Return the error for an object that does not exist (404)."""
    return RegistrationRefused(404, {})


def duplicate(what: str) -> RegistrationRefused:
    """Return the error for an object that exists already (409), in the format of PostgreSQL's
    errors, which clients parse.

    Args:
        what: The id of the object, for the message.
    """
    return _database_error(409, "23505", f"duplicate key: {what} already exists")


def no_parent(what: str) -> RegistrationRefused:
    """Return the error for an object whose parent does not exist (404), in the format of
    PostgreSQL's errors.

    Args:
        what: The id of the missing parent, for the message.
    """
    return _database_error(404, "23503", f"foreign key: there is no {what}")


def _database_error(status: int, code: str, message: str) -> RegistrationRefused:
    reported = {
        "pgerror": f"ERROR: {message}",
        "pgcode": code,
        "diag": {"message_primary": message, "severity": "ERROR"},
    }
    return RegistrationRefused(status, json.dumps({"err_msg": reported}))


# Pages of lists, and filters.
#
# ?_limit=100&_cursor=...&user:eq=alice&ts_epoch:ge=1700000000000&status:eq=running&_tags:any=a,b
#
# A page has the newest rows first. Its headers are X-Limit and, if more rows may follow,
# X-Next-Cursor.


LIMIT = 50
MAX_LIMIT = 500
ALIVE = 60  # seconds without a heartbeat after which a run is considered failed

_OPERATORS = {"eq": "=", "ne": "<>", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_LIKE = {"co": "%{}%", "sw": "{}%", "ew": "%{}"}
_STATUSES = ("completed", "running", "failed")


@dataclass(frozen=True, slots=True)
class PageRequest:
    """A requested page: at most `limit` rows after the key `after`; None for the first page."""

    limit: int
    after: Any = None

    def headers(self, keys: list[Any]) -> dict[str, str]:
        """Return the headers of a page of rows with these keys.

        Args:
            keys: The keys of the rows, in order.
        """
        headers = {"X-Limit": str(self.limit)}
        if len(keys) == self.limit:
            cursor = json.dumps({"after": keys[-1]}).encode()
            headers["X-Next-Cursor"] = base64.urlsafe_b64encode(cursor).decode()
        return headers


@dataclass(slots=True)
class Condition:
    """SQL conditions joined by AND, with their values."""

    parts: list[str] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)

    def add(self, sql: str, *values: Any) -> Condition:
        """Add a condition.

        Args:
            sql: The SQL, with `?` for values.
            *values: One value for each `?`.

        Returns:
            This object.
        """
        self.parts.append(sql)
        self.values += values
        return self

    @property
    def sql(self) -> str:
        """` WHERE ...`, or an empty string."""
        return " WHERE " + " AND ".join(self.parts) if self.parts else ""


def page_of(query: Mapping[str, str], key: type = int) -> PageRequest | None:
    """Return the requested page; None for the whole list.

    Args:
        query: The parameters of the URL.
        key: The type of the key in the cursor.

    Raises:
        RegistrationRefused: If `_limit` or `_cursor` is malformed (400).
    """
    if "_limit" not in query and "_cursor" not in query:
        return None
    limit = query.get("_limit", str(LIMIT))
    if not limit.isascii() or not limit.isdigit() or len(limit) > 9 or int(limit) < 1:
        raise RegistrationRefused.of(400, "_limit has to be a number of 1 or more")
    after: Any = None
    if "_cursor" in query:
        try:
            after = json.loads(base64.urlsafe_b64decode(query["_cursor"].encode()))["after"]
            if type(after) is not key or (isinstance(after, int) and not 0 <= after < 1 << 62):
                raise ValueError(after)
        except (ValueError, KeyError, TypeError, RecursionError):
            raise RegistrationRefused.of(400, "invalid cursor") from None
        checks.storable("_cursor", str(after))
    return PageRequest(min(int(limit), MAX_LIMIT), after)


def filters(
    query: Mapping[str, str],
    fields: Mapping[str, str],
    condition: Condition,
    has_tag: str = "",
    completed: str = "",
    now: float = 0.0,
) -> Condition:
    """Add the filters of a query to a condition.

    Args:
        query: The query parameters; `_limit` and `_cursor` are skipped.
        fields: The columns, by the public names of the fields.
        condition: The condition of the listing, which is changed.
        has_tag: The SQL condition that a row has a tag; empty if rows have no tags.
        completed: The SQL condition that a run has ended; empty if rows have no status.
        now: The current time, in seconds since the epoch.

    Returns:
        `condition` itself.

    Raises:
        RegistrationRefused: If a filter is unknown or its value is invalid (400).
    """
    for name, value in query.items():
        if name in ("_limit", "_cursor"):
            continue
        checks.storable(name, value)
        what, _, operator = name.partition(":")
        if what == "_tags" and has_tag:
            _add_tags(condition, operator or "all", value, has_tag)
        elif what == "status" and completed:
            _add_status(condition, operator or "eq", value, completed, now)
        elif what in fields:
            _add_field(condition, fields[what], what, operator or "eq", value)
        else:
            raise RegistrationRefused.of(400, f"there is nothing to filter by {name[:80]!r}")
    return condition


def compared_with(name: str, operator: str, value: str) -> int | str:
    """Return the value with which a filter compares a field: times are numbers.

    Args:
        name: The name of the field.
        operator: The operator, such as `eq`.
        value: The value in the URL.

    Raises:
        RegistrationRefused: If the value or the operator is not one of the field (400).
    """
    if name in ("ts_epoch", "last_heartbeat_ts"):
        if not value.isascii() or not value.isdigit() or len(value) > 18:
            raise RegistrationRefused.of(400, f"{name} has to be a whole number")
        if operator in _OPERATORS:
            return int(value)
    elif operator in _OPERATORS or operator in _LIKE:
        return value
    raise RegistrationRefused.of(400, f"{name} knows no operator {operator[:20]!r}")


def _add_field(condition: Condition, column: str, name: str, operator: str, value: str) -> None:
    wanted = compared_with(name, operator, value)
    if operator in _OPERATORS:
        condition.add(f"{column} {_OPERATORS[operator]} ?", wanted)
    else:
        plain = value.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        condition.add(f"{column} LIKE ? ESCAPE '\\'", _LIKE[operator].format(plain))


def _add_tags(condition: Condition, operator: str, value: str, has_tag: str) -> None:
    tags = [tag for tag in value.split(",") if tag]
    if operator not in ("any", "all"):
        raise RegistrationRefused.of(400, "_tags knows the operators any and all")
    one = f"({has_tag % 'r.tags'} OR {has_tag % 'r.system_tags'})"
    if tags:
        joined = (" OR " if operator == "any" else " AND ").join([one] * len(tags))
        condition.add(f"({joined})", *(tag for tag in tags for _ in range(2)))


def _add_status(
    condition: Condition, operator: str, value: str, completed: str, now: float
) -> None:
    if operator not in ("eq", "ne") or value not in _STATUSES:
        raise RegistrationRefused.of(400, f"status is one of {', '.join(_STATUSES)}: eq or ne")
    alive = "coalesce(r.last_heartbeat_ts, r.ts_epoch / 1000) > ?"
    sql, values = {
        "completed": (completed, []),
        "running": (f"NOT {completed} AND {alive}", [int(now) - ALIVE]),
        "failed": (f"NOT {completed} AND NOT {alive}", [int(now) - ALIVE]),
    }[value]
    condition.add(f"({sql})" if operator == "eq" else f"NOT ({sql})", *values)


PROTOCOL = "2.5.1"
"""The version of metaflow-service whose protocol is implemented; it is sent to clients."""

CHUNK = 1000  # rows of a list that are read at a time


class Asked(NamedTuple):
    """A request with the validated names in its path. `now` is in seconds since the epoch; `words`
    are the SQL fragments of the database."""

    names: Mapping[str, str]
    query: Mapping[str, str]
    body: bytes
    now: float
    words: Mapping[str, str]

    @property
    def flow(self) -> str:
        """The name of the flow."""
        return self.names["flow_id"]

    @property
    def run(self) -> str:
        """The number or name of the run."""
        return self.names["run_number"]

    @property
    def step(self) -> str:
        """The name of the step."""
        return self.names["step_name"]

    @property
    def task(self) -> str:
        """The number or name of the task."""
        return self.names["task_id"]

    @property
    def ts_epoch(self) -> int:
        """The time of the request, in milliseconds since the epoch."""
        return round(self.now * 1000)


@dataclass(frozen=True, slots=True)
class JsonResponse:
    """A response with a JSON body."""

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Listing:
    """A list of rows from a query, read in chunks. The first column of `select` is `key`, which
    orders the rows: ascending, or descending in a page."""

    select: str
    condition: Condition
    key: str
    render: Callable[[Row], Any]
    page: PageRequest | None

    def first(self, session: Transaction) -> list[Row]:
        """Return the requested page, or else the first rows.

        Args:
            session: The transaction in which the rows are read.
        """
        if self.page is None:
            return self.after(session, None)
        return self._rows(session, self.page.after, "<", "DESC", self.page.limit)

    def after(self, session: Transaction, key: Any) -> list[Row]:
        """Return the rows after a key, at most CHUNK; fewer if they are the last ones.

        Args:
            session: The transaction in which the rows are read.
            key: The key of the last row before; None for the first rows.
        """
        return self._rows(session, key, ">", "ASC", CHUNK)

    def _rows(
        self, session: Transaction, key: Any, beyond: str, order: str, limit: int
    ) -> list[Row]:
        condition = Condition([*self.condition.parts], [*self.condition.values])
        if key is not None:
            condition.add(f"{self.key} {beyond} ?", key)
        return session.rows(
            f"{self.select}{condition.sql} ORDER BY {self.key} {order} LIMIT {limit}",
            condition.values,
        )
