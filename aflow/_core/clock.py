"""Clocks. Only this module reads the time of the system.

Pure code takes the time as an argument; code that does I/O takes a Clock.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A source of the time."""

    def now(self) -> float:
        """Return seconds since the epoch; jumps when the clock of the machine is set."""

    def monotonic(self) -> float:
        """Return seconds since an unspecified time in the past; never jumps."""


class SystemClock:
    """The clock of this machine."""

    now = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)


class ForwardClock:
    """A clock that follows another one, but never goes back.

    If the other clock is set back, this one continues at the normal rate. It starts at `start` or
    later.
    """

    def __init__(self, clock: Clock, start: float = 0.0) -> None:
        self._clock = clock
        self.monotonic = clock.monotonic
        self._seen = max(clock.now(), start)
        self._seen_at = clock.monotonic()

    def now(self) -> float:
        at = self.monotonic()
        self._seen = max(self._clock.now(), self._seen + at - self._seen_at)
        self._seen_at = at
        return self._seen


def duration(seconds: float) -> str:
    """Return a duration as text in its two largest units, such as `1m 05s`.

    Args:
        seconds: The duration; a negative one counts as 0.
    """
    if seconds < 60:
        return f"{max(seconds, 0.0):.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m {rest:02}s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}h {minutes:02}m"
    days, hours = divmod(hours, 24)
    return f"{days}d {hours:02}h"


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def timespan(text: str) -> float | None:
    """Parse a duration such as `90s`, `30m`, `1.5h`, `30d` or `8w`.

    Args:
        text: The text to parse.

    Returns:
        The seconds; None if the text is not a duration.
    """
    number, unit = text.strip()[:-1], text.strip()[-1:]
    is_number = number.isascii() and number.replace(".", "", 1).isdigit() and len(number) <= 9
    return float(number) * _UNITS[unit] if is_number and unit in _UNITS else None


LATEST = 253370764800.0  # the start of the year 9999 in UTC, a valid date in all time zones


def shown_time(at: float) -> float:
    """Limit a time to the years 1970 to 9998, for which dates can be computed.

    Records may contain any number, for which the functions of datetime would raise errors.

    Args:
        at: Seconds since the epoch, of any size; NaN counts as 0.

    Returns:
        Seconds since the epoch.
    """
    return max(0.0, min(at, LATEST)) if at == at else 0.0
