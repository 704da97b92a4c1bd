"""@concurrency: how many tasks of a step go on at a time. Carried out by the scheduler."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, overload

from aflow._core.records import dataclass
from aflow.flow.decorators.base import F, StepDecorator, as_number, decorate


@dataclass(frozen=True, slots=True)
class Concurrency(StepDecorator):
    """At most `limit` tasks of the step go on at a time, in a run that has `--max-workers` in all:
    for a step that needs much memory, or asks a service that bears no more."""

    name: ClassVar[str] = "concurrency"
    limit: int = 1

    def __post_init__(self) -> None:
        number = as_number(self.limit)
        if number is None or number != int(number) or number < 1:
            raise self._fault("limit", "a whole number of 1 or more")
        self._set("limit", int(number))

    def shapes_result(self) -> None:
        """None: when a task runs makes no difference."""


@overload
def concurrency(function: F) -> F: ...
@overload
def concurrency(*, limit: int = 1) -> Callable[[F], F]: ...
def concurrency(function: object = None, **options: object) -> object:
    """Limit how many tasks of the step go on at a time; see Concurrency.

    Args:
        function: The function that is decorated; None where options are given.
        **options: The options, by name.
    """
    return decorate(Concurrency, function, options)
