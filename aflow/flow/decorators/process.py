"""@process: what the processes of a step's tasks are forked from. Carried out by the executor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, overload

from aflow._core.records import dataclass
from aflow.flow.decorators.base import F, StepDecorator, written

STARTS = ("fresh", "fork")


@dataclass(frozen=True, slots=True, kw_only=True)
class Process(StepDecorator):
    """How the processes of the step's tasks begin: `fresh` runs the user's file in each of them, as
    a new interpreter would; with `fork` they are forked from a process that has run it once, for
    files that work for seconds at module level."""

    decorator_name: ClassVar[str] = "process"
    start: str = "fork"

    def __post_init__(self) -> None:
        if self.start not in STARTS:
            raise self._fault("start", '"fresh" or "fork"')

    def shapes_result(self) -> None:
        """None: the result is the same."""


_process = written(Process)


@overload
def process(start: F) -> F: ...
@overload
def process(start: str = "fork") -> Callable[[F], F]: ...
def process(*start: Any, **options: Any) -> Any:
    """Say how the processes of the step's tasks begin: `@process("fork")`; see Process.

    Args:
        *start: How the process begins (see Process), or the function where the decorator stands
            without parentheses.
        **options: The options of Process by name.

    Returns:
        The decorated function; with options alone, what decorates one.
    """
    if start and isinstance(start[0], str):
        return _process(*start[1:], start=start[0], **options)
    return _process(*start, **options)
