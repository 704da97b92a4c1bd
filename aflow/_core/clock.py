"""The only module that reads a clock.

Everything that decides takes the time as an argument; the edges take a Clock.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Where the time comes from."""

    def now(self) -> float:
        """Return seconds since the epoch, UTC; may jump when somebody sets the machine's clock."""

    def monotonic(self) -> float:
        """Return seconds since some point in the past; never jumps."""


class SystemClock:
    """The clock of this machine."""

    now = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)


class ForwardClock:
    """A clock that follows another one, but never back: when that is set back, this one goes on as
    if nothing had been, and so do waits for a time that it has named. It is not before `start`."""

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


class FakeClock:
    """A clock that a test sets. Both readings move together by `advance`; `jump` moves one."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self._elapsed = now
        self._set_by = 0.0

    def now(self) -> float:
        return self._elapsed + self._set_by

    def monotonic(self) -> float:
        return self._elapsed

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass (not negative).

        Args:
            seconds: How far the clock moves forward; not negative.
        """
        if seconds < 0:
            raise ValueError(f"time cannot go back by {seconds} seconds")
        self._elapsed += seconds

    def jump(self, seconds: float) -> None:
        """Set the clock by `seconds`, forward or back, as somebody sets a machine's clock: the time
        since the epoch changes, and the monotonic time does not.

        Args:
            seconds: The change of the time since the epoch; negative to go back.
        """
        self._set_by += seconds


def duration(seconds: float) -> str:
    """Return a time in the two largest of its units, as `1m 05s`.

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
    """Return the seconds that a number and a unit are, as `90s`, `30m`, `1.5h`, `30d` or `8w`; None
    for any other text.

    Args:
        text: What somebody has typed.
    """
    number, unit = text.strip()[:-1], text.strip()[-1:]
    is_number = number.isascii() and number.replace(".", "", 1).isdigit() and len(number) <= 9
    return float(number) * _UNITS[unit] if is_number and unit in _UNITS else None


LATEST = 253370764800.0  # the first second of the year 9999, which is one in each time zone


def shown_time(at: float) -> float:
    """Return the nearest time of the years 1970 to 9998, in seconds since 1970: records may hold
    any number, and the functions that make dates of them raise errors for others.

    Args:
        at: Seconds since 1970, of any size.
    """
    return max(0.0, min(at, LATEST)) if at == at else 0.0
