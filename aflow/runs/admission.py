"""Limit the number of concurrent runs of a coordinator."""

from __future__ import annotations

import asyncio
from typing import Literal

from aflow.errors import CoordinatorClosed, CoordinatorFull, InvalidInput

WhenFull = Literal["wait", "refuse"]


class Admission:
    """Admission control of a coordinator: at most `most` concurrent runs; None for no limit.

    At the limit, a new run waits in FIFO order or is refused, depending on `when_full`.
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
        """Acquire a slot for one run; waiting callers are admitted in FIFO order.

        Raises:
            CoordinatorFull: If all slots are in use and `when_full` is "refuse".
            CoordinatorClosed: If the coordinator is closed, before the call or during the wait.
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
            self.leave()  # wakes the next waiting caller, which then raises too
            raise

    def leave(self) -> None:
        """Release the slot. Call once for each `enter` that returned."""
        if self._free is not None:
            self._free.release()

    def close(self) -> None:
        """Refuse all further runs."""
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise CoordinatorClosed("The coordinator was closed: it begins no more runs.")
