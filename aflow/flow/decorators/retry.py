"""@retry: try a failed step again. Carried out by the scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from aflow._core.records import dataclass
from aflow.errors import OUT_OF_MEMORY, OutOfMemory
from aflow.flow.decorators.base import StepDecorator, as_number, written

MAX_RETRIES = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry(StepDecorator):
    """Try a failed step again, up to `times` times (0 to 50).

    Between two attempts pass `seconds`, or `minutes_between_retries` where `seconds` is None; each
    time `backoff` times as long as before, but never more than `max_seconds`. With `on`, exceptions
    of a step that are none of these classes are not tried again; what ends its process is.
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
        """None: the result of a later attempt is as good."""

    @property
    def wait_seconds(self) -> float:
        """Seconds between the end of an attempt and the next one."""
        if self.seconds is not None:
            return float(self.seconds)
        return self.minutes_between_retries * 60.0

    def takes(self, error: BaseException) -> bool:
        """Return whether a step that has raised this is tried again.

        Args:
            error: What the step has raised; a MemoryError counts as OutOfMemory.
        """
        if self.on is None or isinstance(error, self.on):  # type: ignore[arg-type]
            return True
        return OutOfMemory in self.on and isinstance(error, MemoryError)  # type: ignore[operator]

    def takes_end(self, reason: str) -> bool:
        """Return whether a step that has raised nothing, since its process or its job was ended for
        this reason, is tried again.

        Args:
            reason: The reason of the attempt's end.
        """
        if self.on is None or OutOfMemory not in self.on:  # type: ignore[operator]
            return True
        return reason.startswith(OUT_OF_MEMORY)


retry = written(Retry)
"""Try a failed step again; see Retry."""
