"""The base classes of decorators, and how decorators are created and stored on steps and flows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from types import FunctionType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from aflow._core.modules import found_at
from aflow._core.records import NamedTuple, dataclass, fields
from aflow.errors import InvalidDecorator
from aflow.flow.configs import evaluated, is_delayed
from aflow.flow.names import did_you_mean, plain, shown

F = TypeVar("F", bound=Callable[..., Any])

if TYPE_CHECKING:
    from typing import ParamSpec, Protocol, overload

    P = ParamSpec("P")

    class Decorates(Protocol[P]):
        """A decorator in a flow: without parentheses (`@retry`), or with options by name."""

        @overload
        def __call__(self, decorated: F, /) -> F: ...
        @overload
        def __call__(self, *args: P.args, **options: P.kwargs) -> Callable[[F], F]: ...


# The attributes that @step and the step decorators set on a function, until the flow is read.


class StepMark(NamedTuple):
    """The options of @step: whether the step is the first one, and whether it is the last one."""

    start: bool = False
    end: bool = False


# The marks are attributes of the function, so that functools.wraps in a user's decorator copies
# them.
_STEP = "_aflow_step"
_DECORATORS = "_aflow_decorators"
_OF_FLOW = "_aflow_flow_decorators"  # an attribute of the class


def mark_step(function: Callable[..., Any], mark: StepMark) -> None:
    """Mark a function as a step.

    Args:
        function: The object that @step decorates.
        mark: The options of `@step`.

    Raises:
        InvalidDecorator: If the object is not a function.
    """
    if not isinstance(function, FunctionType):
        raise InvalidDecorator(
            f"@step was put on {shown(function)}, which is not a function: put it on a method of a "
            "flow, and write its options as start=True or end=True."
        )
    setattr(function, _STEP, mark)
    setattr(function, "name", function.__name__)  # noqa: B010 -- for users of `for step in flow`


def step_mark(function: object) -> StepMark | None:
    """Return the options of @step; None if the object is not a step.

    Args:
        function: A function, or any other attribute of a flow class.
    """
    # Not getattr: the object may be arbitrary, and its `__getattr__` may raise.
    mark = found_at(function, _STEP)
    return mark if type(mark) is StepMark else None


def add_decorator(function: Callable[..., Any], decorator: StepDecorator) -> None:
    """Add a decorator to a step, as the outermost one.

    Args:
        function: The function of the step; the decorators are an attribute of it.
        decorator: The decorator.

    Raises:
        InvalidDecorator: If the step has one of this kind, and the kind is not repeatable.
    """
    there = decorators_of(function)
    _check_alone(decorator, there, f"Step {function.__name__!r}")
    setattr(function, _DECORATORS, (decorator, *there))


def _check_alone(decorator: Decorator, there: Sequence[Decorator], owner: str) -> None:
    """Raise InvalidDecorator if there is already one of the kind and it is not repeatable."""
    name = decorator.decorator_name
    if not decorator.repeatable and any(each.decorator_name == name for each in there):
        raise InvalidDecorator(f"{owner} has @{name} twice: keep one of them.")


def decorators_of(function: object) -> tuple[StepDecorator, ...]:
    """Return the decorators of a step, outermost first.

    Args:
        function: A function, or any other attribute of a flow class.
    """
    # Some objects, such as config expressions, return a value for any attribute name.
    there = found_at(function, _DECORATORS)
    return there if type(there) is tuple else ()


# Decorators of classes.


def flow_decorators_of(flow: type) -> tuple[FlowDecorator, ...]:
    """Return the decorators of a flow class and of its bases, in the order of the MRO.

    A decorator of a kind that is not repeatable overrides those of the bases.

    Args:
        flow: A subclass of FlowSpec.
    """
    found: list[FlowDecorator] = []
    for each in flow.__mro__:
        names = {decorator.decorator_name for decorator in found if not decorator.repeatable}
        found += [one for one in vars(each).get(_OF_FLOW, ()) if one.decorator_name not in names]
    return tuple(found)


# The base classes.


Number = int | float | str


@dataclass(frozen=True, slots=True)
class Decorator:
    """The base class of all decorators: a name, and options that the constructor checks."""

    decorator_name: ClassVar[str] = ""  # the name after the @
    stands_on: ClassVar[str] = ""  # what it decorates, for messages
    is_of_classes: ClassVar[bool] = False  # whether it decorates classes
    repeatable: ClassVar[bool] = False  # whether a step or flow may have several of the kind
    is_late: ClassVar[bool] = False  # whether its options depend on the values of configs
    open_options: ClassVar[str] = ""  # the field for options with custom names, if it has one

    def put_on(self, decorated: Any) -> None:
        """Add the decorator to a step or flow, as the outermost one.

        Args:
            decorated: The function of a step, or the class of a flow.

        Raises:
            InvalidDecorator: If there is already one of the kind, and the kind is not repeatable.
        """

    def as_dict(self) -> dict[str, Any]:
        """Return the name and options as values that JSON can represent; functions become names."""
        options = {each.name: plain(getattr(self, each.name)) for each in fields(self)}
        return {"type": self.decorator_name, "options": options}

    def _set(self, option: str, value: object) -> None:
        """Set an option although the dataclass is frozen."""
        object.__setattr__(self, option, value)

    def _fault(self, option: str, expected: str) -> InvalidDecorator:
        value = getattr(self, option)
        return InvalidDecorator(
            f"@{self.decorator_name}: {option} must be {expected}, not {shown(value)}."
        )

    def _number(self, option: str, *, positive: bool = False) -> float:
        """Check that an option is a number of at least 0 (above 0 if `positive`), and convert it.

        Raises InvalidDecorator if it is not.
        """
        number = as_number(getattr(self, option))
        if number is None or number < 0 or (positive and number == 0):
            raise self._fault(option, "a number above 0" if positive else "a number of 0 or more")
        self._set(option, number)
        return number


@dataclass(frozen=True, slots=True)
class StepDecorator(Decorator):
    """The base class of decorators of steps."""

    stands_on: ClassVar[str] = "a step"
    hook_class: ClassVar[str] = ""  # `module:Class` of the hook that runs in the task's process

    @property
    def name(self) -> str:
        """The name of the decorator; Metaflow's decorators have this attribute."""
        return self.decorator_name

    def put_on(self, decorated: Any) -> None:
        """See Decorator.put_on."""
        add_decorator(decorated, self)

    def shapes_result(self) -> Mapping[str, object] | None:
        """Return the options that are part of the cache key, because the result depends on them.

        None if the decorator does not affect the result of the step.
        """
        return {each.name: getattr(self, each.name) for each in fields(self)}


@dataclass(frozen=True, slots=True)
class FlowDecorator(Decorator):
    """The base class of decorators of flows."""

    stands_on: ClassVar[str] = "the class of a flow"
    is_of_classes: ClassVar[bool] = True

    def put_on(self, decorated: Any) -> None:
        """See Decorator.put_on."""
        own: tuple[FlowDecorator, ...] = vars(decorated).get(_OF_FLOW, ())
        _check_alone(self, own, f"Flow {decorated.__name__}")
        setattr(decorated, _OF_FLOW, (self, *own))


D = TypeVar("D", bound=Decorator)


@dataclass(frozen=True, slots=True)
class DelayedDecorator(StepDecorator, FlowDecorator):
    """The placeholder for a decorator of class `of` whose options contain config expressions."""

    is_late: ClassVar[bool] = True
    of: type[Decorator]
    options: Mapping[str, Any]

    @property
    def decorator_name(self) -> str:  # type: ignore[override]
        """The name of the decorator that it stands for."""
        return self.of.decorator_name

    @property
    def repeatable(self) -> bool:  # type: ignore[override]
        """Whether a step or flow may have several of the kind."""
        return self.of.repeatable

    def put_on(self, decorated: Any) -> None:
        """See Decorator.put_on."""
        self.of.put_on(self, decorated)

    def resolved(self, configs: Mapping[str, Any]) -> Any:
        """Return the decorator, with the expressions in its options evaluated.

        Args:
            configs: The values of the flow's configs, by name and by attribute.

        Raises:
            InvalidConfig: If an expression raises an exception.
            InvalidDecorator: If an evaluated option is invalid.
        """
        return build(self.of, evaluated(self.options, configs))


def build(of: type[D], options: Mapping[str, Any]) -> D:
    """Return a decorator with these options; a DelayedDecorator if they contain config expressions.

    Args:
        of: The class of the decorator, a dataclass whose fields are the options.
        options: The options, by name.

    Raises:
        InvalidDecorator: If an option is unknown, or its value is invalid.
    """
    known = [each.name for each in fields(of) if each.name != of.open_options]
    own = {name: value for name, value in options.items() if _is_own(of, name, known)}
    for option in options:
        if option not in known and option not in own and not option.startswith("_aflow_unpacked_"):
            raise InvalidDecorator(
                f"@{of.decorator_name} has no option {option!r}.{did_you_mean(option, known)} "
                f"Its options are: {', '.join(known)}."
            )
    if is_delayed(options):
        delayed: Any = DelayedDecorator(of, options)
        return delayed  # type: ignore[no-any-return]  # it stands for one of `of`
    if own:
        options = {name: value for name, value in options.items() if name not in own}
        return of(**options, **{of.open_options: own})
    return of(**options)


def _is_own(of: type[Decorator], option: str, known: Sequence[str]) -> bool:
    """Return whether the option is a custom name, for a decorator with `open_options`.

    False if the name looks like a misspelled option.
    """
    if not of.open_options or option in known or not option.isidentifier():
        return False
    return not option.startswith("_") and not did_you_mean(option, known)


def written(of: Callable[P, Decorator]) -> Decorates[P]:
    """Return the function that flows use as a decorator: `@retry` or `@retry(times=2)` for Retry.

    Args:
        of: The class of the decorator, a dataclass whose fields are the options.
    """
    kind: Any = of

    def decorate(*decorated: Any, **options: Any) -> Any:
        _check_below(kind, decorated)
        made = build(kind, options)

        def put(*below: Any) -> Any:
            _check_below(kind, below)
            made.put_on(*below)
            return below[0]

        return put(*decorated) if decorated else put

    decorate.__name__ = decorate.__qualname__ = kind.decorator_name
    decorate.__module__ = kind.__module__
    decorate.__doc__ = kind.__doc__
    return decorate


def _check_below(kind: type[Decorator], decorated: Sequence[object]) -> None:
    fit = [callable(each) and isinstance(each, type) is kind.is_of_classes for each in decorated]
    if len(decorated) > 1 or not all(fit):
        name = kind.decorator_name
        raise InvalidDecorator(
            f"@{name} takes its options by name, as in @{name}(option=value), and stands on "
            f"{kind.stands_on}; it was given {', '.join(map(shown, decorated))}."
        )


def as_number(value: object) -> float | None:
    """Return a value as a finite number; None if it is not one, or is a bool.

    Args:
        value: A number, or a number as text, such as an option from the command line.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        if isinstance(value, str):
            value = int(value) if value.strip().isdecimal() else float(value)
        return value if isfinite(value) else None
    except (ValueError, OverflowError):
        return None
