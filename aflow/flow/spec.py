"""FlowSpec, the base class of flows, and @step.

While a step runs, the flow instance is bound to a TaskContext, which loads an artifact of an
earlier task when the step first reads it. This code runs in every task, so it only does a few
dictionary lookups.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Protocol, TypeVar, overload

from aflow._core.records import NamedTuple
from aflow.errors import ArtifactNotFound, InvalidInput, InvalidTransition, TaskError
from aflow.flow.decorators.base import StepMark, mark_step
from aflow.flow.graph import Kind, Node
from aflow.flow.metaflow_names import OF_A_TASK, FlowGraph, OfTheClass
from aflow.flow.names import RESERVED_NAMES, did_you_mean, shown
from aflow.flow.reading import read_definition

if TYPE_CHECKING:
    from aflow.flow.definition import FlowDefinition
    from aflow.flow.graph import Graph, Node

__all__ = [
    "FlowSpec",
    "NextCall",
    "TaskContext",
    "bind",
    "define",
    "left_artifacts",
    "new_instance",
    "only_defined",
    "set_launcher",
    "step",
]

# At run time, a call of self.next() must match the call in the source.


class NextCall(NamedTuple):
    """The transition of a task. `steps` are those that follow; for a switch, the chosen one."""

    steps: tuple[str, ...]
    foreach: str | None = None
    num_parallel: int | None = None
    condition: str | None = None


def follow(
    flow: FlowSpec,
    node: Node,
    steps: tuple[Any, ...],
    foreach: str | None,
    num_parallel: int | None,
    condition: str | None,
) -> NextCall:
    """Return the transition of a self.next() call, after checking it against the source.

    Args:
        flow: The flow instance of the task; a switch reads its artifact from it.
        node: The running step, as read from the source.
        steps: The positional arguments of the call: methods of the flow; for a switch, one dict.
        foreach: The name of the artifact with one item for each task; None if not a foreach.
        num_parallel: The number of tasks of the gang; None if not a gang.
        condition: The name of the artifact that a switch reads; None if not a switch.

    Raises:
        InvalidTransition: If the call differs from the one in the source, or the value of the
            switch is not one of its cases.
    """
    if node.kind is Kind.SWITCH:
        return _choose(flow, node, steps, condition)
    names = tuple([getattr(step, "__name__", None) for step in steps])
    if (
        names != node.next
        or foreach != node.foreach
        or condition is not None
        or (num_parallel is None) is (node.kind is Kind.PARALLEL)
    ):
        raise _disagreement(node, steps)
    if num_parallel is not None:
        _check_gang(node, num_parallel)
    return NextCall(names, foreach, num_parallel)


def _choose(flow: FlowSpec, node: Node, steps: tuple[Any, ...], condition: str | None) -> NextCall:
    cases = steps[0] if len(steps) == 1 else None
    if not isinstance(cases, dict) or condition is None or condition != node.condition:
        raise _disagreement(node, steps)
    names = tuple((str(case), getattr(step, "__name__", "")) for case, step in cases.items())
    if names != node.cases:
        raise _disagreement(node, steps)
    value = getattr(flow, condition)
    try:
        chosen = cases[value]
    except (KeyError, TypeError):  # TypeError: the value is not hashable
        allowed = ", ".join(repr(case) for case in cases)
        raise InvalidTransition(
            f"Step {node.name!r} is a switch over self.{condition}, whose value {shown(value)} is "
            f"not one of its cases: {allowed}."
        ) from None
    return NextCall((chosen.__name__,), condition=condition)


def _check_gang(node: Node, num_parallel: object) -> None:
    if type(num_parallel) is not int or num_parallel < 1:
        raise InvalidTransition(
            f"Step {node.name!r} has num_parallel={shown(num_parallel)}: it must be a whole number "
            "above 0."
        )


def _disagreement(node: Node, steps: tuple[Any, ...]) -> InvalidTransition:
    for step in steps:
        if not callable(step) and not isinstance(step, dict):
            return InvalidTransition(
                f"Step {node.name!r} gives {shown(step)} to self.next(), which is not a step. If "
                "an artifact has the name of a step, rename it."
            )
    if node.kind is Kind.END:
        return InvalidTransition(
            f"Step {node.name!r} is the end of the flow and cannot call self.next()."
        )
    return InvalidTransition(
        f"Step {node.name!r} called self.next() in another way than its source says "
        f"({node.kind.value} to {', '.join(node.next) or 'nothing'}): the graph is read from the "
        "source, so write the call out there."
    )


F = TypeVar("F", bound=Callable[..., Any])

_launcher: Callable[[FlowSpec], None] | None = None
_only_defined = False


def set_launcher(launcher: Callable[[FlowSpec], None]) -> None:
    """Set the function that `MyFlow()` calls.

    Args:
        launcher: Called with the new flow instance; it runs the command line.
    """
    global _launcher
    _launcher = launcher


@contextmanager
def only_defined() -> Iterator[None]:
    """Make `MyFlow()` only create an object, without running the command line.

    For loading the definitions in a file that calls `MyFlow()` at its end.
    """
    global _only_defined
    before, _only_defined = _only_defined, True
    try:
        yield
    finally:
        _only_defined = before


class TaskContext(Protocol):
    """The port through which a flow instance reads its inputs while a step runs."""

    @property
    def flow_name(self) -> str:
        """The name of the flow."""

    @property
    def step_name(self) -> str:
        """The name of the running step."""

    @property
    def node(self) -> Node:
        """The running step in the graph."""

    @property
    def read_only(self) -> frozenset[str]:
        """The names of parameters and constants."""

    @property
    def index(self) -> int | None:
        """The task's index in the innermost foreach; None outside of any foreach."""

    @property
    def passes(self) -> int | None:
        """How many times a step that can repeat itself has run before; None for other steps."""

    @property
    def input(self) -> Any:
        """The item of the innermost foreach; None outside of any foreach."""

    def load(self, name: str) -> Any:
        """Return the value of an artifact of an earlier task, or of a parameter.

        Args:
            name: The name of the artifact or parameter, as an attribute of `self`.

        Raises:
            ArtifactNotFound: If no earlier step has set the artifact.
        """

    def names(self) -> set[str]:
        """Return the names of all artifacts and parameters that `load` can return."""

    def foreach_stack(self) -> list[tuple[int, int | None, Any]]:
        """Return (index, number of items, item) of each enclosing foreach, outermost first."""

    @property
    def definition(self) -> FlowDefinition:
        """The flow, with the values of its configs, after its mutators."""

    @property
    def stack(self) -> Sequence[Any]:
        """The enclosing foreaches of the task, outermost first, without the items.

        Each has the attributes of `aflow.storage.artifacts.ForeachFrame`.
        """

    def merge(
        self,
        flow: FlowSpec,
        inputs: Any,
        exclude: Collection[str] | None,
        include: Collection[str] | None,
    ) -> None:
        """Copy the artifacts on which the inputs of a join agree; see FlowSpec.merge_artifacts.

        Args:
            flow: The flow instance of the join; the merged artifacts are set on it.
            inputs: The `inputs` of the join: one namespace for each input task.
            exclude: The names of artifacts that are not copied; None for none.
            include: The names of the only artifacts to copy; None for all.
        """


class FlowSpec:
    """The base class of all flows. `MyFlow()` runs the command line of the flow.

    Every attribute that a step sets on `self` is an artifact: it is stored when the step ends, and
    later steps can read it.
    """

    # Names that must not be set. While a step runs, `bind` replaces the first by the second.
    _aflow_fixed: ClassVar[frozenset[str]] = RESERVED_NAMES
    _aflow_fixed_in_step: ClassVar[frozenset[str]] = RESERVED_NAMES
    _aflow_definition: ClassVar[FlowDefinition]
    # Private in Metaflow, but public flows read them.
    _graph = OfTheClass(FlowGraph)
    _steps = OfTheClass(lambda cls: [getattr(cls, name) for name in define(cls).steps])

    def __init__(self, use_cli: bool = True) -> None:
        """Run the command line if `use_cli` is True; otherwise only create the object.

        Raises InvalidInput if no command line was set up.
        """
        if not use_cli or _only_defined:
            return
        if _launcher is None:
            raise InvalidInput(
                f"{type(self).__name__}() starts the command line, which is not there: import "
                f"FlowSpec from aflow, or write {type(self).__name__}(use_cli=False)."
            )
        _launcher(self)

    # ------------------------------------------------------------ about the flow

    @property
    def name(self) -> str:
        """The name of the flow, which is the name of its class."""
        return type(self).__name__

    @property
    def script_name(self) -> str:
        """The name of the file that defines the flow, without its folder."""
        return define(type(self)).file.replace("\\", "/").rpartition("/")[2]

    def __iter__(self) -> Iterator[Callable[..., Any]]:
        """Iterate over the steps in source order; each has a `.name`."""
        return iter([getattr(self, name) for name in define(type(self)).steps])

    # ------------------------------------------------------------ while a step runs

    @property
    def index(self) -> int | None:
        """The task's index in the innermost foreach, from 0; None outside of any foreach."""
        return self._aflow_bound("index").index

    @property
    def input(self) -> Any:
        """The item of the innermost foreach; None outside of any foreach."""
        return self._aflow_bound("input").input

    def foreach_stack(self) -> list[tuple[int, int | None, Any]]:
        """Return (index, number of items, item) of each enclosing foreach, outermost first."""
        return self._aflow_bound("foreach_stack()").foreach_stack()

    def next(
        self,
        *steps: Any,
        foreach: str | None = None,
        num_parallel: int | None = None,
        condition: str | None = None,
    ) -> None:
        """Set the steps that follow. Must be the last statement of every step except the end.

        Args:
            *steps: The next steps as methods (`self.train`): one, or several for branches; for a
                switch, one dict from values to steps.
            foreach: The name of an artifact; the next step runs once for each of its items. It must
                be set before the call. None if not a foreach.
            num_parallel: The number of tasks of a gang, which start together and know each other's
                addresses. None if not a gang.
            condition: The name of the artifact whose value selects the case of a switch; None if
                not a switch.

        Raises:
            InvalidTransition: If the call differs from the one in the source, if the step has
                called it before, or if the value of a switch is not one of its cases.
        """
        state = self.__dict__
        context = self._aflow_bound("next()")
        if "_aflow_next" in state:
            raise InvalidTransition(
                f"Step {context.step_name!r} called self.next() twice: a step goes on once."
            )
        state["_aflow_next"] = follow(self, context.node, steps, foreach, num_parallel, condition)

    def merge_artifacts(
        self,
        inputs: Any,
        exclude: Collection[str] | None = None,
        include: Collection[str] | None = None,
    ) -> None:
        """In a join, copy the artifacts on which all inputs that have them agree.

        Artifacts that the join has already set are not changed.

        Args:
            inputs: The `inputs` of the join, or some of them.
            exclude: The names of artifacts that are not copied; not together with `include`. None
                for none.
            include: The names of the only artifacts to copy; at least one input must have each,
                unless the join has set it. None for all.

        Raises:
            UnhandledInMergeArtifacts: If the inputs differ in an artifact.
            MissingInMergeArtifacts: If neither an input nor the join has an artifact in `include`.
            MergeArtifactsError: If the step is not a join, or if both lists are given.
        """
        self._aflow_bound("merge_artifacts()").merge(self, inputs, exclude, include)

    def _aflow_bound(self, what: str) -> TaskContext:
        context: TaskContext | None = self.__dict__.get("_aflow_context")
        if context is None:
            raise TaskError(f"self.{what} is there only while a step runs.")
        return context

    # ------------------------------------------------------------ artifacts

    def __getattr__(self, name: str) -> Any:
        # Only called for names that are in neither the instance nor the class.
        if name.startswith(("__", "_aflow")):
            raise AttributeError(name)
        state = self.__dict__
        context: TaskContext | None = state.get("_aflow_context")
        if context is None:
            if _is_computed(self, name):
                return object.__getattribute__(self, name)
            raise AttributeError(
                f"Flow {type(self).__name__} has no attribute {name!r}. Artifacts can be read in a "
                "step that runs, and of finished runs with the client."
            )
        try:
            value = context.load(name)
        except ArtifactNotFound:
            if name in OF_A_TASK:
                return OF_A_TASK[name](context)
            # A property has raised AttributeError, so Python called this: raise its error again.
            if _is_computed(self, name):
                return object.__getattribute__(self, name)
            raise _not_found(self, context, name) from None
        state[name] = value
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._aflow_fixed:
            raise AttributeError(_cannot_set(type(self), name))
        object.__setattr__(self, name, value)

    def __getstate__(self) -> NoReturn:
        raise TaskError(
            f"The flow {type(self).__name__} itself (self) cannot be stored or sent elsewhere: "
            "take the values that you need of it."
        )

    def __repr__(self) -> str:
        return f"<flow {type(self).__name__}>"

    def __str__(self) -> str:
        context: TaskContext | None = self.__dict__.get("_aflow_context")
        if context is None:
            return repr(self)
        stack = context.foreach_stack()
        place = f"[{','.join(str(index) for index, _, _ in stack)}]" if stack else ""
        item = "" if not stack or stack[-1][2] is None else str(stack[-1][2])
        input_part = f" (input: {item[:20] + '...' if len(item) > 20 else item})" if item else ""
        return f"<flow {type(self).__name__} step {context.step_name}{place}{input_part}>"


def _is_computed(flow: FlowSpec, name: str) -> bool:
    """Return whether the class computes the attribute, e.g. by a property that may have raised.

    False for parameters and configs: they read the artifact of this name.
    """
    from inspect import getattr_static  # see aflow/_core/deferred.py

    found = getattr_static(type(flow), name, None)
    kind = type(found)
    return hasattr(kind, "__get__") and not getattr(kind, "_aflow_reads_artifact", False)


def _not_found(flow: FlowSpec, context: TaskContext, name: str) -> ArtifactNotFound:
    takes_inputs = define(type(flow)).steps[context.step_name].takes_inputs
    advice = (
        f" This step is a join: read inputs.<step>.{name}, or call self.merge_artifacts(inputs)."
        if takes_inputs
        else ""
    )
    return ArtifactNotFound(
        f"Flow {context.flow_name} has no artifact {name!r} in step {context.step_name!r}: neither "
        f"it nor a step before it has set self.{name}."
        f"{did_you_mean(name, context.names())}{advice}"
    )


def _cannot_set(cls: type[FlowSpec], name: str) -> str:
    definition = define(cls)
    if name in definition.parameters:
        what = "a parameter, and has the value that the run was started with"
    elif name in definition.configs:
        what = "a config, and has the value that the run was started with"
    elif name in definition.constants:
        what = "a constant of the class"
    elif name in RESERVED_NAMES:
        what = "a reserved name"
    else:
        what = "a method of the class"
    return f"self.{name} cannot be set: it is {what}. Use another name."


# ------------------------------------------------------------ steps


@overload
def step(function: F) -> F: ...
@overload
def step(*, start: bool = False, end: bool = False) -> Callable[[F], F]: ...
def step(function: Any = None, *, start: bool = False, end: bool = False) -> Any:
    """Make a method a step: `@step`, `@step(start=True)`, `@step(end=True)`.

    Without these options the steps named `start` and `end` are the first and the last one. The
    method may be an `async def`.

    Args:
        function: The decorated function; None if options are given.
        start: Whether it is the first step.
        end: Whether it is the last step.

    Returns:
        The method, or a decorator if options are given.

    Raises:
        InvalidDecorator: If the decorated object is not a function.
    """
    mark = StepMark(bool(start), bool(end))

    def put(function: F) -> F:
        mark_step(function, mark)
        return function

    return put if function is None else put(function)


# ------------------------------------------------------------ for code that runs flows


def define(cls: type[FlowSpec], graph: Graph | None = None) -> FlowDefinition:
    """Return the definition of a flow class; it is read once and cached on the class.

    The definition may be invalid: see `lint.check`.

    Args:
        graph: The graph, if another process has read it; None to read it from the source.

    Raises:
        InvalidFlow: If the source cannot be read; the error has the file and line.
    """
    definition: FlowDefinition | None = cls.__dict__.get("_aflow_definition")
    if definition is None:
        definition = read_definition(cls, FlowSpec, graph)
        cls._aflow_fixed_in_step = _fixed_in_step(definition)
        own = cls.__getattr__
        if own is not FlowSpec.__getattr__ and not hasattr(own, "_aflow_reads_artifacts"):
            cls.__getattr__ = _after_artifacts(own)  # type: ignore[method-assign]
        cls._aflow_definition = definition
    return definition


def _after_artifacts(own: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    """Wrap a flow's custom `__getattr__`, so that it is only called for names without artifact."""

    @wraps(own)
    def found(flow: FlowSpec, name: str) -> Any:
        state = flow.__dict__
        context: TaskContext | None = state.get("_aflow_context")
        if context is None or name.startswith(("__", "_aflow")):
            return own(flow, name)
        try:
            state[name] = value = context.load(name)
        except ArtifactNotFound:
            return OF_A_TASK[name](context) if name in OF_A_TASK else own(flow, name)
        return value

    found._aflow_reads_artifacts = True  # type: ignore[attr-defined]
    return found


def new_instance(definition: FlowDefinition) -> FlowSpec:
    """Return a flow instance for one task; `__init__` is not called.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
    """
    return object.__new__(definition.cls)


def bind(flow: FlowSpec, context: TaskContext) -> None:
    """Connect a flow instance to the context of its task, and make read-only names read-only.

    Args:
        flow: A new instance, on which no step has run.
        context: The context from which the instance reads artifacts and parameters.
    """
    define(type(flow))
    state = flow.__dict__
    state["_aflow_context"] = context
    fixed = type(flow)._aflow_fixed_in_step
    # A mutator may have added parameters that are not in the class.
    state["_aflow_fixed"] = fixed if context.read_only <= fixed else fixed | context.read_only


def _fixed_in_step(definition: FlowDefinition) -> frozenset[str]:
    """Return the names that no step may set: reserved and read-only names, and methods.

    A later step would find the method instead of the artifact.
    """
    public = {
        name: value
        for each in reversed(definition.cls.__mro__)
        for name, value in vars(each).items()
        if not name.startswith("_")
    }
    # Not isinstance, which reads `__class__` of arbitrary objects.
    methods = [
        name
        for name, value in public.items()
        if callable(value) or issubclass(type(value), classmethod)
    ]
    own = (definition.parameters, definition.constants, definition.configs)
    return RESERVED_NAMES.union(*own, methods)


def left_artifacts(flow: FlowSpec) -> dict[str, Any]:
    """Return the artifacts of a finished step, by name: those that it has set or read.

    Artifacts that were only read are included, because the step may have changed them in place.

    Args:
        flow: The flow instance on which the step has run; deleted names are absent.
    """
    context: TaskContext | None = flow.__dict__.get("_aflow_context")
    read_only = context.read_only if context is not None else frozenset()
    return {
        name: value
        for name, value in flow.__dict__.items()
        if not name.startswith("_aflow") and name not in read_only
    }
