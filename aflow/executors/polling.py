"""Asks AWS Batch how jobs are: once for all executors of a process, a hundred jobs a call.

While much happens it asks every few seconds, and less and less often while nothing does. Where AWS
asks it to slow down, or does not answer, it waits twice as long the next time.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from aflow._core.threads import in_thread
from aflow.aws.client import MOST_DESCRIBED
from aflow.errors import AwsError

if TYPE_CHECKING:
    from aflow.aws.client import Calls

SHORTEST, LONGEST = 2.0, 30.0  # seconds between two rounds
LONGEST_WAIT = 120.0  # the same where AWS is in trouble
GROWTH = 1.2  # of the time between rounds in which nothing has changed

Description = Mapping[str, Any]
Tell = Callable[[Description], None]


def next_wait(wait: float, *, changed: bool, refused: bool) -> float:
    """The seconds until the next round, after `wait` before this one: whether it has found
    something new, and whether AWS did not answer."""
    if refused:
        return min(2 * max(wait, SHORTEST), LONGEST_WAIT)
    return SHORTEST if changed else min(max(wait, SHORTEST) * GROWTH, LONGEST)


class Poller:
    """Describes jobs to those who watch them; made by `of`, in a running event loop."""

    _made: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Poller]] = WeakKeyDictionary()

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._watched: dict[str, Tell] = {}
        self._seen: dict[str, object] = {}  # what was said of each the last time
        self._hurry = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def of(cls, calls: Calls) -> Poller:
        """The poller of this event loop for the region of the calls."""
        pollers = cls._made.setdefault(asyncio.get_running_loop(), {})
        return pollers.setdefault(calls.region, cls(calls))

    def watch(self, job: str, tell: Tell) -> None:
        """Tell of the job, again and again, until `unwatch`: its description, of which `status` is
        `UNKNOWN` where AWS Batch knows nothing of it."""
        self._watched[job] = tell
        self.hurry()
        if self._task is None:
            # It ends when nothing is watched any more.
            self._task = asyncio.get_running_loop().create_task(self._poll())

    def unwatch(self, job: str) -> None:
        """Tell no more of the job. May be called again."""
        self._watched.pop(job, None)
        self._seen.pop(job, None)
        if not self._watched and self._task is not None:
            self._task.cancel()
            self._task = None

    def hurry(self) -> None:
        """Something is about to change: the next round comes soon."""
        self._hurry.set()

    async def _poll(self) -> None:
        wait = SHORTEST
        while True:
            self._hurry.clear()
            await asyncio.sleep(SHORTEST)  # at the least: no two rounds are nearer
            try:
                # Not all programs at the same time.
                longer = (wait - SHORTEST) * (0.9 + 0.2 * random.random())
                async with asyncio.timeout(max(0.0, longer)):
                    await self._hurry.wait()
                    wait = SHORTEST
            except TimeoutError:  # it is time to ask anyway
                pass
            wait = next_wait(wait, **await self._round())

    async def _round(self) -> dict[str, bool]:
        """Ask for all that are watched; whether something has changed, and whether AWS refused."""
        jobs = iter([*self._watched])
        changed = False
        while some := [*islice(jobs, MOST_DESCRIBED)]:
            try:
                found = await in_thread(self._calls.described, some)
            except AwsError:  # busy, or the credentials are over: both may be better soon
                return {"changed": False, "refused": True}
            by_id = {each["jobId"]: each for each in found}
            for job in some:
                changed |= self._tell(job, by_id.get(job, {"jobId": job, "status": "UNKNOWN"}))
        return {"changed": changed, "refused": False}

    def _tell(self, job: str, description: Description) -> bool:
        tell = self._watched.get(job)
        if tell is None:
            return False
        array = description.get("arrayProperties") or {}
        said = description["status"], array.get("statusSummary")
        changed = self._seen.get(job) != said
        self._seen[job] = said
        tell(description)
        return changed
