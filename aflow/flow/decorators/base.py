"""What all step decorators have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from types import FunctionType
from typing import Any, ClassVar, TypeVar

from aflow._core.modules import found_at
from aflow._core.records import NamedTuple, dataclass, fields
from aflow.errors import InvalidDecorator
from aflow.flow.configs import evaluated, is_delayed
from aflow.flow.names import did_you_mean, shown

# What @step and the step decorators leave on a function, until the flow is read.


class StepMark(NamedTuple):
    """The options of @step: whether the step is the first, and whether it is the last."""

    start: bool = False
    end: bool = False


# The marks are attributes of the function, so that functools.wraps in a user's own decorator
# carries them along.
_STEP = "_aflow_step"
_DECORATORS = "_aflow_decorators"


def mark_step(function: Callable[..., Any], mark: StepMark) -> None:
    """Make a step of the function.

    Args:
        function: What @step stands on, which should be a function.
        mark: The options of `@step`.

    Raises:
        InvalidDecorator: It is not a function.
    """
    if not isinstance(function, FunctionType):
        raise InvalidDecorator(
            f"@step was put on {shown(function)}, which is not a function: put it on a method of a "
            "flow, and write its options as start=True or end=True."
        )
    setattr(function, _STEP, mark)
    setattr(function, "name", function.__name__)  # noqa: B010 -- what `for step in flow` offers


def step_mark(function: object) -> StepMark | None:
    """Return the options of @step; None for what is not a step.

    Args:
        function: The function that is decorated; None where options are given.
    """
    # Whatever a class of the user's holds is asked: its own code may raise.
    mark = found_at(function, _STEP)
    return mark if type(mark) is StepMark else None


def add_decorator(function: Callable[..., Any], decorator: StepDecorator) -> None:
    """Put a decorator outside of those that are there.

    Args:
        function: The function of the step; the decorators are kept as an attribute of it.
        decorator: The decorator, with its options checked; it becomes the outermost one.

    Raises:
        InvalidDecorator: The step already has one of this kind, and the kind is not repeatable.
    """
    there = decorators_of(function)
    if not decorator.repeatable and any(each.name == decorator.name for each in there):
        raise InvalidDecorator(
            f"Step {function.__name__!r} has @{decorator.name} twice: keep one of them."
        )
    setattr(function, _DECORATORS, (decorator, *there))


def decorators_of(function: object) -> tuple[StepDecorator, ...]:
    """Return the decorators on the function, outermost first.

    Args:
        function: The function that is decorated; None where options are given.
    """
    # Some objects (expressions of configs, say) have an attribute of any name.
    there = found_at(function, _DECORATORS)
    return there if type(there) is tuple else ()


F = TypeVar("F", bound=Callable[..., Any])
Number = int | float | str


@dataclass(frozen=True, slots=True)
class StepDecorator:
    """What all step decorators have in common: a name, and options that are checked when made."""

    name: ClassVar[str] = ""
    hook_class: ClassVar[str] = ""  # `module:Class` of what it does inside the task's process
    repeatable: ClassVar[bool] = False  # whether a step may have several of the kind
    open_options: ClassVar[str] = ""  # the field for options of the user's own names, if it has one
    is_late: ClassVar[bool] = False  # whether it is not what it will be once configs are known

    def shapes_result(self) -> Mapping[str, object] | None:
        """Return the options that the step's result may depend on, which the cache looks at; None
        where the decorator makes no difference to it."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def _set(self, option: str, value: object) -> None:
        """Keep an option in its checked form (the value is frozen for everybody else)."""
        object.__setattr__(self, option, value)

    def _fault(self, option: str, expected: str) -> InvalidDecorator:
        value = getattr(self, option)
        return InvalidDecorator(f"@{self.name}: {option} must be {expected}, not {shown(value)}.")

    def _number(self, option: str, *, positive: bool = False) -> float:
        """Check a number of at least 0 (above 0 if `positive`) and keep it as one; raises
        InvalidDecorator."""
        number = as_number(getattr(self, option))
        if number is None or number < 0 or (positive and number == 0):
            raise self._fault(option, "a number above 0" if positive else "a number of 0 or more")
        self._set(option, number)
        return number


def build(kind: type[StepDecorator], options: Mapping[str, Any]) -> StepDecorator:
    """Return a decorator with these options.

    Args:
        kind: A subclass of StepDecorator, a dataclass whose fields are the options.
        options: The options, by name.

    Raises:
        InvalidDecorator: An option is unknown, or its value cannot be used.
    """
    known = [each.name for each in fields(kind) if each.init and each.name != kind.open_options]
    own = {name: value for name, value in options.items() if _is_own(kind, name, known)}
    for option in options:
        if option not in known and option not in own and not option.startswith("_aflow_unpacked_"):
            raise InvalidDecorator(
                f"@{kind.name} has no option {option!r}.{did_you_mean(option, known)} "
                f"Its options are: {', '.join(known)}."
            )
    if is_delayed(options):
        return DelayedDecorator(kind, options)
    if own:
        options = {name: value for name, value in options.items() if name not in own}
        return kind(**options, **{kind.open_options: own})
    return kind(**options)


def _is_own(kind: type[StepDecorator], option: str, known: Sequence[str]) -> bool:
    """Whether the option is a name of the user's, for a decorator that takes such: not where it is
    more likely that one of ours was meant."""
    if not kind.open_options or option in known or not option.isidentifier():
        return False
    return not option.startswith("_") and not did_you_mean(option, known)


@dataclass(frozen=True, slots=True)
class DelayedDecorator(StepDecorator):
    """A decorator whose options are expressions of configs."""

    is_late: ClassVar[bool] = True
    kind: type[StepDecorator]
    options: Mapping[str, Any]

    @property
    def name(self) -> str:  # type: ignore[override]
        """The name of the decorator that it will be."""
        return self.kind.name

    @property
    def repeatable(self) -> bool:  # type: ignore[override]
        """Whether a step may have several of the kind."""
        return self.kind.repeatable

    def resolved(self, configs: Mapping[str, Any]) -> StepDecorator:
        """Return the decorator, with the expressions in its options evaluated.

        Args:
            configs: The values of the flow's configs, by attribute.

        Raises:
            InvalidConfig: An expression raises something.
            InvalidDecorator: An evaluated option cannot be used.
        """
        return build(self.kind, evaluated(self.options, configs))


def decorate(kind: type[StepDecorator], function: object, options: Mapping[str, Any]) -> Any:
    """Add a decorator to a function; without one, return what does so (`@retry` and `@retry(...)`).

    Args:
        kind: A subclass of StepDecorator, a dataclass whose fields are the options.
        function: What stands below the decorator; None where it was called with options alone.
        options: The options, by name.

    Returns:
        `function` itself, marked; or, without it, a decorator that marks one.

    Raises:
        InvalidDecorator: `function` is not a function, or an option cannot be used.
    """
    if function is None:
        decorator = build(kind, options)

        def put(function: F) -> F:
            add_decorator(function, decorator)
            return function

        return put
    if not isinstance(function, FunctionType):
        raise InvalidDecorator(
            f"@{kind.name} takes its options by name, as in @{kind.name}(option=value), and stands "
            f"on a step; it was given {shown(function)}."
        )
    add_decorator(function, build(kind, options))
    return function


def as_number(value: object) -> float | None:
    """Return the value as a finite number; None for anything else (as True and False).

    Args:
        value: A number, or a text that spells one, as options from the command line are.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        if isinstance(value, str):
            value = int(value) if value.strip().isdecimal() else float(value)
        return value if isfinite(value) else None
    except (ValueError, OverflowError):
        return None
