"""Asks a job system how jobs are: once for all executors of a process, many jobs a call.

While much happens it asks every few seconds, and less and less often while nothing does. Where the
system asks it to slow down, or does not answer, it waits twice as long the next time.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from aflow._core.backoff import Backoff
from aflow._core.threads import in_thread
from aflow._core.waiting import Waiting
from aflow.errors import JobSystemError

if TYPE_CHECKING:
    from collections.abc import Hashable

    from aflow.executors.jobs.base import JobStatus, JobSystem

_log = logging.getLogger("aflow.jobs")

# Between two rounds in which nothing has changed, and where the system is in trouble. The jitter is
# small: it only keeps programs apart that began at the same time.
QUIET = Backoff(2.0, 30.0, growth=1.2, jitter=0.2)
REFUSED = Backoff(2.0, 120.0, jitter=0.2)

Publish = Callable[["JobStatus"], None]


def next_wait(wait: float, *, changed: bool, refused: bool) -> float:
    """Return the seconds until the next round, after `wait` before this one: whether it has found
    something new, and whether the system did not answer.

    Args:
        wait: The wait before this round, in seconds.
        changed: Whether this round has found something new, which shortens the wait.
        refused: Whether the system did not answer, which makes it grow to a longer maximum.
    """
    if refused:
        return REFUSED.after(wait)
    return QUIET.first if changed else QUIET.after(wait)


class Poller:
    """Describes jobs to those who watch them; made by `of`, in a running event loop."""

    _made: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Poller]] = WeakKeyDictionary()

    def __init__(self, system: JobSystem[Any]) -> None:
        self._system = system
        self._watched: dict[str, Publish] = {}
        self._seen: dict[str, Hashable] = {}  # the version of each in the last round
        self._hurry = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._refused: Waiting | None = None

    @classmethod
    def of(cls, system: JobSystem[Any]) -> Poller:
        """Return the poller of this event loop for the scope of the system, which is known by now.

        Args:
            system: The job system; systems of one scope share a poller, so that each job is asked
                for once.
        """
        pollers = cls._made.setdefault(asyncio.get_running_loop(), {})
        return pollers.setdefault(system.scope, cls(system))

    def watch(self, job: str, publish: Publish) -> None:
        """Call `publish` with the status of the job, again and again, until `unwatch`.

        Args:
            job: The id of the job or of an array's member.
            publish: Called in the event loop with each status, changed or not.
        """
        self._watched[job] = publish
        self.hurry()
        if self._task is None:
            # It ends when nothing is watched any more.
            self._task = asyncio.get_running_loop().create_task(self._poll())

    def unwatch(self, job: str) -> None:
        """Publish nothing more of the job. May be called again.

        Args:
            job: The id of the job; unknown ones are ignored.
        """
        self._watched.pop(job, None)
        self._seen.pop(job, None)
        if not self._watched and self._task is not None:
            self._task.cancel()
            self._task = None

    def hurry(self) -> None:
        """Look again soon, since something is about to change."""
        self._hurry.set()

    async def _poll(self) -> None:
        wait = QUIET.first
        while True:
            self._hurry.clear()
            await asyncio.sleep(QUIET.first)  # at the least: no two rounds are nearer
            try:
                longer = QUIET.spread(wait - QUIET.first, random.random())
                async with asyncio.timeout(longer):
                    await self._hurry.wait()
                    wait = QUIET.first
            except TimeoutError:  # it is time to ask anyway
                pass
            wait = next_wait(wait, **await self._round())

    async def _round(self) -> dict[str, bool]:
        """Ask for all that are watched; whether something has changed, and whether the system did
        not answer."""
        jobs = iter([*self._watched])
        changed = False
        while some := [*islice(jobs, self._system.limits.described)]:
            try:
                found = await in_thread(self._system.describe, some)
                for job in some:
                    changed |= self._note(found[job])
            except JobSystemError as error:  # busy, or the credentials have expired
                return self._refused_by(str(error))
            except Exception as error:  # noqa: BLE001 -- else the run would wait for ever, unnoticed
                _log.error(
                    "The states of jobs could not be fetched; this is tried again.", exc_info=error
                )
                return self._refused_by(f"{type(error).__name__}: {error}")
        if self._refused is not None:
            self._refused.over()
            self._refused = None
        return {"changed": changed, "refused": False}

    def _refused_by(self, why: str) -> dict[str, bool]:
        self._refused = self._refused or Waiting(self._system.title)
        self._refused.still(why)
        return {"changed": False, "refused": True}

    def _note(self, status: JobStatus) -> bool:
        publish = self._watched.get(status.id)
        if publish is None:
            return False
        changed = self._seen.get(status.id) != status.version
        self._seen[status.id] = status.version
        publish(status)
        return changed
