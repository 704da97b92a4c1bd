"""Lists by page: where a page ends, and what is filtered out of it.

    ?_limit=100&_cursor=...&user:eq=alice&ts_epoch:ge=1700000000000&status:eq=running&_tags:any=a,b

A page has the newest rows first. Its headers are X-Limit, and X-Next-Cursor where more may follow.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aflow.errors import RegistrationRefused
from aflow.service import checks

LIMIT = 50
MAX_LIMIT = 500
ALIVE = 60  # seconds without a heartbeat after which a run is taken for dead

_OPERATORS = {"eq": "=", "ne": "<>", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_LIKE = {"co": "%{}%", "sw": "{}%", "ew": "%{}"}
_STATUSES = ("completed", "running", "failed")


@dataclass(frozen=True, slots=True)
class Page:
    """Which page: at most `limit` rows, those after the key `after`; None begins."""

    limit: int
    after: Any = None

    def headers(self, keys: list[Any]) -> dict[str, str]:
        """What is said beside the rows with these keys."""
        headers = {"X-Limit": str(self.limit)}
        if len(keys) == self.limit:
            cursor = json.dumps({"after": keys[-1]}).encode()
            headers["X-Next-Cursor"] = base64.urlsafe_b64encode(cursor).decode()
        return headers


@dataclass(slots=True)
class Condition:
    """SQL that rows have to fulfil, all of it, and its values."""

    parts: list[str] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)

    def add(self, sql: str, *values: Any) -> Condition:
        """And this, too."""
        self.parts.append(sql)
        self.values += values
        return self

    @property
    def sql(self) -> str:
        """` WHERE ...`, or nothing."""
        return " WHERE " + " AND ".join(self.parts) if self.parts else ""


def page_of(query: Mapping[str, str], key: type = int) -> Page | None:
    """The page that is asked for, None for the whole list. Raises RegistrationRefused (400)."""
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
        checks.word("_cursor", str(after))
    return Page(min(int(limit), MAX_LIMIT), after)


def filters(
    query: Mapping[str, str],
    fields: Mapping[str, str],
    condition: Condition,
    has_tag: str = "",
    completed: str = "",
    now: float = 0.0,
) -> Condition:
    """Add what a query filters by: `fields` are the columns by their public names. With `has_tag`
    and `completed`, in the words of the database, tags and status, too. Raises
    RegistrationRefused (400) for what is not known."""
    for name, value in query.items():
        if name in ("_limit", "_cursor"):
            continue
        checks.word(name, value)
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


def _add_field(condition: Condition, column: str, name: str, operator: str, value: str) -> None:
    if column.endswith("_ts") or name == "ts_epoch":
        if not value.isascii() or not value.isdigit() or len(value) > 18:
            raise RegistrationRefused.of(400, f"{name} has to be a whole number")
        if operator in _OPERATORS:
            condition.add(f"{column} {_OPERATORS[operator]} ?", int(value))
            return
    elif operator in _OPERATORS:
        condition.add(f"{column} {_OPERATORS[operator]} ?", value)
        return
    elif operator in _LIKE:
        plain = value.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        condition.add(f"{column} LIKE ? ESCAPE '\\'", _LIKE[operator].format(plain))
        return
    raise RegistrationRefused.of(400, f"{name} knows no operator {operator[:20]!r}")


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
