"""@process: the process from which the tasks of a step are forked. Implemented by the executor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, overload

from aflow._core.records import dataclass
from aflow.flow.decorators.base import F, StepDecorator, written

STARTS = ("fresh", "fork")


@dataclass(frozen=True, slots=True, kw_only=True)
class Process(StepDecorator):
    """Set how the processes of the step's tasks start.

    With `fresh` each process executes the user's file, as a new interpreter would. With `fork` the
    processes are forked from one that has executed it once, for files whose module level takes
    seconds.
    """

    decorator_name: ClassVar[str] = "process"
    start: str = "fork"

    def __post_init__(self) -> None:
        if self.start not in STARTS:
            raise self._fault("start", '"fresh" or "fork"')

    def shapes_result(self) -> None:
        """Return None: the result does not depend on how the process starts."""


_process = written(Process)


@overload
def process(start: F) -> F: ...
@overload
def process(start: str = "fork") -> Callable[[F], F]: ...
def process(*start: Any, **options: Any) -> Any:
    """Set how the processes of the step's tasks start: `@process("fork")`; see Process.

    Args:
        *start: "fresh" or "fork"; the decorated function if the decorator has no parentheses.
        **options: The options of Process, by name.

    Returns:
        The decorated function, or a decorator if options are given.
    """
    if start and isinstance(start[0], str):
        return _process(*start[1:], start=start[0], **options)
    return _process(*start, **options)
