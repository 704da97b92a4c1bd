"""Log warnings about long waits.

Code that waits for something that may never happen reports each failed poll or try to a `Waiting`.
It logs a warning with the latest reason after FIRST seconds, and then every EVERY seconds, to the
logger `aflow`: a command prints it to stderr.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from aflow._core.clock import SystemClock, duration

if TYPE_CHECKING:
    from aflow._core.clock import Clock

FIRST = 5.0  # seconds before the first warning
EVERY = 60.0  # seconds between further warnings

_log = logging.getLogger("aflow")


class Waiting:
    """One wait, which starts when the object is created.

    `what` describes what is waited for, such as "the metadata service at http://...". `log` is
    called with each message; the default is the logger `aflow`.
    """

    __slots__ = ("_began", "_clock", "_log", "_next", "_what")

    def __init__(
        self,
        what: str,
        clock: Clock | None = None,
        log: Callable[[str], object] | None = None,
    ) -> None:
        self._what = what
        self._clock = clock or SystemClock()
        self._log = log or _log.warning
        self._began = self._clock.monotonic()
        self._next = FIRST

    def still(self, why: str = "", advice: str = "") -> None:
        """Report that the wait continues; log a warning if it is due.

        Args:
            why: The reason, if it is known.
            advice: A sentence on what the user can do about it.
        """
        waited = self._clock.monotonic() - self._began
        if waited < self._next:
            return
        self._next = waited + EVERY
        reason = f": {why.rstrip('.')}" if why else ""
        more = f" {advice}" if advice else ""
        self._log(f"Waiting for {self._what} ({duration(waited)} so far){reason}.{more}")

    def capped(self, pause: float) -> float:
        """Return a pause, shortened so that it ends when the next warning is due.

        Args:
            pause: Seconds until the next poll.
        """
        left = self._next - (self._clock.monotonic() - self._began)
        return min(pause, left) if left > 0 else pause

    def over(self) -> None:
        """Report the end of the wait; log a message if a warning was logged before."""
        if self._next > FIRST:
            waited = self._clock.monotonic() - self._began
            self._log(f"{self._what} is available again after {duration(waited)}; continuing.")
