"""Says what is waited for: nothing that aflow does waits in silence.

Whatever waits for something that may never come tells a `Waiting` of each failed look or try. It
says so once after FIRST seconds, and again each EVERY seconds, with the reason of that moment, to
the logger `aflow`: on the standard error of a command, and wherever a program sends its log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from aflow._core.clock import SystemClock, duration

if TYPE_CHECKING:
    from aflow._core.clock import Clock

FIRST = 5.0  # seconds of waiting after which it is said
EVERY = 60.0  # seconds after which it is said again

_log = logging.getLogger("aflow")


class Waiting:
    """One wait, which begins when this is made. `what` is waited for: "the metadata service at
    http://...". `log` takes the sentences; the logger `aflow` does unless it is given."""

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
        """Note that the wait goes on; the sentence is written when it is time to.

        Args:
            why: The reason, if it is known.
            advice: What the user can do about it.
        """
        waited = self._clock.monotonic() - self._began
        if waited < self._next:
            return
        self._next = waited + EVERY
        reason = f": {why.rstrip('.')}" if why else ""
        more = f" {advice}" if advice else ""
        self._log(f"Waiting for {self._what} ({duration(waited)} so far){reason}.{more}")

    def capped(self, pause: float) -> float:
        """Return the pause, shortened so that it ends when the next sentence is due.

        Args:
            pause: Seconds until the next look.
        """
        left = self._next - (self._clock.monotonic() - self._began)
        return min(pause, left) if left > 0 else pause

    def over(self) -> None:
        """It has come: said if the wait was."""
        if self._next > FIRST:
            waited = self._clock.monotonic() - self._began
            self._log(f"{self._what} is available again after {duration(waited)}; continuing.")
