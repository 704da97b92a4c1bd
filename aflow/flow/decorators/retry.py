"""@retry: retry a failed step. Implemented by the scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from aflow._core.records import dataclass
from aflow.errors import OUT_OF_MEMORY, OutOfMemory
from aflow.flow.decorators.base import StepDecorator, as_number, written

MAX_RETRIES = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry(StepDecorator):
    """Retry a failed step up to `times` times (0 to 50).

    The first retry starts after `seconds`, or after `minutes_between_retries` if `seconds` is None;
    each further wait is `backoff` times as long, up to `max_seconds`. With `on`, a step is only
    retried after an exception of these classes or a crash of its process; if `on` contains
    OutOfMemory, only after a crash for lack of memory.
    """

    decorator_name: ClassVar[str] = "retry"
    times: int = 3
    minutes_between_retries: float = 2
    seconds: float | None = None
    backoff: float = 1
    max_seconds: float = 3600
    on: type[BaseException] | Sequence[type[BaseException]] | None = None

    def __post_init__(self) -> None:
        number = as_number(self.times)
        if number is None or number != int(number) or not 0 <= number <= MAX_RETRIES:
            raise self._fault("times", f"a whole number from 0 to {MAX_RETRIES}")
        self._set("times", int(number))
        self._number("minutes_between_retries")
        if self.seconds is not None:
            self._number("seconds")
        if self._number("backoff") < 1:
            raise self._fault("backoff", "a number of 1 or more")
        self._number("max_seconds")
        if self.on is not None:
            kinds = tuple(self.on) if isinstance(self.on, list | tuple) else (self.on,)
            if not all(
                isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds
            ):
                raise self._fault("on", "classes of exceptions")
            self._set("on", kinds)

    def shapes_result(self) -> None:
        """Return None: the result does not depend on the number of attempts."""

    @property
    def wait_seconds(self) -> float:
        """Seconds between the end of the first attempt and the start of the next one."""
        if self.seconds is not None:
            return float(self.seconds)
        return self.minutes_between_retries * 60.0

    def takes(self, error: BaseException) -> bool:
        """Return whether a step that raised this exception is retried.

        Args:
            error: The exception; a MemoryError counts as OutOfMemory.
        """
        if self.on is None or isinstance(error, self.on):  # type: ignore[arg-type]
            return True
        return OutOfMemory in self.on and isinstance(error, MemoryError)  # type: ignore[operator]

    def takes_end(self, reason: str) -> bool:
        """Return whether a step whose process or job ended without an exception is retried.

        Args:
            reason: The reason for the end, one sentence.
        """
        if self.on is None or OutOfMemory not in self.on:  # type: ignore[operator]
            return True
        return reason.startswith(OUT_OF_MEMORY)


retry = written(Retry)
"""Retry a failed step; see Retry."""
