"""@schedule: when a deployed flow runs. A run from the command line ignores it."""

from __future__ import annotations

import re
from typing import ClassVar

from aflow._core.records import dataclass
from aflow.errors import InvalidDecorator, InvalidInput
from aflow.flow.decorators.base import FlowDecorator, written

_ZONE = re.compile(r"[A-Za-z][\w+-]*(/[\w+-]+)*\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleDecorator(FlowDecorator):
    """Set when the deployed flow runs: by `cron`, or else weekly, hourly or daily.

    `cron` has the six fields of AWS (minutes, hours, day of month, month, day of week, year), or
    the five of Unix. `timezone` is an IANA name.
    """

    decorator_name: ClassVar[str] = "schedule"
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
        """The cron expression; None if there is no schedule."""
        if self.cron:
            return self.cron
        if self.weekly:
            return "0 0 ? * SUN *"
        if self.hourly:
            return "0 * * * ? *"
        return "0 0 * * ? *" if self.daily else None

    def _check_cron(self, cron: object) -> None:
        from aflow._core.cron import parse  # only imported for flows with a cron expression

        if not isinstance(cron, str) or len(cron.split()) not in (5, 6):
            raise self._fault("cron", "a text of six fields, such as '0 12 ? * MON-FRI *'")
        try:
            parse(cron)
        except InvalidInput as error:
            raise InvalidDecorator(f"@schedule: {error}") from error


schedule = written(ScheduleDecorator)
"""Set when the deployed flow runs; see ScheduleDecorator."""
