"""Recovers runs without a coordinator: those of this server from before it was stopped or
killed, and those of other servers that share its metadata. One that cannot be recovered is ended:
at once if it was cancelled, else after a while."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Literal

from aflow._core.backoff import Backoff
from aflow._core.clock import duration
from aflow._core.records import dataclass
from aflow.errors import AflowError
from aflow.executors.factory import keep_from_workers
from aflow.metadata.base import LEASE
from aflow.runs.liveness import end_left_run, is_driven, left_for
from aflow.scheduler.states import TERMINAL_RUN_STATES, RunState

if TYPE_CHECKING:
    from aflow._core.clock import Clock
    from aflow.metadata.base import MetadataStore, RunRecord
    from aflow.server.runs import Runs

KIND = "server"
"""The kind of lease holder of runs that a server has started."""

LOOK = 2.0  # seconds between looks
RECOVERY = 3600.0  # seconds after which a run that cannot be recovered has failed
_MOST = 100  # runs a look
BACKOFF = Backoff(2 * LOOK, 300.0)  # of a run that cannot be recovered, or was left at once
_FEWEST = 5  # failed tries (a minute of them) before a run is given up
_LOADING = 120.0  # seconds that a process has to take its run up
_REMEMBERED = 600.0  # seconds after which the tries of a run that was recovered are forgotten
_FORGET = 600.0  # seconds between looks at orders that are kept
_MOST_FORGOTTEN = 1000  # orders a look
_WATCHED = 3 * LEASE  # seconds that a run whose end was asked for is watched

_log = logging.getLogger("aflow.server")

Next = Literal["recover", "wait", "cancel", "fail"]


@dataclass(slots=True)
class Tries:
    """What was done to recover one run. Times are those of a clock that never jumps."""

    since: float
    begun: int = 0
    failed: int = 0
    not_before: float = 0.0
    latest: float = 0.0  # when the last one began
    seen: float = 0.0  # when the run was last found to be left
    error: str = ""  # of the last try that failed


def next_for(tries: Tries, run: RunRecord, now: float, recovery: float) -> Next:
    """Return what is to be done with an orphaned run.

    Args:
        tries: How often this server has tried to recover the run, and when it last failed.
        run: The record of the orphaned run; its lease says whether it is to be cancelled.
        now: The present time, in seconds since the epoch.
        recovery: For how many seconds recovery is tried before the run is recorded as failed.
    """
    cancelled = run.lease is not None and run.lease.cancel is not None
    if cancelled and tries.failed:
        return "cancel"
    # Both tries and time: a run that was orphaned while no server was running still gets its tries.
    if tries.failed >= _FEWEST and max(now - tries.since, left_for(run)) >= recovery:
        return "fail"
    return "recover" if now >= tries.not_before or cancelled else "wait"


class RunRecovery:
    """Looks for runs to recover, until it is cancelled. A run that could not be recovered for
    `recovery` seconds has failed."""

    def __init__(
        self, runs: Runs, metadata: MetadataStore, clock: Clock, recovery: float = RECOVERY
    ) -> None:
        self._runs = runs
        self._metadata = metadata
        self._clock = clock
        self._recovery = recovery
        self._tries: dict[str, Tries] = {}
        self._forget_at = float("-inf")
        self._cancelled: dict[str, float] = {}  # runs to watch, and until when

    def watch(self, pathspec: str) -> None:
        """See that a run which was cancelled ends, though whatever drives it may have died a moment
        ago.

        Args:
            pathspec: The pathspec of the run, `flow/run`.
        """
        self._cancelled[pathspec] = self._clock.monotonic() + _WATCHED

    async def run_forever(self) -> None:
        """Look now, and again and again."""
        while True:
            try:
                await self._look()
                await self._look_at_cancelled()
                await self._forget_ended()
            except AflowError as error:  # the metadata do not answer, say
                _log.warning("Runs that were left cannot be looked for: %s", error)
            except OSError as error:  # no descriptor, no memory, no process available
                _log.warning("Orphaned runs cannot be recovered: %s", error)
            await asyncio.sleep(LOOK)

    async def _look(self) -> None:
        found = await asyncio.to_thread(self._metadata.orphaned, KIND, _MOST)
        now = self._clock.monotonic()
        for flow, run in found:
            name = f"{flow}/{run}"
            tries = self._tries.setdefault(name, Tries(since=now))
            tries.seen = now
            if name in self._runs.going_on():
                if tries.begun and now - tries.latest > _LOADING:
                    self._runs.kill(name)  # what its file does when it is imported never ends
                continue
            self._note_failed(name, tries)
            record = await asyncio.to_thread(self._metadata.run, flow, run)
            if record is not None and record.state not in TERMINAL_RUN_STATES:
                await self._act_on(name, record, tries, now)
        self._tries = {
            name: tries for name, tries in self._tries.items() if now - tries.seen < _REMEMBERED
        }

    def _note_failed(self, name: str, tries: Tries) -> None:
        error = self._runs.last_error(name)
        if error is not None:
            tries.failed, tries.error = tries.failed + 1, error

    async def _act_on(self, name: str, record: RunRecord, tries: Tries, now: float) -> None:
        what = next_for(tries, record, now, self._recovery)
        if what == "recover" and self._runs.has_room:
            tries.begun, tries.latest = tries.begun + 1, now
            tries.not_before = now + BACKOFF.bound(tries.begun)
            await self._runs.recover(name)
        elif what == "cancel":
            assert record.lease is not None, "a run that is to be cancelled has a lease"
            await self._end(record, RunState.CANCELLED, str(record.lease.cancel))
        elif what == "fail":
            await self._end(
                record,
                RunState.FAILED,
                f"The run could not be recovered for {duration(self._recovery)} after its "
                f"coordinator had died: {tries.error}",
            )

    async def _look_at_cancelled(self) -> None:
        now = self._clock.monotonic()
        for name, until in [*self._cancelled.items()]:
            record = await asyncio.to_thread(self._metadata.run, *name.split("/"))
            if record is None or record.state in TERMINAL_RUN_STATES or now > until:
                del self._cancelled[name]
            elif name not in self._runs.going_on() and not is_driven(record):
                reason = record.lease and record.lease.cancel
                await self._end(record, RunState.CANCELLED, reason or "The run was cancelled.")

    async def _forget_ended(self) -> None:
        """Remove the orders of runs that have ended, now and then."""
        now = self._clock.monotonic()
        if now >= self._forget_at:
            self._forget_at = now + _FORGET
            await asyncio.to_thread(self._forget)

    def _forget(self) -> None:
        for name in self._runs.remembered(_MOST_FORGOTTEN):
            record = self._metadata.run(*name.split("/"))
            if record is None or record.state in TERMINAL_RUN_STATES:
                self._runs.forget(name)

    async def _end(self, record: RunRecord, state: RunState, reason: str) -> None:
        done = await asyncio.to_thread(
            end_left_run, self._metadata, record, state, reason, self._clock.now()
        )
        if done:
            await asyncio.to_thread(keep_from_workers, record)
            name = f"{record.flow}/{record.run}"
            _log.warning("%s, which has no coordinator, is %s: %s", name, state.value, reason)
