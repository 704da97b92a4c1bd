"""Schedules of a server: their records, the computation of due ticks, and the background task that
starts their runs."""

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
ON_TIME = 60.0  # seconds after its time before a tick counts as missed
LONGEST_AGO = 3653 * 86400.0  # oldest missed tick that is considered, in seconds before now
MOST_MISSED = 100  # latest missed ticks that are run with missed="all"

Missed = Literal["latest", "skip", "all"]
Overlap = Literal["skip", "allow", "wait", "cancel"]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}\Z")


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule of runs of a flow.

    `order` is the body of `POST /v1/runs`. Ticks up to `done_until` have been handled; `latest` is
    the pathspec of the last run that the schedule started. `missed` selects which ticks that were
    missed while no server was running are run afterwards. `overlap` selects the action of a tick if
    the run of the previous one is still active."""

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
    token: str | None = None  # digest of the creator's token; None for a key from the settings
    created_by: str = ""
    known: Mapping[str, Any] = field(default_factory=dict, compare=False)  # of later versions

    def encode(self) -> bytes:
        """Return the schedule encoded as the data of its document."""
        fields = asdict(self)
        later = fields.pop("known")
        del fields["name"]
        return json.dumps({**later, **fields}).encode()


def read(document: Document) -> Schedule:
    """Return the schedule stored in a document.

    Args:
        document: A document of kind `KIND`; fields of later versions of aflow are preserved.

    Raises:
        MetadataUnavailable: If the document is damaged.
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
    """Return whether each field has a valid type: the records are not validated otherwise."""
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
    """Return a new schedule from validated fields.

    Args:
        name: The unchecked name in the request.
        fields: The unchecked fields of the request, with the run request in `order`.
        now: The current time, in seconds since the epoch.

    Raises:
        InvalidInput: If a field is invalid.
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
        now: The current time, in seconds since the epoch.

    Raises:
        InvalidInput: If a field is invalid.
    """
    paused = fields.get("paused", schedule.paused)
    if not isinstance(paused, bool):
        raise InvalidInput("'paused' has to be true or false.")
    resumed = schedule.paused and not paused  # ticks that were due during the pause are not run
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


def due(schedule: Schedule, now: float, *, waits: bool = False) -> list[float]:
    """Return the ticks to start now, in order. All other ticks up to `now` were missed.

    Args:
        schedule: The schedule; a paused one has no due ticks.
        now: The current time, in seconds since the epoch.
        waits: Whether a tick has waited since it was due: then the latest one is not missed.
    """
    if schedule.paused:
        return []
    cron, zone = parse(schedule.cron), zone_of(schedule.timezone)
    come = latest_ticks(cron, zone, schedule.done_until, now, MOST_MISSED)
    on_time = [at for at in come if now - at <= ON_TIME]
    if schedule.missed == "all":
        return come
    return on_time if schedule.missed == "skip" and not waits else (on_time or come[-1:])


def upcoming(schedule: Schedule, now: float) -> float | None:
    """Return the time of the next tick; None if the schedule is paused or has no more ticks.

    Args:
        schedule: The schedule.
        now: The current time, in seconds since the epoch.
    """
    if schedule.paused:
        return None
    after = max(schedule.done_until, now)
    return next_tick(parse(schedule.cron), zone_of(schedule.timezone), after)


def ticks(cron: str, zone: str | None, now: float, count: int) -> list[float]:
    """Return the next `count` times at which an expression is due; fewer if it ends.

    Args:
        cron: A cron expression in Unix or AWS syntax.
        zone: The name of the time zone; None for UTC.
        now: The current time, in seconds since the epoch.
        count: The maximum number of times.

    Raises:
        InvalidInput: If the expression or the time zone is invalid.
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
    """Return the run id for a tick, which is unique, so that only one of several servers can start
    it.

    Args:
        schedule: The schedule; its name is the prefix of the id.
        tick: The time of the tick, in seconds since the epoch.
    """
    when = datetime.fromtimestamp(tick, UTC).strftime("%Y%m%dT%H%M%SZ")
    return f"{schedule.name}-{when}"


def after_tick(schedule: Schedule, until: float, run: str | None, reason: str = "") -> Schedule:
    """Return the schedule updated after a tick.

    Args:
        schedule: The schedule before the tick; it is not changed.
        until: The time of the tick, in seconds since the epoch.
        run: The pathspec of the started run; None if no run was started.
        reason: The reason if no run was started, else empty.
    """
    return replace(
        schedule,
        done_until=until,
        latest=run or schedule.latest,
        reason=reason,
        started=schedule.started + (run is not None),
        skipped=schedule.skipped + (run is None and bool(reason)),
    )


# The background task. Several servers may share the schedules: the run of a tick has a fixed id, so
# that the first server starts it, and the others find that it exists.


LOOK = 1.0  # seconds between searches for due ticks
LEFT = 60.0  # seconds after which an orphaned run no longer blocks the next run of its schedule
DECLARE = 600.0  # seconds between renewals of the GC root for a schedule's code package

_log = logging.getLogger("aflow.server")


class Scheduling:
    """The stored schedules, and the task that starts their runs."""

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
        self._busy: set[str] = set()  # schedules whose ticks are being handled
        self._waiting: set[str] = set()  # schedules whose latest tick is retried
        self._declared: dict[str, tuple[str, float]] = {}  # package and time of each GC root

    async def run_forever(self) -> None:
        """Search for due ticks periodically. A schedule whose run starts slowly, or whose record is
        damaged, does not delay the others."""
        async with asyncio.TaskGroup() as group:
            while True:
                for schedule, version, come in await asyncio.to_thread(self._due):
                    if schedule.name not in self._busy:
                        self._busy.add(schedule.name)
                        group.create_task(self._start_due(schedule, version, come))
                await asyncio.sleep(LOOK)

    def _due(self) -> list[tuple[Schedule, int, list[float]]]:
        """Return the due schedules with the versions of their documents and their ticks."""
        found, now = [], self._clock.now()
        try:
            for document in self._documents.documents(KIND):
                try:
                    schedule = read(document)
                    come = due(schedule, now, waits=schedule.name in self._waiting)
                except AflowError as error:
                    _log.warning("The schedule %s starts no runs: %s", document.name, error)
                else:
                    found.append((schedule, document.version, come))
                    self._keep_again(schedule)
        except (AflowError, OSError) as error:  # no metadata available; no descriptor left
            _log.warning("Schedules cannot be looked at: %s", error)
        return [each for each in found if each[2]]

    async def trigger(self, name: str) -> str:
        """Start a run of a schedule now. Raises the errors of `Runs.begin`.

        Args:
            name: The name of the schedule; it may be paused.

        Returns:
            The pathspec of the run.

        Raises:
            NotFound: If there is no such schedule.
        """
        schedule = await asyncio.to_thread(self.get, name)
        return await self._runs.begin(order_of(schedule.order, [f"--tag=schedule:{name}"]))

    def get(self, name: str) -> Schedule:
        """Return a schedule. Blocks.

        Args:
            name: The name of the schedule.

        Raises:
            NotFound: If there is no such schedule.
        """
        return read(self._document(name))

    def _document(self, name: str) -> Document:
        document = self._documents.document(KIND, name)
        if document is None:
            raise NotFound(f"There is no schedule {name[:100]!r}.")
        return document

    def all(self) -> list[Schedule]:
        """Return all readable schedules, by name. Blocks."""
        found = []
        for document in self._documents.documents(KIND):
            try:
                found.append(read(document))
            except MetadataUnavailable as error:  # skipped
                _log.warning("%s", error)
        return found

    def put(self, schedule: Schedule) -> None:
        """Create or replace a schedule; the pathspec of the last run is kept. Blocks.

        Args:
            schedule: The validated schedule; its code package must have been uploaded.

        Raises:
            CodePackageError: If the schedule's code package does not exist.
        """
        there = self._documents.document(KIND, schedule.name)
        version, new, kept = 0, _package(schedule), []
        if there is not None:
            former = read(there)
            schedule = replace(schedule, latest=former.latest)
            version, kept = there.version, [*filter(None, [_package(former)])]
        self._keep(schedule.name, new, *kept)  # before the check: gc may run
        if not self._blobs.claim(new):
            self._keep(schedule.name, *kept)
            raise CodePackageError(
                f"The code package {new[:12]}... does not exist, or no longer: send the code "
                "again, then create the schedule."
            )
        self._documents.put_document(KIND, schedule.name, schedule.encode(), version)
        self._keep(schedule.name, new)

    def change(self, name: str, fields: Mapping[str, Any]) -> Schedule:
        """Change some fields of a schedule (`cron`, `timezone`, `missed`, `overlap`, `parameters`,
        `tags`, `paused` and the author). Blocks.

        Args:
            name: The name of the schedule.
            fields: New values by field; other fields are ignored.

        Returns:
            The changed schedule.

        Raises:
            NotFound: If there is no such schedule.
            InvalidInput: If a field is invalid.
        """
        document = self._document(name)
        edited = changed(read(document), fields, self._clock.now())
        order_of(edited.order)
        self._documents.put_document(KIND, name, edited.encode(), document.version)
        return edited

    def delete(self, name: str) -> None:
        """Delete a schedule; its runs are kept. Blocks. Raises NotFound."""
        if not self._documents.delete_document(KIND, name):
            raise NotFound(f"There is no schedule {name[:100]!r}.")
        self._keep(name)

    # ------------------------------------------------------------ code that is kept

    def _keep(self, name: str, *packages: str) -> None:
        """Protect exactly these packages from garbage collection on behalf of the schedule."""
        root = roots.root_name("schedules", self._metadata.url, name)
        if packages:
            about = f"the schedule {name} of a server on {self._metadata.url}"
            roots.declare(self._blobs.store, root, roots.GcRoot(packages, about))
            self._declared[name] = (packages[0], self._clock.monotonic())
        else:
            roots.withdraw(self._blobs.store, root)
            self._declared.pop(name, None)

    def _keep_again(self, schedule: Schedule) -> None:
        """Renew the GC root of the package periodically: another server may have withdrawn it while
        the schedule was being replaced, or the datastore may have changed."""
        package, at = self._declared.get(schedule.name, ("", 0.0))
        if package != _package(schedule) or self._clock.monotonic() - at > DECLARE:
            self._keep(schedule.name, _package(schedule))

    # ------------------------------------------------------------ ticks

    async def _start_due(self, schedule: Schedule, version: int, come: list[float]) -> None:
        try:
            for tick in come:
                after = await self._tick(schedule, tick)
                if after is None:
                    self._waiting.add(schedule.name)
                    return  # retried at the next search
                self._waiting.discard(schedule.name)
                version = await asyncio.to_thread(
                    self._documents.put_document,
                    KIND, schedule.name, after.encode(), version,
                )  # fmt: skip
                schedule = after
        except VersionConflict:  # handled by another server, or changed by a user
            return
        except (AflowError, OSError) as error:  # no metadata available; no descriptor left
            _log.warning("The schedule %s cannot be seen to: %s", schedule.name, error)
        except Exception:  # noqa: BLE001 -- logged; other schedules continue
            _log.exception("The schedule %s cannot be seen to.", schedule.name)
        finally:
            self._busy.discard(schedule.name)

    async def _tick(self, schedule: Schedule, tick: float) -> Schedule | None:
        """Handle a tick, and return the updated schedule; None to retry later."""
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
        except OSError as error:  # no descriptor, memory or disk space: retried
            _log.warning("The schedule %s cannot start its run: %s", schedule.name, error)
            return None
        except AflowError as error:
            there = await asyncio.to_thread(self._there, schedule, run)
            if there is not None:  # started by another server
                return after_tick(schedule, tick, there)
            _log.error("The schedule %s could not start its run: %s", schedule.name, error)
            return after_tick(schedule, tick, None, str(error))
        return after_tick(schedule, tick, pathspec)

    def _may_run(self, schedule: Schedule) -> bool:
        """Return whether the token that created the schedule is still valid: a revoked token must
        not keep starting runs."""
        if schedule.token is None:
            return True
        token = tokens.of_digest(self._documents, schedule.token)
        return token is not None and token.allows(True, self._clock.now())

    def _there(self, schedule: Schedule, run: str) -> str | None:
        flow = str(schedule.order.get("flow"))
        return f"{flow}/{run}" if self._metadata.run(flow, run) is not None else None

    def _goes_on(self, pathspec: str) -> bool:
        """Return whether a run is active. A run that has been orphaned for a while is recorded as
        failed: otherwise it would block its schedule for as long as servers try to recover it."""
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
    """Return the key of the code package of a schedule; its request was validated when it was
    stored."""
    return str(schedule.order.get("package", ""))
