"""How many runs may go on at once, and what becomes of those that come when there are enough."""

from __future__ import annotations

import asyncio
from typing import Literal

from aflow.errors import CoordinatorClosed, CoordinatorFull, InvalidInput

WhenFull = Literal["wait", "refuse"]


class Admission:
    """Admission control of a coordinator: at most `most` runs go on (None: any number).

    A caller that comes when it is full waits in line, or is refused, as `when_full` says.
    """

    def __init__(self, most: int | None, when_full: WhenFull) -> None:
        if most is not None and (isinstance(most, bool) or most < 1):
            raise InvalidInput(f"max_runs is a number of runs, at least 1, or None: not {most!r}.")
        if when_full not in ("wait", "refuse"):
            raise InvalidInput(f"when_full is 'wait' or 'refuse': not {when_full!r}.")
        self._most = most
        self._refuses = when_full == "refuse"
        self._free = None if most is None else asyncio.Semaphore(most)
        self._closed = False

    async def enter(self) -> None:
        """Wait for room for one more run, in the order of the calls.

        Raises:
            CoordinatorFull: There is no room, and waiting is not allowed.
            CoordinatorClosed: The coordinator was closed, also while this waited.
        """
        self._check_open()
        if self._free is None:
            return
        if self._refuses and self._free.locked():
            raise CoordinatorFull(
                f"{self._most} runs are going on, which is all that this coordinator may have at "
                "once (max_runs): try again when one has ended."
            )
        await self._free.acquire()
        try:
            self._check_open()
        except CoordinatorClosed:
            self.leave()  # to the next waiting caller, which is refused likewise
            raise

    def leave(self) -> None:
        """Go out, once for each `enter` that returned."""
        if self._free is not None:
            self._free.release()

    def close(self) -> None:
        """Let nobody in any more."""
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise CoordinatorClosed("The coordinator was closed: it begins no more runs.")
