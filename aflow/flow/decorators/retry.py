"""@retry: try a failed step again. Carried out by the scheduler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, overload

from aflow.flow.decorators.base import F, StepDecorator, as_number, decorate

MAX_RETRIES = 50


@dataclass(frozen=True, slots=True)
class Retry(StepDecorator):
    """Try a failed step again, up to `times` times (0 to 50).

    Between two attempts pass `seconds`, or `minutes_between_retries` where `seconds` is None.
    """

    name: ClassVar[str] = "retry"
    times: int = 3
    minutes_between_retries: float = 2
    seconds: float | None = None

    def __post_init__(self) -> None:
        number = as_number(self.times)
        if number is None or number != int(number) or not 0 <= number <= MAX_RETRIES:
            raise self._fault("times", f"a whole number from 0 to {MAX_RETRIES}")
        self._set("times", int(number))
        self._number("minutes_between_retries")
        if self.seconds is not None:
            self._number("seconds")

    def shapes_result(self) -> None:
        """None: the result of a later attempt is as good."""

    @property
    def wait_seconds(self) -> float:
        """Seconds between the end of an attempt and the next one."""
        if self.seconds is not None:
            return float(self.seconds)
        return self.minutes_between_retries * 60.0


@overload
def retry(function: F) -> F: ...
@overload
def retry(
    *, times: int = 3, minutes_between_retries: float = 2, seconds: float | None = None
) -> Callable[[F], F]: ...
def retry(function: object = None, **options: Any) -> Any:
    """Try a failed step again; see Retry."""
    return decorate(Retry, function, options)
