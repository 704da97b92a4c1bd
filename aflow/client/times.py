"""Times for people: with the zone of this machine."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import overload

from aflow.clock import shown_time


@overload
def local_time(at: float) -> datetime: ...
@overload
def local_time(at: None) -> None: ...
def local_time(at: float | None) -> datetime | None:
    """Seconds since the epoch as a time of this machine's zone; None for None."""
    return None if at is None else datetime.fromtimestamp(shown_time(at), UTC).astimezone()
