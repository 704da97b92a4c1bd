"""Runs that nobody drives any more are taken up: those of this server from before it was stopped or
killed, and those of other servers that share its metadata."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from aflow.errors import AflowError

if TYPE_CHECKING:
    from aflow.metadata.base import MetadataStore
    from aflow.server.runs import Runs

KIND = "server"
"""Runs that a server has begun have owners of this kind."""

LOOK = 2.0  # seconds between looks
_MOST = 100  # runs a look
_LONGEST = 300.0  # seconds between tries of a run that cannot be taken up

_log = logging.getLogger("aflow.server")


def pause_after(tries: int) -> float:
    """Seconds until a run is tried again that could not be taken up, or was left at once."""
    return min(_LONGEST, LOOK * 2.0**tries)


class Sharing:
    """Looks for runs to take up, until it is cancelled."""

    def __init__(self, runs: Runs, metadata: MetadataStore) -> None:
        self._runs = runs
        self._metadata = metadata
        self._tries: dict[str, tuple[int, float]] = {}  # how often, and not before

    async def look_on(self) -> None:
        """Look now, and again and again."""
        while True:
            try:
                await self._look()
            except AflowError as error:  # the metadata are away, say
                _log.warning("Runs that were left cannot be looked for: %s", error)
            await asyncio.sleep(LOOK)

    async def _look(self) -> None:
        found = await asyncio.to_thread(self._metadata.abandoned, KIND, _MOST)
        names = [f"{flow}/{run}" for flow, run in found]
        self._tries = {name: self._tries[name] for name in names if name in self._tries}
        now = asyncio.get_running_loop().time()
        for name in names:
            tries, not_before = self._tries.get(name, (0, 0.0))
            if now >= not_before and self._runs.has_room and name not in self._runs.going_on():
                self._tries[name] = (tries + 1, now + pause_after(tries))
                await self._runs.take_up(name)
