"""Recovery of orphaned runs: runs without a coordinator, of this server before its restart or of
other servers with the same metadata. A run that cannot be recovered is recorded as cancelled if
that was requested, else as failed after a while."""

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
"""The kind of lease holder of the runs that a server has started."""

LOOK = 2.0  # seconds between searches
RECOVERY = 3600.0  # seconds after which an unrecoverable run is recorded as failed
_MOST = 100  # runs per search
BACKOFF = Backoff(2 * LOOK, 300.0)  # between attempts to recover the same run
_FEWEST = 5  # failed attempts (about a minute) before a run can be recorded as failed
_LOADING = 120.0  # seconds for a recovering process to acquire the lease of its run
_REMEMBERED = 600.0  # seconds after which the attempts for a recovered run are forgotten
_FORGET = 600.0  # seconds between removals of stored run requests
_MOST_FORGOTTEN = 1000  # run requests checked per removal
_WATCHED = 3 * LEASE  # seconds for which a cancelled run is watched

_log = logging.getLogger("aflow.server")

Next = Literal["recover", "wait", "cancel", "fail"]


@dataclass(slots=True)
class Tries:
    """The attempts to recover one run. Times are those of the monotonic clock."""

    since: float
    begun: int = 0
    failed: int = 0
    not_before: float = 0.0
    latest: float = 0.0  # start of the latest attempt
    seen: float = 0.0  # when the run was last found to be orphaned
    error: str = ""  # error of the latest failed attempt


def next_for(tries: Tries, run: RunRecord, now: float, recovery: float) -> Next:
    """Return the next action for an orphaned run.

    Args:
        tries: The attempts of this server to recover the run.
        run: The record of the orphaned run; its lease contains a cancel request, if any.
        now: The current time of the monotonic clock, in seconds.
        recovery: The seconds after which an unrecoverable run is recorded as failed.
    """
    cancelled = run.lease is not None and run.lease.cancel is not None
    if cancelled and tries.failed:
        return "cancel"
    # Both conditions: a run that was orphaned while no server was running still gets its attempts.
    if tries.failed >= _FEWEST and max(now - tries.since, left_for(run)) >= recovery:
        return "fail"
    return "recover" if now >= tries.not_before or cancelled else "wait"


class RunRecovery:
    """Recovers orphaned runs. A run that could not be recovered for `recovery` seconds is recorded
    as failed."""

    def __init__(
        self, runs: Runs, metadata: MetadataStore, clock: Clock, recovery: float = RECOVERY
    ) -> None:
        self._runs = runs
        self._metadata = metadata
        self._clock = clock
        self._recovery = recovery
        self._tries: dict[str, Tries] = {}
        self._forget_at = float("-inf")
        self._cancelled: dict[str, float] = {}  # runs to watch, and the deadline of each

    def watch(self, pathspec: str) -> None:
        """Ensure that a cancelled run ends, even if its coordinator has just crashed.

        Args:
            pathspec: The pathspec of the run, `flow/run`.
        """
        self._cancelled[pathspec] = self._clock.monotonic() + _WATCHED

    async def run_forever(self) -> None:
        """Search for orphaned and cancelled runs periodically."""
        while True:
            try:
                await self._look()
                await self._look_at_cancelled()
                await self._forget_ended()
            except AflowError as error:  # for example, the metadata do not respond
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
                    self._runs.kill(name)  # the import of its flow file hangs
                continue
            error = self._runs.last_error(name)
            if error is not None:
                tries.failed, tries.error = tries.failed + 1, error
            record = await asyncio.to_thread(self._metadata.run, flow, run)
            if record is not None and record.state not in TERMINAL_RUN_STATES:
                await self._act_on(name, record, tries, now)
        self._tries = {
            name: tries for name, tries in self._tries.items() if now - tries.seen < _REMEMBERED
        }

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
        """Remove the stored requests of finished runs periodically."""
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
