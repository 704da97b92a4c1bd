"""What all decorators have in common: how they are made, and how they stand on steps and flows."""

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
        """A decorator as a flow writes it: bare (`@retry`), or called with options by name."""

        @overload
        def __call__(self, decorated: F, /) -> F: ...
        @overload
        def __call__(self, *args: P.args, **options: P.kwargs) -> Callable[[F], F]: ...


# What @step and the step decorators leave on a function, until the flow is read.


class StepMark(NamedTuple):
    """The options of @step: whether the step is the first, and whether it is the last."""

    start: bool = False
    end: bool = False


# The marks are attributes of the function, so that functools.wraps in a user's own decorator
# carries them along.
_STEP = "_aflow_step"
_DECORATORS = "_aflow_decorators"
_OF_FLOW = "_aflow_flow_decorators"  # an attribute of the class


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
    _check_alone(decorator, there, f"Step {function.__name__!r}")
    setattr(function, _DECORATORS, (decorator, *there))


def _check_alone(decorator: Decorator, there: Sequence[Decorator], owner: str) -> None:
    """Raise InvalidDecorator if it is a second one of a kind that is not repeatable."""
    name = decorator.decorator_name
    if not decorator.repeatable and any(each.decorator_name == name for each in there):
        raise InvalidDecorator(f"{owner} has @{name} twice: keep one of them.")


def decorators_of(function: object) -> tuple[StepDecorator, ...]:
    """Return the decorators on the function, outermost first.

    Args:
        function: The function that is decorated; None where options are given.
    """
    # Some objects (expressions of configs, say) have an attribute of any name.
    there = found_at(function, _DECORATORS)
    return there if type(there) is tuple else ()


# What stands on a class.


def flow_decorators_of(flow: type) -> tuple[FlowDecorator, ...]:
    """Return the decorators of a flow class and of its bases, the nearest class first.

    Of a kind that is not repeatable the nearest class has the say.

    Args:
        flow: A subclass of FlowSpec; FlowSpec and `object` themselves have none.
    """
    found: list[FlowDecorator] = []
    for each in flow.__mro__:
        names = {decorator.decorator_name for decorator in found if not decorator.repeatable}
        found += [one for one in vars(each).get(_OF_FLOW, ()) if one.decorator_name not in names]
    return tuple(found)


# What a decorator is.


Number = int | float | str


@dataclass(frozen=True, slots=True)
class Decorator:
    """What all decorators have in common: a name, and options that are checked when made."""

    decorator_name: ClassVar[str] = ""  # as it is written behind the @
    stands_on: ClassVar[str] = ""  # what it decorates, for sentences
    is_of_classes: ClassVar[bool] = False  # whether that is a class
    repeatable: ClassVar[bool] = False  # whether there may be several of the kind
    is_late: ClassVar[bool] = False  # whether it is not what it will be once configs are known
    open_options: ClassVar[str] = ""  # the field for options of the user's own names, if it has one

    @classmethod
    def can_stand_on(cls, decorated: object) -> bool:
        """Return whether a decorator of this class can be put on this.

        Args:
            decorated: What stands below the decorator.
        """
        return callable(decorated) and isinstance(decorated, type) is cls.is_of_classes

    def put_on(self, decorated: Any) -> None:
        """Add it to what stands below it, as the outermost one.

        Args:
            decorated: The function of a step, or the class of a flow.

        Raises:
            InvalidDecorator: There is one of this kind already, of which there can be but one.
        """

    def as_dict(self) -> dict[str, Any]:
        """Return its name and options as values that JSON can hold; a function is its name."""
        options = {each.name: plain(getattr(self, each.name)) for each in fields(self)}
        return {"type": self.decorator_name, "options": options}

    def _set(self, option: str, value: object) -> None:
        """Keep an option in its checked form (the value is frozen for everybody else)."""
        object.__setattr__(self, option, value)

    def _fault(self, option: str, expected: str) -> InvalidDecorator:
        value = getattr(self, option)
        return InvalidDecorator(
            f"@{self.decorator_name}: {option} must be {expected}, not {shown(value)}."
        )

    def _number(self, option: str, *, positive: bool = False) -> float:
        """Check a number of at least 0 (above 0 if `positive`) and keep it as one; raises
        InvalidDecorator."""
        number = as_number(getattr(self, option))
        if number is None or number < 0 or (positive and number == 0):
            raise self._fault(option, "a number above 0" if positive else "a number of 0 or more")
        self._set(option, number)
        return number


@dataclass(frozen=True, slots=True)
class StepDecorator(Decorator):
    """A decorator of a step."""

    stands_on: ClassVar[str] = "a step"
    hook_class: ClassVar[str] = ""  # `module:Class` of what it does inside the task's process

    @property
    def name(self) -> str:
        """The same, under the name that Metaflow's decorators have for it."""
        return self.decorator_name

    def put_on(self, decorated: Any) -> None:
        """See Decorator.put_on."""
        add_decorator(decorated, self)

    def shapes_result(self) -> Mapping[str, object] | None:
        """Return the options that the step's result may depend on, which the cache looks at; None
        where the decorator makes no difference to it."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


@dataclass(frozen=True, slots=True)
class FlowDecorator(Decorator):
    """A decorator of a flow."""

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
    """A decorator whose options are expressions of configs: it stands for one of `of`."""

    is_late: ClassVar[bool] = True
    of: type[Decorator]
    options: Mapping[str, Any]

    @property
    def decorator_name(self) -> str:  # type: ignore[override]
        """The name of the decorator that it will be."""
        return self.of.decorator_name

    @property
    def repeatable(self) -> bool:  # type: ignore[override]
        """Whether there may be several of the kind."""
        return self.of.repeatable

    def put_on(self, decorated: Any) -> None:
        """See Decorator.put_on."""
        self.of.put_on(self, decorated)

    def resolved(self, configs: Mapping[str, Any]) -> Any:
        """Return the decorator, with the expressions in its options evaluated.

        Args:
            configs: The values of the flow's configs, by attribute.

        Raises:
            InvalidConfig: An expression raises something.
            InvalidDecorator: An evaluated option cannot be used.
        """
        return build(self.of, evaluated(self.options, configs))


def build(of: type[D], options: Mapping[str, Any]) -> D:
    """Return a decorator with these options.

    Args:
        of: A class of decorators, a dataclass whose fields are the options.
        options: The options, by name.

    Raises:
        InvalidDecorator: An option is unknown, or its value cannot be used.
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
    """Whether the option is a name of the user's, for a decorator that takes such: not where it is
    more likely that one of ours was meant."""
    if not of.open_options or option in known or not option.isidentifier():
        return False
    return not option.startswith("_") and not did_you_mean(option, known)


def written(of: Callable[P, Decorator]) -> Decorates[P]:
    """Return the decorator that flows write, for one class of decorators: `@retry` and
    `@retry(times=2)` for Retry.

    Args:
        of: A class of decorators, a dataclass whose fields are the options.
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
    if len(decorated) > 1 or not all(map(kind.can_stand_on, decorated)):
        name = kind.decorator_name
        raise InvalidDecorator(
            f"@{name} takes its options by name, as in @{name}(option=value), and stands on "
            f"{kind.stands_on}; it was given {', '.join(map(shown, decorated))}."
        )


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
