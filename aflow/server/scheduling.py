"""Starts the runs of schedules when they are due. Several servers may share the schedules: the run
of a tick has an id of its own, so that one server starts it, and the others are told that it is
there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from aflow import tokens
from aflow.errors import (
    AflowError,
    CodePackageError,
    CoordinatorFull,
    MetadataUnavailable,
    NotFound,
    StoreUnavailable,
    VersionConflict,
)
from aflow.placement import keep_from_workers
from aflow.runs.liveness import end_left_run, is_driven, left_for, request_end
from aflow.scheduler.states import TERMINAL_RUN_STATES, RunState
from aflow.server import schedules
from aflow.server.orders import order_of
from aflow.server.schedules import Schedule
from aflow.storage import roots

if TYPE_CHECKING:
    from aflow.clock import Clock
    from aflow.metadata.base import Documents, MetadataStore
    from aflow.server.runs import Runs
    from aflow.storage.blobs import BlobStore

LOOK = 1.0  # seconds between looks
LEFT = 60.0  # seconds that nobody drives a run after which the next one of its schedule begins
DECLARE = 600.0  # seconds after which is said again which package a schedule needs

_log = logging.getLogger("aflow.server")


class Scheduling:
    """The schedules of the metadata, and their ticks."""

    def __init__(
        self,
        documents: Documents,
        metadata: MetadataStore,
        runs: Runs,
        blobs: BlobStore,
        clock: Clock,
    ) -> None:
        self._blobs = blobs
        self._documents = documents
        self._metadata = metadata
        self._runs = runs
        self._clock = clock
        self._busy: set[str] = set()  # schedules whose ticks are being seen to
        self._declared: dict[str, tuple[str, float]] = {}  # packages, and when we said so

    async def look_on(self) -> None:
        """Look for ticks now, and again and again. A schedule whose run takes its time to begin, or
        which is damaged, holds up no other."""
        async with asyncio.TaskGroup() as group:
            while True:
                for schedule, version, come in await asyncio.to_thread(self._due):
                    if schedule.name not in self._busy:
                        self._busy.add(schedule.name)
                        group.create_task(self._see_to(schedule, version, come))
                await asyncio.sleep(LOOK)

    def _due(self) -> list[tuple[Schedule, int, list[float]]]:
        """What is to be started now: schedules, the versions of their documents, and ticks."""
        found, now = [], self._clock.now()
        try:
            for document in self._documents.documents(schedules.KIND):
                try:
                    schedule = schedules.read(document)
                    come = schedules.due(schedule, now)
                except AflowError as error:
                    _log.warning("The schedule %s starts no runs: %s", document.name, error)
                else:
                    found.append((schedule, document.version, come))
                    self._keep_again(schedule)
        except (AflowError, OSError) as error:  # the metadata are away; no descriptor is left
            _log.warning("Schedules cannot be looked at: %s", error)
        return [each for each in found if each[2]]

    async def trigger(self, name: str) -> str:
        """Run the flow of a schedule now; the run's pathspec. Raises NotFound, and what
        `Runs.begin` raises."""
        schedule = await asyncio.to_thread(self.get, name)
        return await self._runs.begin(order_of(schedule.order, [f"--tag=schedule:{name}"]))

    def get(self, name: str) -> Schedule:
        """One schedule. Blocks. Raises NotFound."""
        document = self._documents.document(schedules.KIND, name)
        if document is None:
            raise NotFound(f"There is no schedule {name[:100]!r}.")
        return schedules.read(document)

    def all(self) -> list[Schedule]:
        """All schedules that can be read, by name. Blocks."""
        found = []
        for document in self._documents.documents(schedules.KIND):
            try:
                found.append(schedules.read(document))
            except MetadataUnavailable as error:  # the others are shown all the same
                _log.warning("%s", error)
        return found

    def put(self, schedule: Schedule) -> None:
        """Write a schedule, in the place of one of the same name, whose last run stays known.
        Blocks."""
        there = self._documents.document(schedules.KIND, schedule.name)
        former = None if there is None else schedules.read(there)
        if former is not None:
            schedule = replace(schedule, latest=former.latest)
        version = 0 if there is None else there.version
        new, old = _package(schedule), former and _package(former)
        self._keep(schedule.name, new, *([old] if old else []))  # before anything relies on it
        if not self._blobs.claim(new):
            self._keep(schedule.name, *([old] if old else []))
            raise CodePackageError(
                f"The code package {new[:12]}... is not there (any more): send the code again, "
                "then create the schedule."
            )
        self._documents.put_document(schedules.KIND, schedule.name, schedule.encode(), version)
        self._keep(schedule.name, new)

    def change(self, name: str, fields: Mapping[str, Any]) -> Schedule:
        """Change what these fields say of a schedule (`cron`, `timezone`, `missed`, `overlap`,
        `parameters`, `tags`, `paused`, and who does it), and nothing else: neither its code, nor
        what is known of its runs. Blocks. Raises NotFound, and InvalidInput."""
        document = self._documents.document(schedules.KIND, name)
        if document is None:
            raise NotFound(f"There is no schedule {name[:100]!r}.")
        changed = schedules.changed(schedules.read(document), fields, self._clock.now())
        order_of(changed.order)
        self._documents.put_document(schedules.KIND, name, changed.encode(), document.version)
        return changed

    def delete(self, name: str) -> None:
        """Forget a schedule; its runs stay. Blocks. Raises NotFound."""
        if not self._documents.delete_document(schedules.KIND, name):
            raise NotFound(f"There is no schedule {name[:100]!r}.")
        self._keep(name)

    # ------------------------------------------------------------ code that is kept

    def _keep(self, name: str, *packages: str) -> None:
        """Let `gc` leave these packages alone for the schedule, and no others."""
        root = roots.root_name("schedules", self._metadata.url, name)
        if packages:
            about = f"the schedule {name} of a server on {self._metadata.url}"
            roots.declare(self._blobs.store, root, roots.Root(packages, about))
            self._declared[name] = (packages[0], self._clock.monotonic())
        else:
            roots.withdraw(self._blobs.store, root)
            self._declared.pop(name, None)

    def _keep_again(self, schedule: Schedule) -> None:
        """Say now and then that the package is needed: another server may have withdrawn it while
        the schedule was created again, or the store may be another one now."""
        package, at = self._declared.get(schedule.name, ("", 0.0))
        if package != _package(schedule) or self._clock.monotonic() - at > DECLARE:
            self._keep(schedule.name, _package(schedule))

    # ------------------------------------------------------------ ticks

    async def _see_to(self, schedule: Schedule, version: int, come: list[float]) -> None:
        try:
            for tick in come:
                after = await self._tick(schedule, tick)
                if after is None:
                    return  # not yet: it is tried again
                version = await asyncio.to_thread(
                    self._documents.put_document,
                    schedules.KIND, schedule.name, after.encode(), version,
                )  # fmt: skip
                schedule = after
        except VersionConflict:  # another server has seen to it, or somebody has changed it
            return
        except (AflowError, OSError) as error:  # the metadata are away; no descriptor is left
            _log.warning("The schedule %s cannot be seen to: %s", schedule.name, error)
        except Exception:  # noqa: BLE001 -- logged; other schedules go on
            _log.exception("The schedule %s cannot be seen to.", schedule.name)
        finally:
            self._busy.discard(schedule.name)

    async def _tick(self, schedule: Schedule, tick: float) -> Schedule | None:
        """The schedule after this tick; None if it has to wait."""
        if schedule.latest is not None and schedule.overlap != "allow":
            goes_on = await asyncio.to_thread(self._goes_on, schedule.latest)
            if goes_on and schedule.overlap == "wait":
                return None
            if goes_on and schedule.overlap == "skip":
                said = f"{schedule.latest} was still going on."
                _log.info("The schedule %s starts no run: %s", schedule.name, said)
                return schedules.seen_to(schedule, tick, None, said)
            if goes_on:
                await asyncio.to_thread(self._cancel, schedule.latest)
        if not await asyncio.to_thread(self._may_run, schedule):
            said = (
                f"The token {schedule.created_by}, which created this schedule, was revoked or has "
                "expired: create the schedule again."
            )
            _log.warning("The schedule %s starts no run: %s", schedule.name, said)
            return schedules.seen_to(schedule, tick, None, said)
        run = schedules.run_id(schedule, tick)
        more = [f"--tag=schedule:{schedule.name}", f"--run-id={run}"]
        try:
            pathspec = await self._runs.begin(order_of(schedule.order, more))
        except (CoordinatorFull, StoreUnavailable):
            return None
        except OSError as error:  # no descriptor, no memory, no room on the disk: it is tried again
            _log.warning("The schedule %s cannot start its run: %s", schedule.name, error)
            return None
        except AflowError as error:
            there = await asyncio.to_thread(self._there, schedule, run)
            if there is not None:  # another server was first
                return schedules.seen_to(schedule, tick, there)
            _log.error("The schedule %s could not start its run: %s", schedule.name, error)
            return schedules.seen_to(schedule, tick, None, str(error))
        return schedules.seen_to(schedule, tick, pathspec)

    def _may_run(self, schedule: Schedule) -> bool:
        """Whether the token that created the schedule is still valid: whoever may submit no more
        may not have submitted for ever."""
        if schedule.token is None:
            return True
        token = tokens.of_digest(self._documents, schedule.token)
        return token is not None and token.allows(True, self._clock.now())

    def _there(self, schedule: Schedule, run: str) -> str | None:
        flow = str(schedule.order.get("flow"))
        return f"{flow}/{run}" if self._metadata.run(flow, run) is not None else None

    def _goes_on(self, pathspec: str) -> bool:
        """Whether the run goes on. One that nobody could go on with for a while is ended: it would
        keep its schedule from running for as long as somebody tries."""
        record = self._metadata.run(*pathspec.split("/"))
        if record is None or record.state in TERMINAL_RUN_STATES:
            return False
        if is_driven(record) or left_for(record) < LEFT:
            return True
        reason = (
            f"Nobody drove the run for {left_for(record):.0f} seconds, and the next run of its "
            "schedule was due."
        )
        now = self._clock.now()
        if not end_left_run(self._metadata, record, RunState.FAILED, reason, now):
            return True
        keep_from_workers(record)
        return False

    def _cancel(self, pathspec: str) -> None:
        record = self._metadata.run(*pathspec.split("/"))
        if record is not None:
            reason = "The next tick of its schedule has come."
            if request_end(self._metadata, record, reason, self._clock.now()) == "ended":
                keep_from_workers(record)
            self._runs.cancel(pathspec)


def _package(schedule: Schedule) -> str:
    """The key of the code package of a schedule, whose order was checked when it was written."""
    return str(schedule.order.get("package", ""))
