"""@concurrency: limit the number of tasks of a step that run at the same time.

Implemented by the scheduler.
"""

from __future__ import annotations

from typing import ClassVar

from aflow._core.records import dataclass
from aflow.flow.decorators.base import StepDecorator, as_number, written


@dataclass(frozen=True, slots=True, kw_only=True)
class Concurrency(StepDecorator):
    """Run at most `limit` tasks of the step at the same time; `--max-workers` limits all steps.

    For a step that needs much memory, or calls a service with limited capacity.
    """

    decorator_name: ClassVar[str] = "concurrency"
    limit: int = 1

    def __post_init__(self) -> None:
        number = as_number(self.limit)
        if number is None or number != int(number) or number < 1:
            raise self._fault("limit", "a whole number of 1 or more")
        self._set("limit", int(number))

    def shapes_result(self) -> None:
        """Return None: the result does not depend on when a task runs."""


concurrency = written(Concurrency)
"""Limit the number of tasks of the step that run at the same time; see Concurrency."""
