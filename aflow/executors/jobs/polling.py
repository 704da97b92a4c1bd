"""Polls the status of jobs: once for all executors of a process, with many jobs per call.

The interval is a few seconds while statuses change, and grows while nothing changes. It doubles
while the system throttles us or does not respond.
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
    from aflow.executors.jobs.base import JobState, JobStatus, JobSystem

_log = logging.getLogger("aflow.jobs")

# Between rounds in which nothing changes, and while the system is in trouble. The small jitter only
# separates programs that started at the same time.
QUIET = Backoff(2.0, 30.0, growth=1.2, jitter=0.2)
REFUSED = Backoff(2.0, 120.0, jitter=0.2)

Publish = Callable[["JobStatus"], None]


def next_wait(wait: float, *, changed: bool, refused: bool) -> float:
    """Return the seconds until the next round.

    Args:
        wait: The wait before this round, in seconds.
        changed: Whether this round found changes, which resets the wait.
        refused: Whether the system did not respond; the wait then grows to a higher maximum.
    """
    if refused:
        return REFUSED.after(wait)
    return QUIET.first if changed else QUIET.after(wait)


class Poller:
    """Polls the status of jobs for its watchers. Created by `of`, in a running event loop.

    Its users call the same `system`, which knows what it was asked for: to end pods that do not
    exist yet, for example."""

    _made: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Poller]] = WeakKeyDictionary()

    def __init__(self, system: JobSystem[Any]) -> None:
        self.system = system
        self._scope = system.scope
        self._users = 0
        self._watched: dict[str, Publish] = {}
        self._seen: dict[str, tuple[JobState, int, int]] = {}  # by job: its last progress
        self._hurry = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._refused: Waiting | None = None

    @classmethod
    def of(cls, system: JobSystem[Any]) -> Poller:
        """Return the poller of this event loop for the scope of the system; `leave` it at the end.

        The scope must have been read before, so that this does not block.

        Args:
            system: The job system; systems with the same scope share a poller.
        """
        pollers = cls._made.setdefault(asyncio.get_running_loop(), {})
        poller = pollers.setdefault(system.scope, cls(system))
        poller._users += 1
        return poller

    def leave(self) -> None:
        """Close the system if it has no other user."""
        self._users -= 1
        if not self._users:
            del self._made[asyncio.get_running_loop()][self._scope]
            self.system.close()

    def watch(self, job: str, publish: Publish) -> None:
        """Call `publish` with each status of the job until `unwatch`.

        Args:
            job: The id of the job or of an array's member.
            publish: Called in the event loop with each status, changed or not.
        """
        self._watched[job] = publish
        self.hurry()
        if self._task is None:
            # `unwatch` cancels it when no job is left.
            self._task = asyncio.get_running_loop().create_task(self._poll())

    def unwatch(self, job: str) -> None:
        """Stop publishing the status of the job. May be called twice.

        Args:
            job: The id of the job; unknown ones are ignored.
        """
        self._watched.pop(job, None)
        self._seen.pop(job, None)
        if not self._watched and self._task is not None:
            self._task.cancel()
            self._task = None

    def hurry(self) -> None:
        """Poll soon, since a change is expected."""
        self._hurry.set()

    async def _poll(self) -> None:
        wait = QUIET.first
        while True:
            await asyncio.sleep(QUIET.first)  # the minimum interval of two rounds
            try:
                longer = QUIET.spread(wait - QUIET.first, random.random())
                async with asyncio.timeout(longer):
                    await self._hurry.wait()
                    wait = QUIET.first
            except TimeoutError:  # no hurry: poll after the wait
                pass
            # Not after the round: a job that is watched during it is not a part of it.
            self._hurry.clear()
            wait = next_wait(wait, **await self._round())

    async def _round(self) -> dict[str, bool]:
        """Poll all watched jobs; return whether a status has changed, or the system is busy."""
        jobs = iter([*self._watched])
        changed = False
        while some := [*islice(jobs, self.system.limits.described)]:
            try:
                found = await in_thread(self.system.describe, some)
                for job in some:
                    changed |= self._note(found[job])
            except JobSystemError as error:  # busy, or the credentials have expired
                return self._refused_by(str(error))
            except Exception as error:  # noqa: BLE001 -- otherwise the run would hang without a message
                _log.error(
                    "The states of jobs could not be fetched; this is tried again.", exc_info=error
                )
                return self._refused_by(f"{type(error).__name__}: {error}")
        if self._refused is not None:
            self._refused.over()
            self._refused = None
        return {"changed": changed, "refused": False}

    def _refused_by(self, why: str) -> dict[str, bool]:
        self._refused = self._refused or Waiting(self.system.title)
        self._refused.still(why)
        return {"changed": False, "refused": True}

    def _note(self, status: JobStatus) -> bool:
        publish = self._watched.get(status.id)
        if publish is None:
            return False
        before, now = self._seen.get(status.id), (status.state, status.waiting, status.ended)
        self._seen[status.id] = now
        publish(status)
        return before != now
