"""@concurrency: how many tasks of a step go on at a time. Carried out by the scheduler."""

from __future__ import annotations

from typing import ClassVar

from aflow._core.records import dataclass
from aflow.flow.decorators.base import StepDecorator, as_number, written


@dataclass(frozen=True, slots=True, kw_only=True)
class Concurrency(StepDecorator):
    """At most `limit` tasks of the step go on at a time, in a run that has `--max-workers` in all:
    for a step that needs much memory, or asks a service that bears no more."""

    decorator_name: ClassVar[str] = "concurrency"
    limit: int = 1

    def __post_init__(self) -> None:
        number = as_number(self.limit)
        if number is None or number != int(number) or number < 1:
            raise self._fault("limit", "a whole number of 1 or more")
        self._set("limit", int(number))

    def shapes_result(self) -> None:
        """None: when a task runs makes no difference."""


concurrency = written(Concurrency)
"""Limit how many tasks of the step go on at a time; see Concurrency."""
