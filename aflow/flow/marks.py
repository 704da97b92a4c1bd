"""What @step and the step decorators leave on a function, until the flow is read."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

from aflow.errors import InvalidDecorator
from aflow.flow.names import shown

if TYPE_CHECKING:
    from aflow.flow.decorators.base import StepDecorator


class StepMark(NamedTuple):
    """What @step was told: whether the step is the first, and whether it is the last."""

    start: bool = False
    end: bool = False


# The marks are attributes of the function, so that functools.wraps in a user's own decorator
# carries them along.
_STEP = "_aflow_step"
_DECORATORS = "_aflow_decorators"


def mark_step(function: Callable[..., Any], mark: StepMark) -> None:
    """Make a step of the function; raises InvalidDecorator for what is no function."""
    if not isinstance(function, FunctionType):
        raise InvalidDecorator(
            f"@step was put on {shown(function)}, which is no function: put it on a method of a "
            "flow, and write its options as start=True or end=True."
        )
    setattr(function, _STEP, mark)
    setattr(function, "name", function.__name__)  # noqa: B010 -- what `for step in flow` offers


def step_mark(function: object) -> StepMark | None:
    """What @step was told; None for what is not a step."""
    mark = getattr(function, _STEP, None)
    return mark if isinstance(mark, StepMark) else None


def add_decorator(function: Callable[..., Any], decorator: StepDecorator) -> None:
    """Put a decorator outside of those that are there; raises InvalidDecorator for a second one
    of the same kind."""
    there = decorators_of(function)
    if not decorator.repeatable and any(each.name == decorator.name for each in there):
        raise InvalidDecorator(
            f"Step {function.__name__!r} has @{decorator.name} twice: keep one of them."
        )
    setattr(function, _DECORATORS, (decorator, *there))


def decorators_of(function: object) -> tuple[StepDecorator, ...]:
    """The decorators on the function, outermost first."""
    there: tuple[StepDecorator, ...] = getattr(function, _DECORATORS, ())
    return there
