"""What lists of runs and tasks can be narrowed by, checked."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime
from enum import StrEnum
from typing import TypeVar

from aflow.errors import InvalidInput

_State = TypeVar("_State", bound=StrEnum)


def statuses(
    states: type[_State],
    wanted: str | Iterable[str] | None,
    what: str,
    without: Collection[_State] = (),
) -> list[_State]:
    """The states of these names, [] for None; raises InvalidInput for one that `what` cannot
    have."""
    if wanted is None:
        return []
    known = [state for state in states if state not in without]
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InvalidInput(f"{unknown[0]!r} is no status of {what}: use {', '.join(known)}.")
    return [states(name) for name in names]


def checked_limit(limit: int | None) -> int | None:
    """The limit; raises InvalidInput for what counts nothing."""
    if limit is not None and (type(limit) is not int or limit < 0):
        raise InvalidInput(f"limit={limit!r} counts nothing: give 0 or more.")
    return limit


def seconds(name: str, at: datetime | float | None) -> float | None:
    """A time as seconds since the epoch; one without a zone is of this machine's. Raises
    InvalidInput for what is no time."""
    if isinstance(at, datetime):
        return at.timestamp()
    if at is not None and (isinstance(at, bool) or not isinstance(at, int | float)):
        raise InvalidInput(f"{name}={at!r} is no time: give a datetime, or seconds since 1970.")
    return at
