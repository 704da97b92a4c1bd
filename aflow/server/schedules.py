"""Schedules of a server: what is kept of one, and what is to be done now. Pure, but for reading the
documents."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, get_args

from aflow._core.clock import LATEST
from aflow._core.cron import latest_ticks, next_tick, parse, zone_of
from aflow._core.records import asdict, dataclass, field, replace
from aflow.errors import (
    AflowError,
    CodePackageError,
    CoordinatorFull,
    InvalidInput,
    MetadataUnavailable,
    NotFound,
    StoreUnavailable,
    VersionConflict,
)
from aflow.executors.factory import keep_from_workers
from aflow.metadata import tokens
from aflow.runs.liveness import end_left_run, is_driven, left_for, request_end
from aflow.scheduler.states import TERMINAL_RUN_STATES, RunState
from aflow.server.run_requests import order_of
from aflow.storage import roots

if TYPE_CHECKING:
    from aflow._core.clock import Clock
    from aflow.metadata.base import Document, Documents, MetadataStore
    from aflow.server.runs import Runs
    from aflow.storage.blobs import BlobStore

KIND = "schedule"
ON_TIME = 60.0  # seconds after its time until which a tick is not called missed
LONGEST_AGO = 3653 * 86400.0  # seconds before which no tick was missed
MOST_MISSED = 100  # ticks that are made up for with missed="all": the latest of them

Missed = Literal["latest", "skip", "all"]
Overlap = Literal["skip", "allow", "wait", "cancel"]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}\Z")


@dataclass(frozen=True, slots=True)
class Schedule:
    """When which flow is run. `order` is what `POST /v1/runs` takes. Ticks up to `done_until` have
    been seen to; `latest` is the pathspec of the run of the last that was started.

    `missed` says which ticks are made up for that were due while no server ran; `overlap` what a
    tick does while the run of the previous one is active."""

    name: str
    cron: str
    order: Mapping[str, Any]
    done_until: float
    timezone: str | None = None
    missed: Missed = "latest"
    overlap: Overlap = "skip"
    paused: bool = False
    latest: str | None = None
    reason: str = ""  # why the last tick started no run
    started: int = 0
    skipped: int = 0
    token: str | None = None  # digest of the one that created it; None for a key of the settings
    created_by: str = ""
    known: Mapping[str, Any] = field(default_factory=dict, compare=False)  # of a later version

    def encode(self) -> bytes:
        """Return the schedule as the data of its document."""
        fields = asdict(self)
        later = fields.pop("known")
        del fields["name"]
        return json.dumps({**later, **fields}).encode()


def read(document: Document) -> Schedule:
    """Return the schedule that a document keeps.

    Args:
        document: A document of the kind of schedules; fields of a later aflow are kept.

    Raises:
        MetadataUnavailable: The document is damaged; the error says to create it again.
    """
    try:
        fields = json.loads(document.data)
        ours = {key: value for key, value in fields.items() if key in Schedule.__slots__}
        later = {key: value for key, value in fields.items() if key not in Schedule.__slots__}
        schedule = Schedule(name=document.name, known=later, **ours)
        if not _is_sound(schedule):
            raise ValueError("a field is of another kind")
    except (ValueError, TypeError, AttributeError) as error:
        raise MetadataUnavailable(
            f"The schedule {document.name} is damaged: delete it, and create it again."
        ) from error
    return schedule


def _is_sound(schedule: Any) -> bool:
    """Whether each field is of its kind: nothing has checked what is in the records."""
    texts = (schedule.cron, schedule.reason, schedule.created_by)
    maybe = (schedule.timezone, schedule.latest, schedule.token)
    return (
        all(isinstance(each, str) for each in texts)
        and all(each is None or isinstance(each, str) for each in maybe)
        and isinstance(schedule.order, dict)
        and isinstance(schedule.done_until, int | float)
        and 0 <= schedule.done_until < LATEST
        and schedule.missed in get_args(Missed)
        and schedule.overlap in get_args(Overlap)
        and isinstance(schedule.paused, bool)
        and isinstance(schedule.started, int)
        and isinstance(schedule.skipped, int)
    )


def new(name: object, fields: Mapping[str, Any], now: float) -> Schedule:
    """Return a new schedule, checked.

    Args:
        name: The name that the request gives: it may be anything.
        fields: The fields of the request: those of the schedule and those of the run.
        now: The present time, in seconds since the epoch.

    Raises:
        InvalidInput: A field cannot be used.
    """
    if not isinstance(name, str) or not _NAME.match(name):
        raise InvalidInput("A schedule's name is letters, digits, _ and -, at most 100 of them.")
    cron, zone = fields.get("cron"), fields.get("timezone")
    if not isinstance(cron, str) or len(cron) > 500:
        raise InvalidInput("'cron' has to be an expression such as '0 12 ? * MON-FRI *'.")
    if zone is not None and not isinstance(zone, str):
        raise InvalidInput("'timezone' has to be a name such as Europe/Berlin.")
    if next_tick(parse(cron), zone_of(zone), now) is None:
        raise InvalidInput(f"{cron!r} is never due again.")
    since = fields.get("since", now)
    is_number = isinstance(since, int | float) and not isinstance(since, bool)
    if not is_number or not max(0.0, now - LONGEST_AGO) <= since <= now:
        raise InvalidInput("'since' has to be a time of the last ten years, in seconds since 1970.")
    return Schedule(
        name=name,
        cron=cron,
        order=fields["order"],
        done_until=float(since),
        timezone=zone,
        missed=_one_of("missed", fields.get("missed", "latest"), get_args(Missed)),
        overlap=_one_of("overlap", fields.get("overlap", "skip"), get_args(Overlap)),
        token=fields.get("token"),
        created_by=fields.get("created_by", ""),
    )


def changed(schedule: Schedule, fields: Mapping[str, Any], now: float) -> Schedule:
    """Return a schedule with some fields replaced.

    Args:
        schedule: The schedule as it is; it is not changed.
        fields: New values by field; unknown fields are ignored.
        now: The present time, in seconds since the epoch.

    Raises:
        InvalidInput: A field cannot be used.
    """
    paused = fields.get("paused", schedule.paused)
    if not isinstance(paused, bool):
        raise InvalidInput("'paused' has to be true or false.")
    resumed = schedule.paused and not paused  # what was due while it rested, was not to be run
    schedule = replace(schedule, paused=paused, done_until=now if resumed else schedule.done_until)
    if not fields.keys() - {"paused"}:
        return schedule
    order = {**schedule.order, **{n: fields[n] for n in ("parameters", "tags") if n in fields}}
    names = ("cron", "timezone", "missed", "overlap")
    values = {name: fields.get(name, getattr(schedule, name)) for name in names}
    checked = new(schedule.name, {**values, "order": order}, now)
    is_moved = (checked.cron, checked.timezone) != (schedule.cron, schedule.timezone)
    return replace(
        schedule,
        **{name: getattr(checked, name) for name in names},
        order=order,
        done_until=now if is_moved else schedule.done_until,
        token=fields.get("token"),
        created_by=fields.get("created_by", ""),
    )


def _one_of(what: str, value: Any, allowed: tuple[Any, ...]) -> Any:
    if value not in allowed:
        raise InvalidInput(f"{what!r} has to be one of: {', '.join(allowed)}.")
    return value


# ------------------------------------------------------------------ deciding


def due(schedule: Schedule, now: float) -> list[float]:
    """Return the ticks that are to be started now, in their order. Those before them, up to `now`,
    are not: they were missed.

    Args:
        schedule: The schedule; a paused one has nothing due.
        now: The present time, in seconds since the epoch.
    """
    if schedule.paused:
        return []
    cron, zone = parse(schedule.cron), zone_of(schedule.timezone)
    come = latest_ticks(cron, zone, schedule.done_until, now, MOST_MISSED)
    on_time = [at for at in come if now - at <= ON_TIME]
    if schedule.missed == "all":
        return come
    return on_time if schedule.missed == "skip" else (on_time or come[-1:])


def upcoming(schedule: Schedule, now: float) -> float | None:
    """Return the time at which it is due next; None if it is paused, or has no further one.

    Args:
        schedule: The schedule.
        now: The present time, in seconds since the epoch.
    """
    if schedule.paused:
        return None
    after = max(schedule.done_until, now)
    return next_tick(parse(schedule.cron), zone_of(schedule.timezone), after)


def ticks(cron: str, zone: str | None, now: float, count: int) -> list[float]:
    """Return the next times at which an expression is due, `count` at most: fewer where it ends.

    Args:
        cron: The expression of cron or of AWS.
        zone: The name of the time zone; None for UTC.
        now: The present time, in seconds since the epoch.
        count: How many times at most.

    Raises:
        InvalidInput: The expression or the time zone cannot be used.
    """
    found: list[float] = []
    parsed, place = parse(cron), zone_of(zone)
    while len(found) < count:
        at = next_tick(parsed, place, found[-1] if found else now)
        if at is None:
            break
        found.append(at)
    return found


def run_id(schedule: Schedule, tick: float) -> str:
    """Return the id of the run of a tick: of two servers that start it, one is refused.

    Args:
        schedule: The schedule, whose name the id begins with.
        tick: The time at which it was due, in seconds since the epoch.
    """
    when = datetime.fromtimestamp(tick, UTC).strftime("%Y%m%dT%H%M%SZ")
    return f"{schedule.name}-{when}"


def after_tick(schedule: Schedule, until: float, run: str | None, reason: str = "") -> Schedule:
    """Return the schedule after a tick that started this run, or none, for this reason.

    Args:
        schedule: The schedule as it was before the tick; it is not changed.
        until: The time of the tick, in seconds since the epoch.
        run: The id of the run that was started; None for none.
        reason: Why no run was started; empty where one was.
    """
    return replace(
        schedule,
        done_until=until,
        latest=run or schedule.latest,
        reason=reason,
        started=schedule.started + (run is not None),
        skipped=schedule.skipped + (run is None and bool(reason)),
    )


# Starts the runs of schedules when they are due. Several servers may share the schedules: the run
# of a tick has an id of its own, so that one server starts it, and the others find that it is
# there.


LOOK = 1.0  # seconds between looks
LEFT = 60.0  # seconds that a run is orphaned after which the next one of its schedule begins
DECLARE = 600.0  # seconds after which is declared again which package a schedule needs

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
        self._declared: dict[str, tuple[str, float]] = {}  # packages, and when we declared them

    async def run_forever(self) -> None:
        """Look for ticks now, and again and again. A schedule whose run takes its time to begin, or
        which is damaged, holds up no other."""
        async with asyncio.TaskGroup() as group:
            while True:
                for schedule, version, come in await asyncio.to_thread(self._due):
                    if schedule.name not in self._busy:
                        self._busy.add(schedule.name)
                        group.create_task(self._start_due(schedule, version, come))
                await asyncio.sleep(LOOK)

    def _due(self) -> list[tuple[Schedule, int, list[float]]]:
        """What is to be started now: schedules, the versions of their documents, and ticks."""
        found, now = [], self._clock.now()
        try:
            for document in self._documents.documents(KIND):
                try:
                    schedule = read(document)
                    come = due(schedule, now)
                except AflowError as error:
                    _log.warning("The schedule %s starts no runs: %s", document.name, error)
                else:
                    found.append((schedule, document.version, come))
                    self._keep_again(schedule)
        except (AflowError, OSError) as error:  # the metadata do not answer; no descriptor is left
            _log.warning("Schedules cannot be looked at: %s", error)
        return [each for each in found if each[2]]

    async def trigger(self, name: str) -> str:
        """Run the flow of a schedule now. Raises what `Runs.begin` raises.

        Args:
            name: The name of the schedule, which may be paused.

        Returns:
            The pathspec of the run.

        Raises:
            NotFound: There is no such schedule.
        """
        schedule = await asyncio.to_thread(self.get, name)
        return await self._runs.begin(order_of(schedule.order, [f"--tag=schedule:{name}"]))

    def get(self, name: str) -> Schedule:
        """Return a schedule. Blocks.

        Args:
            name: The name of the schedule.

        Raises:
            NotFound: There is no such schedule.
        """
        return read(self._document(name))

    def _document(self, name: str) -> Document:
        document = self._documents.document(KIND, name)
        if document is None:
            raise NotFound(f"There is no schedule {name[:100]!r}.")
        return document

    def all(self) -> list[Schedule]:
        """Return all schedules that can be read, by name. Blocks."""
        found = []
        for document in self._documents.documents(KIND):
            try:
                found.append(read(document))
            except MetadataUnavailable as error:  # the others are shown all the same
                _log.warning("%s", error)
        return found

    def put(self, schedule: Schedule) -> None:
        """Write a schedule, in the place of one of the same name, whose last run stays known.
        Blocks.

        Args:
            schedule: The schedule, checked; its code package has been sent before.

        Raises:
            CodePackageError: The schedule's code package does not exist.
        """
        there = self._documents.document(KIND, schedule.name)
        former = None if there is None else read(there)
        if former is not None:
            schedule = replace(schedule, latest=former.latest)
        version = 0 if there is None else there.version
        new, old = _package(schedule), former and _package(former)
        self._keep(schedule.name, new, *([old] if old else []))  # before anything relies on it
        if not self._blobs.claim(new):
            self._keep(schedule.name, *([old] if old else []))
            raise CodePackageError(
                f"The code package {new[:12]}... does not exist, or no longer: send the code "
                "again, then create the schedule."
            )
        self._documents.put_document(KIND, schedule.name, schedule.encode(), version)
        self._keep(schedule.name, new)

    def change(self, name: str, fields: Mapping[str, Any]) -> Schedule:
        """Change fields of a schedule (`cron`, `timezone`, `missed`, `overlap`, `parameters`,
        `tags`, `paused`, and the user who does it), and nothing else: neither its code, nor what is
        known of its runs. Blocks.

        Args:
            name: The name of the schedule.
            fields: New values by field; other fields than these are ignored.

        Returns:
            The changed schedule.

        Raises:
            NotFound: There is no such schedule.
            InvalidInput: A field cannot be used.
        """
        document = self._document(name)
        edited = changed(read(document), fields, self._clock.now())
        order_of(edited.order)
        self._documents.put_document(KIND, name, edited.encode(), document.version)
        return edited

    def delete(self, name: str) -> None:
        """Forget a schedule; its runs stay. Blocks. Raises NotFound."""
        if not self._documents.delete_document(KIND, name):
            raise NotFound(f"There is no schedule {name[:100]!r}.")
        self._keep(name)

    # ------------------------------------------------------------ code that is kept

    def _keep(self, name: str, *packages: str) -> None:
        """Let `gc` leave these packages alone for the schedule, and no others."""
        root = roots.root_name("schedules", self._metadata.url, name)
        if packages:
            about = f"the schedule {name} of a server on {self._metadata.url}"
            roots.declare(self._blobs.store, root, roots.GcRoot(packages, about))
            self._declared[name] = (packages[0], self._clock.monotonic())
        else:
            roots.withdraw(self._blobs.store, root)
            self._declared.pop(name, None)

    def _keep_again(self, schedule: Schedule) -> None:
        """Declare now and then that the package is needed: another server may have withdrawn it
        while the schedule was created again, or the store may be another one now."""
        package, at = self._declared.get(schedule.name, ("", 0.0))
        if package != _package(schedule) or self._clock.monotonic() - at > DECLARE:
            self._keep(schedule.name, _package(schedule))

    # ------------------------------------------------------------ ticks

    async def _start_due(self, schedule: Schedule, version: int, come: list[float]) -> None:
        try:
            for tick in come:
                after = await self._tick(schedule, tick)
                if after is None:
                    return  # not yet: it is tried again
                version = await asyncio.to_thread(
                    self._documents.put_document,
                    KIND, schedule.name, after.encode(), version,
                )  # fmt: skip
                schedule = after
        except VersionConflict:  # another server has handled it, or a user has changed it
            return
        except (AflowError, OSError) as error:  # the metadata do not answer; no descriptor is left
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
                reason = f"{schedule.latest} was still going on."
                _log.info("The schedule %s starts no run: %s", schedule.name, reason)
                return after_tick(schedule, tick, None, reason)
            if goes_on:
                await asyncio.to_thread(self._cancel, schedule.latest)
        if not await asyncio.to_thread(self._may_run, schedule):
            reason = (
                f"The token {schedule.created_by}, which created this schedule, was revoked or has "
                "expired: create the schedule again."
            )
            _log.warning("The schedule %s starts no run: %s", schedule.name, reason)
            return after_tick(schedule, tick, None, reason)
        run = run_id(schedule, tick)
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
                return after_tick(schedule, tick, there)
            _log.error("The schedule %s could not start its run: %s", schedule.name, error)
            return after_tick(schedule, tick, None, str(error))
        return after_tick(schedule, tick, pathspec)

    def _may_run(self, schedule: Schedule) -> bool:
        """Whether the token that created the schedule is still valid: a caller that may submit no
        more may not have submitted for ever."""
        if schedule.token is None:
            return True
        token = tokens.of_digest(self._documents, schedule.token)
        return token is not None and token.allows(True, self._clock.now())

    def _there(self, schedule: Schedule, run: str) -> str | None:
        flow = str(schedule.order.get("flow"))
        return f"{flow}/{run}" if self._metadata.run(flow, run) is not None else None

    def _goes_on(self, pathspec: str) -> bool:
        """Whether the run is active. One that was orphaned for a while is ended: it would keep its
        schedule from running for as long as servers try to recover it."""
        record = self._metadata.run(*pathspec.split("/"))
        if record is None or record.state in TERMINAL_RUN_STATES:
            return False
        if is_driven(record) or left_for(record) < LEFT:
            return True
        reason = (
            f"No coordinator drove the run for {left_for(record):.0f} seconds, and the next run "
            "of its schedule was due."
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
