"""The base classes of custom step decorators and mutators.

@user_step_decorator
def timed(step_name, flow, inputs, attributes):
    began = time.time()
    yield                        # the step runs here
    flow.seconds = time.time() - began
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from types import FunctionType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from aflow.errors import AflowError, InvalidDecorator
from aflow.flow.configs import evaluated
from aflow.flow.decorators.base import add_decorator, step_mark
from aflow.flow.names import did_you_mean, place, shown

if TYPE_CHECKING:
    from aflow.flow.mutators import MutableFlow, MutableStep

USER_SKIP_STEP: dict[str, Any] = {}
"""The value that the generator of a step decorator yields to skip the step."""

_MUTATORS = "_aflow_mutators"
_known: dict[str, type[Custom]] = {}


class Custom:
    """The base class of custom decorators and mutators, whose `init` receives the options."""

    decorator_name: ClassVar[str] = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__module__ != __name__:
            cls.decorator_name = vars(cls).get("decorator_name") or (
                f"{cls.__module__}.{cls.__qualname__}"
            )
            _known[cls.decorator_name] = cls

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._args = args
        self._kwargs = kwargs

    def init(self, *args: Any, **kwargs: Any) -> None:
        """Receive the options. A class that has options must override it.

        Args:
            *args: The positional arguments of the decorator, with config expressions evaluated.
            **kwargs: The keyword arguments of the decorator, with config expressions evaluated.
        """

    def __repr__(self) -> str:
        return f"@{self.decorator_name}"

    def get_args_kwargs(self) -> tuple[list[Any], dict[str, Any]]:
        """Return the positional and keyword arguments of the decorator."""
        return list(self._args), dict(self._kwargs)

    def begun(self, configs: Mapping[str, Any]) -> Any:
        """Return a copy with its config expressions evaluated, after calling its `init`.

        Args:
            configs: The values of the flow's configs, by name and by attribute.

        Raises:
            InvalidDecorator: If it has options but does not override `init`, or if `init` failed.
        """
        made = copy.copy(self)
        made._args = tuple(evaluated(each, configs) for each in self._args)
        made._kwargs = evaluated(self._kwargs, configs)
        if (made._args or made._kwargs) and type(self).init is Custom.init:
            raise InvalidDecorator(
                f"{self.decorator_name} was given options, and has no method init to take them."
            )
        try:
            made.init(*made._args, **made._kwargs)
        except AflowError:
            raise
        except Exception as error:
            raise InvalidDecorator(
                f"{self.decorator_name} failed in init{place(error)}: "
                f"{type(error).__name__}: {error}"
            ) from error
        return made


class _OnStep(type):
    """The metaclass for `@Decorator` and `@Decorator(...)`.

    Calling the class with a step decorates the step; any other call creates an instance.
    """

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], FunctionType) and step_mark(args[0]) is not None:
            made: Any = super().__call__(*args[1:], **kwargs)
            add_decorator(args[0], made)
            return args[0]
        return super().__call__(*args, **kwargs)


class OnStep(Custom, metaclass=_OnStep):
    """The base class of custom decorators and mutators of steps."""

    hook_class: ClassVar[str] = ""
    repeatable: ClassVar[bool] = True
    is_late: ClassVar[bool] = True

    def __call__(self, step: Any) -> Any:
        """Decorate a step; raises InvalidDecorator for anything else."""
        if not isinstance(step, FunctionType) or step_mark(step) is None:
            raise InvalidDecorator(
                f"@{self.decorator_name} was put on {shown(step)}, which is not a step: write it "
                "above @step."
            )
        made: Any = self  # Any: not a StepDecorator
        add_decorator(step, made)
        return step

    def shapes_result(self) -> Mapping[str, object] | None:
        """Return its options, on which the result of the step may depend."""
        return {"options": (self._args, sorted(self._kwargs.items()))}


class UserStepDecorator(OnStep):
    """The base class of step decorators: override `pre_step`, `post_step`, `init` (for options)."""

    hook_class: ClassVar[str] = "aflow.task.hooks:CustomHook"

    def pre_step(self, step_name: str, flow: Any, inputs: Any = None) -> Any:
        """Run before the step.

        Args:
            step_name: The name of the step.
            flow: The flow instance of the task; artifacts that are set on it are stored.
            inputs: The inputs of a join, as the step receives them; None in any other step.

        Returns:
            A function to call instead of the step, with flow (and inputs, in a join); None to call
            the step itself.
        """

    def post_step(self, step_name: str, flow: Any, exception: Exception | None = None) -> Any:
        """Run after the step, before its artifacts are stored.

        Args:
            step_name: The name of the step.
            flow: The flow instance of the task; artifacts that are set on it are stored.
            exception: The exception that the step raised; None if it succeeded.

        Returns:
            The exception with which the step fails; None if it succeeds. To succeed although the
            step has not called self.next(), return a pair of None and a dict with the keyword
            arguments of self.next().
        """
        return exception

    @property
    def skip_step(self) -> bool | dict[str, Any]:
        """Whether to skip the step: True, or a dict with the keyword arguments of self.next()."""
        chosen: bool | dict[str, Any] = self.__dict__.get("_skip_step", False)
        return chosen

    @skip_step.setter
    def skip_step(self, value: bool | dict[str, Any]) -> None:
        self.__dict__["_skip_step"] = value


class StepMutator(OnStep):
    """Changes the decorators of a step before the flow runs: override `pre_mutate` or `mutate`."""

    def pre_mutate(self, mutable_step: MutableStep) -> None:
        """Change the step as soon as the values of the configs are known.

        Args:
            mutable_step: The step; changes apply to this run or deployment.
        """

    def mutate(self, mutable_step: MutableStep) -> None:
        """Change the step after `pre_mutate` of all mutators.

        Args:
            mutable_step: The step; mutators of steps can no longer be added or removed.
        """

    def add_to_package(self) -> Any:
        """Return files for the code package, in addition to those of the flow's folder.

        Returns:
            An iterable of pairs of (path of a file, its name in the package).
        """

    def shapes_result(self) -> None:
        """Return None: the decorators that it added have their own `shapes_result`."""


class FlowMutator(Custom):
    """Changes a flow before it runs: its parameters, its decorators and those of its steps.

    Override `pre_mutate` or `mutate`.
    """

    def __call__(self, flow: Any) -> Any:
        """Decorate the class of a flow; raises InvalidDecorator for anything else."""
        if not isinstance(flow, type):
            raise InvalidDecorator(
                f"@{self.decorator_name} was put on {shown(flow)}: a mutator of flows decorates "
                "the class of a flow."
            )
        setattr(flow, _MUTATORS, (self, *vars(flow).get(_MUTATORS, ())))
        return flow

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs and _is_flow(args[0]):
            made = super().__new__(cls)
            made.__init__()  # type: ignore[misc]
            return made(args[0])
        return super().__new__(cls)

    def pre_mutate(self, mutable_flow: MutableFlow) -> None:
        """Change the flow as soon as the values of the configs are known.

        Only this method can add or remove parameters and mutators.

        Args:
            mutable_flow: The flow; changes apply to this run or deployment.
        """

    def mutate(self, mutable_flow: MutableFlow) -> None:
        """Change the flow after `pre_mutate` of all mutators.

        Args:
            mutable_flow: The flow; parameters can no longer be added or removed.
        """

    def add_to_package(self) -> Any:
        """Return files for the code package, in addition to those of the flow's folder.

        Returns:
            An iterable of pairs of (path of a file, its name in the package).
        """


def _is_flow(value: Any) -> bool:
    return isinstance(value, type) and hasattr(value, "_aflow_fixed")


def mutators_of(flow: type) -> tuple[FlowMutator, ...]:
    """Return the mutators of a flow class and of its bases, those of the bases first.

    Args:
        flow: A subclass of FlowSpec, or any class of its MRO.
    """
    found: list[FlowMutator] = []
    for each in reversed(flow.__mro__):
        found += reversed(vars(each).get(_MUTATORS, ()))
    return tuple(found)


# ------------------------------------------------------------ from a generator


def user_step_decorator(*args: Any, **kwargs: Any) -> Any:
    """Make a generator function of (step_name, flow, inputs[, attributes]) a step decorator.

    The code before its `yield` runs before the step, the code after it runs after the step. The
    `yield` raises an exception of the step; the step succeeds if the generator catches it. If the
    generator yields a function, that is called instead of the step. If it yields a dict, the step
    is skipped, and self.next() is called with the items of the dict as keyword arguments, or as the
    step would call it if the dict is empty (USER_SKIP_STEP).

    Args:
        *args: The generator function if the decorator has no parentheses; otherwise nothing.
        **kwargs: Options; the function must then have the argument `attributes`.

    Returns:
        The step decorator.

    Raises:
        InvalidDecorator: If the decorated object is not a generator function, or has too few or too
            many arguments.
    """
    if not args:
        return lambda function: user_step_decorator(function, **kwargs)
    function = args[0]
    if not isinstance(function, FunctionType) or not inspect.isgeneratorfunction(function):
        raise InvalidDecorator("@user_step_decorator decorates only generator functions.")
    count = len(inspect.signature(function).parameters)
    if count not in (3, 4) or (kwargs and count != 4):
        raise InvalidDecorator(
            f"@user_step_decorator: {function.__name__} has to take (step_name, flow, inputs), and "
            "attributes as the fourth if there are options."
        )
    body = {
        "decorator_name": f"{function.__module__}.{function.__name__}",
        "__module__": function.__module__,
        "__doc__": function.__doc__,
        "_function": staticmethod(function),
        "_takes_attributes": count == 4,
    }
    return _OnStep(function.__name__, (FromGenerator,), body)


class FromGenerator(UserStepDecorator):
    """The base class of step decorators that `user_step_decorator` creates."""

    _function: ClassVar[Callable[..., Any]]
    _takes_attributes: ClassVar[bool] = False

    def init(self, *args: Any, **kwargs: Any) -> None:
        """Reject options that the generator function cannot receive."""
        if args:
            raise InvalidDecorator(f"@{self.decorator_name} takes its options by name.")
        if kwargs and not self._takes_attributes:
            raise InvalidDecorator(
                f"@{self.decorator_name} was given options: its function has to take attributes as "
                "the fourth argument."
            )

    def pre_step(self, step_name: str, flow: Any, inputs: Any = None) -> Any:
        """Run the generator to its yield."""
        more = (self._kwargs,) if self._takes_attributes else ()
        self._generator = self._function(step_name, flow, inputs, *more)
        try:
            value = next(self._generator)
        except StopIteration:  # a generator without yield skips the step
            self._generator = None
            self.skip_step = True
            return None
        if isinstance(value, dict):
            self.skip_step = value or True
            return None
        if value is not None and not callable(value):
            raise InvalidDecorator(
                f"@{self.decorator_name} has yielded {shown(value)}: yield nothing, a function to "
                "run instead of the step, or a dict to skip it."
            )
        return value

    def post_step(self, step_name: str, flow: Any, exception: Exception | None = None) -> Any:
        """Run the rest of the generator."""
        if self._generator is None:
            return exception
        try:
            if exception is None:
                next(self._generator)
            else:
                self._generator.throw(exception)
        except StopIteration as end:
            return end.value
        except Exception as error:  # noqa: BLE001 -- the step fails with it
            return error
        return InvalidDecorator(f"@{self.decorator_name} has yielded twice: a step runs once.")


# ------------------------------------------------------------ by name


K = TypeVar("K", bound=Custom)


def custom_named(name: str, kind: type[K]) -> type[K] | None:
    """Return the custom decorator or mutator of this name, importing its module if necessary.

    Args:
        name: The dotted path of the class (`package.module.Name`), or an unambiguous end of the
            path of one that has been imported.
        kind: The required base class: OnStep or FlowMutator.

    Returns:
        The class; None if the name has no dot and is unknown.

    Raises:
        InvalidDecorator: If the path cannot be imported, or the name is the end of several paths.
    """
    known = {path: each for path, each in _known.items() if issubclass(each, kind)}
    if name in known:
        return known[name]
    ends = {path: each for path, each in known.items() if path.endswith(f".{name}")}
    if len(ends) > 1:
        raise InvalidDecorator(f"{name!r} may be any of {', '.join(ends)}: write its whole path.")
    for each in ends.values():
        return each
    return _imported(name, kind, known) if "." in name else None


def _imported(path: str, kind: type[K], known: Iterable[str]) -> type[K]:
    of = "step" if issubclass(kind, OnStep) else "flow"
    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except Exception as error:  # a module of the user may raise anything
        reason = str(error).rstrip(".") or type(error).__name__
        raise InvalidDecorator(f"There is no {of} decorator {path!r}: {reason}.") from error
    if not isinstance(found, type) or not issubclass(found, kind):
        near = did_you_mean(path, known)
        raise InvalidDecorator(f"{path!r} is not a {of} decorator.{near}")
    return found
