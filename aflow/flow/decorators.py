"""The step decorators: small frozen values that check themselves.

    @retry                                  bare, with the defaults
    @retry(times=2, seconds=10)             with options
    --with retry:times=2,seconds=10         on every step, from the command line (`attach`)

What they say is carried out elsewhere: @retry and @catch by the scheduler and the runner,
@timeout and @environment by the runner, @resources by executors that have resources to give,
@cache before a task is launched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from math import isfinite
from types import FunctionType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, overload

from aflow.errors import InvalidDecorator
from aflow.flow.marks import add_decorator
from aflow.flow.names import did_you_mean, is_artifact_name, shown

if TYPE_CHECKING:
    from aflow.flow.definition import FlowDefinition, StepDefinition

F = TypeVar("F", bound=Callable[..., Any])

MAX_RETRIES = 50
Number = int | float | str


@dataclass(frozen=True, slots=True)
class StepDecorator:
    """What all step decorators have in common: a name, and options that are checked when made."""

    name: ClassVar[str] = ""

    def shapes_result(self) -> Mapping[str, object] | None:
        """The options that the step's result may depend on, which the cache looks at; None where
        the decorator makes no difference to it."""
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
        number = _as_number(getattr(self, option))
        if number is None or number < 0 or (positive and number == 0):
            raise self._fault(option, "a number above 0" if positive else "a number of 0 or more")
        self._set(option, number)
        return number


@dataclass(frozen=True, slots=True)
class Retry(StepDecorator):
    """Try a failed step again, up to `times` times (0 to 50).

    Between two attempts pass `seconds`, or `minutes_between_retries` where `seconds` is None.
    """

    name: ClassVar[str] = "retry"
    times: int = 3
    minutes_between_retries: float = 2
    seconds: float | None = None

    def __post_init__(self) -> None:
        number = _as_number(self.times)
        if number is None or number != int(number) or not 0 <= number <= MAX_RETRIES:
            raise self._fault("times", f"a whole number from 0 to {MAX_RETRIES}")
        self._set("times", int(number))
        self._number("minutes_between_retries")
        if self.seconds is not None:
            self._number("seconds")

    def shapes_result(self) -> None:
        """None: the result of a later attempt is as good."""

    @property
    def wait_seconds(self) -> float:
        """Seconds between the end of an attempt and the next one."""
        if self.seconds is not None:
            return float(self.seconds)
        return self.minutes_between_retries * 60.0


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


@dataclass(frozen=True, slots=True)
class Timeout(StepDecorator):
    """Stop an attempt that runs longer than `seconds`, `minutes` and `hours` taken together."""

    name: ClassVar[str] = "timeout"
    seconds: float = 0
    minutes: float = 0
    hours: float = 0

    def __post_init__(self) -> None:
        for option in ("seconds", "minutes", "hours"):
            self._number(option)
        if self.total_seconds <= 0:
            raise InvalidDecorator(
                "@timeout needs a time above 0: give it seconds=, minutes= or hours=."
            )

    def shapes_result(self) -> None:
        """None: a step that is done was in time."""

    @property
    def total_seconds(self) -> float:
        """The whole time that an attempt may take, in seconds."""
        return self.seconds + 60.0 * self.minutes + 3600.0 * self.hours


@dataclass(frozen=True, slots=True)
class Environment(StepDecorator):
    """Environment variables that the step sees. Values that are not texts become texts."""

    name: ClassVar[str] = "environment"
    vars: Mapping[str, str] = field(default_factory=dict, repr=False)  # may hold secrets

    def __post_init__(self) -> None:
        if not isinstance(self.vars, Mapping):
            raise InvalidDecorator(
                '@environment: vars must be a mapping such as {"NAME": "value"}, not of type '
                f"{type(self.vars).__name__}."
            )
        checked = {key: str(value) for key, value in self.vars.items()}
        for key, value in checked.items():
            if not _can_be_variable(key):
                raise InvalidDecorator(
                    f"@environment: {shown(key)} cannot be the name of an environment variable."
                )
            if "\0" in value:
                # The value may be a secret: it is not shown.
                raise InvalidDecorator(f"@environment: the value of {key} has a NUL character.")
        self._set("vars", checked)

    def shapes_result(self) -> Mapping[str, object]:
        """The variables, by name."""
        return self.vars


@dataclass(frozen=True, slots=True)
class Resources(StepDecorator):
    """What the step needs: CPUs, GPUs, disk, memory and shared memory in MB.

    Executors on one machine have nothing to choose from and ignore it.
    """

    name: ClassVar[str] = "resources"
    cpu: Number = 1
    gpu: Number | None = None
    disk: Number | None = None
    memory: Number = 4096
    shared_memory: Number | None = None

    def __post_init__(self) -> None:
        self._number("cpu", positive=True)
        self._number("memory", positive=True)
        for option in ("gpu", "disk", "shared_memory"):
            if getattr(self, option) is not None:
                self._number(option)

    def shapes_result(self) -> None:
        """None: more of them make it quicker, not different."""


@dataclass(frozen=True, slots=True)
class Cache(StepDecorator):
    """Do not run a task again whose code, inputs and declared environment are those of a task that
    has succeeded before: take its result.

    With `enabled=False` the step always runs, under `run --cache`, too. Another `version` means
    that what was computed before does not count any more.
    """

    name: ClassVar[str] = "cache"
    enabled: bool = True
    version: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.enabled, bool):
            raise self._fault("enabled", "True or False")
        self._set("version", str(self.version))

    def shapes_result(self) -> Mapping[str, object] | None:
        """The version, if there is one."""
        return {"version": self.version} if self.version else None


STEP_DECORATORS: dict[str, type[StepDecorator]] = {
    each.name: each for each in (Cache, Catch, Environment, Resources, Retry, Timeout)
}


def make(name: str, options: Mapping[str, Any]) -> StepDecorator:
    """The decorator of this name; raises InvalidDecorator for an unknown name, an unknown option
    or a value that cannot be used."""
    kind = STEP_DECORATORS.get(name)
    if kind is None:
        raise InvalidDecorator(
            f"There is no step decorator {name!r}.{did_you_mean(name, STEP_DECORATORS)} "
            f"Known are: {', '.join(sorted(STEP_DECORATORS))}."
        )
    known = [each.name for each in fields(kind)]
    for option in options:
        if option not in known:
            raise InvalidDecorator(
                f"@{name} has no option {option!r}.{did_you_mean(option, known)} "
                f"Its options are: {', '.join(known)}."
            )
    return kind(**options)


def _can_be_variable(key: object) -> bool:
    return isinstance(key, str) and bool(key) and "=" not in key and "\0" not in key


def _as_number(value: object) -> float | None:
    """The value as a finite number; None for what is none (True and False are none)."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        if isinstance(value, str):
            value = int(value) if value.strip().isdecimal() else float(value)
        return value if isfinite(value) else None
    except (ValueError, OverflowError):
        return None


# ------------------------------------------------------------ from the command line


def parse_spec(spec: str) -> StepDecorator:
    """The decorator that `name` or `name:option=value,...` describes; see `flow/options.py`.

    Raises InvalidDecorator for all that cannot be understood.
    """
    from aflow.flow.options import read_options  # only where --with is used

    name, _, text = spec.partition(":")
    try:
        return make(name.strip(), read_options(text))
    except InvalidDecorator as error:
        raise InvalidDecorator(f"--with {spec}: {error}") from None


def attach(definition: FlowDefinition, specs: Sequence[str]) -> FlowDefinition:
    """The flow with these decorators on every step; raises InvalidDecorator.

    A step that has a decorator of the kind already keeps its own: the source wins over the
    command line, and of two specs of a kind the first wins.
    """
    decorators = [parse_spec(spec) for spec in specs]
    steps = {name: _with(step, decorators) for name, step in definition.steps.items()}
    return replace(definition, steps=steps)


def _with(step: StepDefinition, decorators: Sequence[StepDecorator]) -> StepDefinition:
    for decorator in decorators:
        if step.decorator(decorator.name) is None:
            step = replace(step, decorators=(*step.decorators, decorator))
    return step


# ------------------------------------------------------------ in the source


def _decorate(name: str, function: object, options: Mapping[str, Any]) -> Any:
    """Put the decorator on the function, or give what does so (`@retry` and `@retry(...)`)."""
    if function is None:
        decorator = make(name, options)

        def put(function: F) -> F:
            add_decorator(function, decorator)
            return function

        return put
    if not isinstance(function, FunctionType):
        raise InvalidDecorator(
            f"@{name} takes its options by name, as in @{name}(option=value), and stands on a "
            f"step; it was given {shown(function)}."
        )
    add_decorator(function, make(name, options))
    return function


@overload
def retry(function: F) -> F: ...
@overload
def retry(
    *, times: int = 3, minutes_between_retries: float = 2, seconds: float | None = None
) -> Callable[[F], F]: ...
def retry(function: object = None, **options: Any) -> Any:
    """Try a failed step again; see Retry."""
    return _decorate("retry", function, options)


@overload
def catch(function: F) -> F: ...
@overload
def catch(*, var: str | None = None, print_exception: bool = True) -> Callable[[F], F]: ...
def catch(function: object = None, **options: Any) -> Any:
    """Let the flow go on when the step has failed for good; see Catch."""
    return _decorate("catch", function, options)


@overload
def timeout(function: F) -> F: ...
@overload
def timeout(*, seconds: float = 0, minutes: float = 0, hours: float = 0) -> Callable[[F], F]: ...
def timeout(function: object = None, **options: Any) -> Any:
    """Stop an attempt that runs too long; see Timeout."""
    return _decorate("timeout", function, options)


@overload
def environment(function: F) -> F: ...
@overload
def environment(*, vars: Mapping[str, object]) -> Callable[[F], F]: ...
def environment(function: object = None, **options: Any) -> Any:
    """Set environment variables for the step; see Environment."""
    return _decorate("environment", function, options)


@overload
def resources(function: F) -> F: ...
@overload
def resources(
    *,
    cpu: Number = 1,
    gpu: Number | None = None,
    disk: Number | None = None,
    memory: Number = 4096,
    shared_memory: Number | None = None,
) -> Callable[[F], F]: ...
def resources(function: object = None, **options: Any) -> Any:
    """Say what the step needs; see Resources."""
    return _decorate("resources", function, options)


@overload
def cache(function: F) -> F: ...
@overload
def cache(*, enabled: bool = True, version: str = "") -> Callable[[F], F]: ...
def cache(function: object = None, **options: Any) -> Any:
    """Take the result of an earlier task where nothing has changed; see Cache."""
    return _decorate("cache", function, options)
