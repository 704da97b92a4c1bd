"""Schedules of a server: what is kept of one, and what is to be done now. Pure, but for reading the
documents."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, get_args

from aflow.clock import LATEST
from aflow.cron import latest_ticks, next_tick, parse, zone_of
from aflow.errors import InvalidInput, MetadataUnavailable

if TYPE_CHECKING:
    from aflow.metadata.base import Document

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

    `missed` says which ticks are made up for that nobody was there to see; `overlap` what a tick
    does while the run of the one before goes on."""

    name: str
    cron: str
    order: Mapping[str, Any]
    done_until: float
    timezone: str | None = None
    missed: Missed = "latest"
    overlap: Overlap = "skip"
    paused: bool = False
    latest: str | None = None
    said: str = ""  # of the last tick, where it started nothing
    started: int = 0
    skipped: int = 0
    token: str | None = None  # digest of the one that created it; None for a key of the settings
    created_by: str = ""
    known: Mapping[str, Any] = field(default_factory=dict, compare=False)  # of a later version

    def encode(self) -> bytes:
        """The schedule as the data of its document."""
        fields = asdict(self)
        later = fields.pop("known")
        del fields["name"]
        return json.dumps({**later, **fields}).encode()


def read(document: Document) -> Schedule:
    """The schedule that a document keeps; raises MetadataUnavailable for one that is damaged."""
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
    texts = (schedule.cron, schedule.said, schedule.created_by)
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
    """A schedule that somebody asks for, checked. `fields` are those of the request beside those of
    the run. Raises InvalidInput."""
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
        name,
        cron,
        fields["order"],
        float(since),
        zone,
        _one_of("missed", fields.get("missed", "latest"), get_args(Missed)),
        _one_of("overlap", fields.get("overlap", "skip"), get_args(Overlap)),
        token=fields.get("token"),
        created_by=fields.get("created_by", ""),
    )


def changed(schedule: Schedule, fields: Mapping[str, Any], now: float) -> Schedule:
    """A schedule with what these fields say in the place of what it says. Raises InvalidInput."""
    paused = fields.get("paused", schedule.paused)
    if not isinstance(paused, bool):
        raise InvalidInput("'paused' has to be true or false.")
    resumed = schedule.paused and not paused  # what was due while it rested, was not to be run
    schedule = replace(schedule, paused=paused, done_until=now if resumed else schedule.done_until)
    if not fields.keys() - {"paused"}:
        return schedule
    order = {**schedule.order, **{n: fields[n] for n in ("parameters", "tags") if n in fields}}
    names = ("cron", "timezone", "missed", "overlap")
    said = {name: fields.get(name, getattr(schedule, name)) for name in names}
    found = new(schedule.name, {**said, "order": order}, now)
    is_moved = (found.cron, found.timezone) != (schedule.cron, schedule.timezone)
    return replace(
        schedule,
        cron=found.cron,
        timezone=found.timezone,
        missed=found.missed,
        overlap=found.overlap,
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
    """The ticks that are to be started now, in their order. Those before them, up to `now`, are
    not: they were missed."""
    if schedule.paused:
        return []
    cron, zone = parse(schedule.cron), zone_of(schedule.timezone)
    come = latest_ticks(cron, zone, schedule.done_until, now, MOST_MISSED)
    on_time = [at for at in come if now - at <= ON_TIME]
    if schedule.missed == "all":
        return come
    return on_time if schedule.missed == "skip" else (on_time or come[-1:])


def upcoming(schedule: Schedule, now: float) -> float | None:
    """When it is due next; None if it is paused, or never is."""
    if schedule.paused:
        return None
    after = max(schedule.done_until, now)
    return next_tick(parse(schedule.cron), zone_of(schedule.timezone), after)


def ticks(cron: str, zone: str | None, now: float, count: int) -> list[float]:
    """When an expression is due next, so many times at most. Raises InvalidInput."""
    found: list[float] = []
    parsed, place = parse(cron), zone_of(zone)
    while len(found) < count:
        at = next_tick(parsed, place, found[-1] if found else now)
        if at is None:
            break
        found.append(at)
    return found


def run_id(schedule: Schedule, tick: float) -> str:
    """The id of the run of a tick: of two servers that start it, one is refused."""
    when = datetime.fromtimestamp(tick, UTC).strftime("%Y%m%dT%H%M%SZ")
    return f"{schedule.name}-{when}"


def seen_to(schedule: Schedule, until: float, run: str | None, said: str = "") -> Schedule:
    """The schedule after a tick that started this run, or none, for the reason that is said."""
    return replace(
        schedule,
        done_until=until,
        latest=run or schedule.latest,
        said=said,
        started=schedule.started + (run is not None),
        skipped=schedule.skipped + (run is None and bool(said)),
    )
