"""@catch: go on when a step has failed for good. Carried out by the scheduler and the runner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, overload

from aflow.flow.decorators.base import F, StepDecorator, decorate
from aflow.flow.names import is_artifact_name


@dataclass(frozen=True, slots=True)
class Catch(StepDecorator):
    """Let the flow go on when the step has failed for good.

    `self.<var>` is then an ExceptionWrapper, and None when the step succeeded. `print_exception`
    says whether the exception is printed into the task's log.
    """

    name: ClassVar[str] = "catch"
    var: str | None = None
    print_exception: bool = True

    def __post_init__(self) -> None:
        if self.var is not None and not is_artifact_name(self.var):
            raise self._fault("var", "the name of an artifact, which is not a reserved name")
        if not isinstance(self.print_exception, bool):
            raise self._fault("print_exception", "True or False")


@overload
def catch(function: F) -> F: ...
@overload
def catch(*, var: str | None = None, print_exception: bool = True) -> Callable[[F], F]: ...
def catch(function: object = None, **options: Any) -> Any:
    """Let the flow go on when the step has failed for good; see Catch."""
    return decorate(Catch, function, options)
