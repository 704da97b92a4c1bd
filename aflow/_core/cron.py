"""Cron expressions with the six fields of AWS or the five of Unix, in a time zone.

    minutes hours day-of-month month day-of-week [year]

Each field is `*`, a number, a name (JAN, SUN), a range `1-5`, a step `0/15` or `*/15`, or a list of
these. With six fields the days of the week are 1 to 7, starting with Sunday; with five fields, as
in Unix, they are 0 to 6 (7 is also Sunday). `?` means `*` in one of the two fields for days.
Extensions of AWS: `L` is the last day of a month, `5L` its last Thursday, `15W` the weekday nearest
to the 15th, `LW` the last weekday, `5#3` the third Thursday. If both fields for days are
restricted, a day that matches either of them is due, as in Unix.

As in EventBridge Scheduler, a local time that does not exist because clocks are set forward is
skipped, and one that occurs twice is due only the first time. The syntax is described under "Cron
expressions" in the documentation of Amazon EventBridge.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

from aflow.errors import InvalidInput

_MONTHS = {name.upper(): number for number, name in enumerate(calendar.month_abbr) if name}
_DAYS = {
    name: number for number, name in enumerate(["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"], 1)
}
_UNIX_DAYS = {name: number - 1 for name, number in _DAYS.items()}
_YEARS = (1970, 2199)
_DAY = timedelta(days=1)

DayRule = Callable[[date], bool]


class Cron(NamedTuple):
    """A parsed expression. `years` is None if all years match."""

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    months: frozenset[int]
    is_day: DayRule
    years: frozenset[int] | None


@lru_cache(1000)
def parse(text: str) -> Cron:
    """Parse a cron expression with the six fields of AWS or the five of Unix.

    Args:
        text: The expression, such as `0 12 ? * MON-FRI *`.

    Returns:
        The minutes, hours and days on which it is due.

    Raises:
        InvalidInput: If a field is invalid; the error names it.
    """
    minutes, hours, days, months, weekdays, years = fields_of_aws(text)
    return Cron(
        tuple(sorted(_numbers(f"the minutes of {text!r}", minutes, 0, 59))),
        tuple(sorted(_numbers(f"the hours of {text!r}", hours, 0, 23))),
        _numbers(f"the months of {text!r}", months, 1, 12, _MONTHS),
        _day_rule(text, days, weekdays),
        None if years == "*" else _numbers(f"the years of {text!r}", years, *_YEARS),
    )


def fields_of_aws(text: str) -> list[str]:
    """Return the six fields of an expression in the syntax of AWS.

    Args:
        text: Six fields of AWS, which are converted to upper case, or five fields of Unix.

    Raises:
        InvalidInput: If the number of fields is wrong, or a day of the week is invalid.
    """
    fields = text.upper().split()
    if len(fields) == 5:
        days = [_day_of_aws(text, item) for item in fields[4].split(",")]
        fields = [*fields[:4], ",".join(days), "*"]
    if len(fields) != 6:
        raise InvalidInput(f"{text!r} has to have six fields, as in '0 12 ? * MON-FRI *'.")
    return fields


def _day_of_aws(text: str, item: str) -> str:
    """Convert an item of Unix's days of the week to AWS, which counts them from 1."""
    if re.fullmatch(r"(\*|[A-Z]+(-[A-Z]+)?)(/\d+)?|\?|[A-Z]+#\d", item):
        return item  # it has no numbered day
    if (found := re.fullmatch(r"([0-7])(L|#\d)", item)) is not None:
        return f"{int(found[1]) % 7 + 1}{found[2]}"
    numbers = _numbers(f"the days of the week of {text!r}", item, 0, 7, _UNIX_DAYS)
    return ",".join(map(str, sorted({number % 7 + 1 for number in numbers})))


def zone_of(name: str | None) -> ZoneInfo:
    """Return the time zone of an IANA name.

    Args:
        name: The name, such as `Europe/Berlin`; None is UTC.

    Raises:
        InvalidInput: If there is no such zone.
    """
    try:
        return ZoneInfo(name or "UTC")
    except (KeyError, OSError, ValueError) as error:  # KeyError: an unknown zone
        raise InvalidInput(
            f"There is no time zone {str(name)[:80]!r}: use a name such as Europe/Berlin."
        ) from error


def latest_ticks(cron: Cron, zone: ZoneInfo, after: float, until: float, most: int) -> list[float]:
    """Return the latest times within an interval at which the expression is due, ascending.

    Searches backwards from the end of the interval, and stops when it has found `most` times.

    Args:
        cron: The parsed expression.
        zone: The time zone of the expression.
        after: The start of the interval (exclusive), in seconds since the epoch.
        until: The end of the interval (inclusive), in seconds since the epoch.
        most: The maximum number of times to return.
    """
    found: list[float] = []
    day = datetime.fromtimestamp(until, zone).date()
    first = datetime.fromtimestamp(after, zone).date()
    while day >= first and len(found) < most:
        in_year = cron.years is None or day.year in cron.years
        if in_year and day.month in cron.months and cron.is_day(day):
            found += reversed([at for at in _times(cron, zone, day) if after < at <= until])
        day -= _DAY
    return found[:most][::-1]


def next_tick(cron: Cron, zone: ZoneInfo, after: float) -> float | None:
    """Return the next time at which the expression is due, in seconds since the epoch.

    None if there is no such time.

    Args:
        cron: The parsed expression.
        zone: The time zone of the expression.
        after: The time after which to search, in seconds since the epoch.
    """
    day = datetime.fromtimestamp(after, zone).date()
    while day.year <= _YEARS[1]:
        if cron.years is not None and day.year not in cron.years:
            later = [year for year in cron.years if year > day.year]
            if not later:
                return None
            day = date(min(later), 1, 1)
        elif day.month not in cron.months:
            day = (day.replace(day=1) + timedelta(days=32)).replace(day=1)
        else:
            if cron.is_day(day):
                found = next((at for at in _times(cron, zone, day) if at > after), None)
                if found is not None:
                    return found
            day += _DAY
    return None


def _times(cron: Cron, zone: ZoneInfo, day: date) -> list[float]:
    found = []
    for hour in cron.hours:
        for minute in cron.minutes:
            local = datetime.combine(day, time(hour, minute), zone)
            there = local.astimezone(UTC)
            if there.astimezone(zone).replace(tzinfo=None) == local.replace(tzinfo=None):
                found.append(there.timestamp())
    return sorted(found)


# ------------------------------------------------------------------ fields


def _numbers(
    where: str, field: str, first: int, last: int, names: dict[str, int] | None = None
) -> frozenset[int]:
    found: set[int] = set()
    for item in field.split(","):
        span, slash, step = item.partition("/")
        every = 1
        if slash:
            every = _number(where, step, 1, last)
        if span == "*":
            low, high = first, last
        else:
            begin, dash, end = span.partition("-")
            low = _number(where, begin, first, last, names)
            high = _number(where, end, first, last, names) if dash else (last if slash else low)
        if low <= high:
            found.update(range(low, high + 1, every))
        else:  # FRI-MON: wraps around
            found.update([*range(low, last + 1), *range(first, high + 1)][::every])
    return frozenset(found)


def _number(
    where: str, word: str, first: int, last: int, names: dict[str, int] | None = None
) -> int:
    if names and word in names:
        return names[word]
    if not (word.isascii() and word.isdigit()) or not first <= int(word) <= last:
        raise InvalidInput(f"{word!r} in {where} is not in {first} to {last}.")
    return int(word)


def _day_rule(text: str, days: str, weekdays: str) -> DayRule:
    rules = []
    if days not in ("*", "?"):
        where = f"the days of the month of {text!r}"
        rules.append(_any(_of_month(where, item) for item in {*days.split(",")}))
    if weekdays not in ("*", "?"):
        where = f"the days of the week of {text!r}"
        rules.append(_any(_of_week(where, item) for item in {*weekdays.split(",")}))
    return _any(rules) if rules else lambda day: True


def _any(rules: Iterator[DayRule] | list[DayRule]) -> DayRule:
    of = [*rules]
    return lambda day: any(rule(day) for rule in of)


def _of_month(where: str, item: str) -> DayRule:
    if item == "L":
        return lambda day: day.day == _last(day)
    if item == "LW":
        return lambda day: day == _weekday_near(day, _last(day))
    if item.endswith("W"):
        near = _number(where, item.removesuffix("W"), 1, 31)
        return lambda day: near <= _last(day) and day == _weekday_near(day, near)
    numbers = _numbers(where, item, 1, 31)
    return lambda day: day.day in numbers


def _of_week(where: str, item: str) -> DayRule:
    if (found := re.fullmatch(r"(\w+)#(\d)", item)) is not None:
        which, nth = _number(where, found[1], 1, 7, _DAYS), _number(where, found[2], 1, 5)
        return lambda day: _day_of_week(day) == which and (day.day + 6) // 7 == nth
    if item == "L":
        return lambda day: _day_of_week(day) == 7
    if item.endswith("L"):
        which = _number(where, item.removesuffix("L"), 1, 7, _DAYS)
        return lambda day: _day_of_week(day) == which and day.day + 7 > _last(day)
    numbers = _numbers(where, item, 1, 7, _DAYS)
    return lambda day: _day_of_week(day) in numbers


def _last(day: date) -> int:
    return calendar.monthrange(day.year, day.month)[1]


def _day_of_week(day: date) -> int:
    return day.isoweekday() % 7 + 1


def _weekday_near(day: date, number: int) -> date:
    """Return the weekday nearest to the day `number` of the month, in the same month."""
    near = day.replace(day=number)
    if near.weekday() == 5:  # Saturday
        return near - _DAY if number > 1 else near + 2 * _DAY
    if near.weekday() == 6:
        return near + _DAY if number < _last(day) else near - 2 * _DAY
    return near
