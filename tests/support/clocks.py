"""A clock for tests."""

from __future__ import annotations


class FakeClock:
    """A clock for tests. `advance` moves both readings, `jump` only the time since the epoch."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self._elapsed = now
        self._set_by = 0.0

    def now(self) -> float:
        return self._elapsed + self._set_by

    def monotonic(self) -> float:
        return self._elapsed

    def advance(self, seconds: float) -> None:
        """Move the clock forward.

        Args:
            seconds: The number of seconds, not negative.
        """
        if seconds < 0:
            raise ValueError(f"time cannot go back by {seconds} seconds")
        self._elapsed += seconds

    def jump(self, seconds: float) -> None:
        """Change the time since the epoch, but not the monotonic time.

        Args:
            seconds: The number of seconds to add; may be negative.
        """
        self._set_by += seconds
