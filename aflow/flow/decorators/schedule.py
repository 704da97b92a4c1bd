"""@schedule: when a deployed flow is run. Kept for schedulers; a run from here ignores it."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from aflow._core.records import NamedTuple, dataclass
from aflow.errors import InvalidDecorator
from aflow.flow.decorators.flow_base import FlowDecorator, decorate_flow
from aflow.flow.names import shown

_MONTHS = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]
_DAYS = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"]
_ZONE = re.compile(r"[A-Za-z][\w+-]*(/[\w+-]+)*\Z")


class _Field(NamedTuple):
    """One field of a cron expression: its numbers, the words that stand for them, and the pattern
    of what only this field may say."""

    name: str
    first: int
    last: int
    words: list[str] = []
    more: str = r"(?!)"


_FIELDS = (
    _Field("minutes", 0, 59),
    _Field("hours", 0, 23),
    _Field("day of month", 1, 31, [], r"\?|L|LW|\d+W"),
    _Field("month", 1, 12, _MONTHS),
    _Field("day of week", 0, 7, _DAYS, r"\?|L|[0-7]L|\w{1,3}#[1-5]"),
    _Field("year", 1970, 2199),
)


@dataclass(frozen=True, slots=True)
class ScheduleDecorator(FlowDecorator):
    """When the flow is to be run once it is deployed: `cron`, else weekly, hourly or daily.

    `cron` has the six fields of AWS (minutes, hours, day of month, month, day of week, year); the
    year may be left out. `timezone` is an IANA name.
    """

    kind: ClassVar[str] = "schedule"
    cron: str | None = None
    weekly: bool = False
    daily: bool = True
    hourly: bool = False
    timezone: str | None = None

    def __post_init__(self) -> None:
        for option in ("weekly", "daily", "hourly"):
            if not isinstance(getattr(self, option), bool):
                raise self._fault(option, "True or False")
        if self.cron is not None:
            self._check_cron(self.cron)
        if self.timezone is not None and not _ZONE.match(str(self.timezone)):
            raise self._fault("timezone", "the name of a time zone, such as 'Europe/Berlin'")

    @property
    def schedule(self) -> str | None:
        """The cron expression; None for no schedule at all."""
        if self.cron:
            return self.cron
        if self.weekly:
            return "0 0 ? * SUN *"
        if self.hourly:
            return "0 * * * ? *"
        return "0 0 * * ? *" if self.daily else None

    def _check_cron(self, cron: object) -> None:
        if not isinstance(cron, str) or len(cron.split()) not in (5, 6):
            raise self._fault("cron", "a text of six fields, such as '0 12 ? * MON-FRI *'")
        for text, field in zip(cron.split(), _FIELDS, strict=False):
            if not all(_is_good(item, field) for item in text.upper().split(",")):
                raise InvalidDecorator(
                    f"@schedule: {shown(text)} in cron={shown(cron)} cannot be its {field.name} "
                    f"({field.first} to {field.last}, lists, ranges, * and steps)."
                )


def _is_good(item: str, field: _Field) -> bool:
    """Whether a member of a field's list can be used: `*`, `5`, `MON-FRI`, `0/15`..."""
    if re.fullmatch(field.more, item):
        return True
    span, _, step = item.partition("/")
    if "/" in item and not (step.isascii() and step.isdigit() and int(step) > 0):
        return False
    return span == "*" or _is_span(span, field)


def _is_span(span: str, field: _Field) -> bool:
    ends = [_number(word, field) for word in span.split("-")]
    return len(ends) <= 2 and None not in ends


def _number(word: str, field: _Field) -> int | None:
    if word in field.words:
        return field.words.index(word) + field.first
    if not (word.isascii() and word.isdigit()):
        return None
    return int(word) if field.first <= int(word) <= field.last else None


def schedule(flow: object = None, /, **options: Any) -> Any:
    """Say when the deployed flow is to be run; see ScheduleDecorator.

    Args:
        flow: The class of the flow; None where the decorator is called with options.
        **options: The options, by name.

    Returns:
        The decorated class; with options alone, what decorates one.
    """
    return decorate_flow(ScheduleDecorator, flow, options)
