"""@timeout: stop an attempt that takes too long. Implemented by the runner and the executor."""

from __future__ import annotations

from typing import ClassVar

from aflow._core.records import dataclass
from aflow.errors import InvalidDecorator
from aflow.flow.decorators.base import StepDecorator, written


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeout(StepDecorator):
    """Stop an attempt that runs longer than the sum of `seconds`, `minutes` and `hours`."""

    decorator_name: ClassVar[str] = "timeout"
    seconds: float = 0
    minutes: float = 0
    hours: float = 0

    def __post_init__(self) -> None:
        for option in ("seconds", "minutes", "hours"):
            self._number(option)
        if self.total_seconds <= 0:
            raise InvalidDecorator(
                "@timeout needs a time above 0: give it seconds=, minutes= or hours=."
            )

    def shapes_result(self) -> None:
        """Return None: the result does not depend on the timeout."""

    @property
    def total_seconds(self) -> float:
        """The timeout of an attempt, in seconds."""
        return self.seconds + 60.0 * self.minutes + 3600.0 * self.hours


timeout = written(Timeout)
"""Stop an attempt that exceeds its time limit; see Timeout."""
