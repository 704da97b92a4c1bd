"""Read a flow class into a FlowDefinition: its members along the MRO, its graph from the source."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from aflow._core.modules import file_of
from aflow._core.records import NamedTuple
from aflow.errors import InvalidFlow
from aflow.flow.configs import Config
from aflow.flow.decorators.base import decorators_of, flow_decorators_of, step_mark
from aflow.flow.definition import FlowDefinition, StepDefinition
from aflow.flow.graph import Graph, Kind, Node, connect
from aflow.flow.links import FunctionNode, LinkReader, Sources, unwrapped
from aflow.flow.names import RESERVED_NAMES
from aflow.flow.parameters import Parameter

if TYPE_CHECKING:
    from aflow.flow.spec import FlowSpec


# Copied from inspect, whose import takes as long as all other imports for reading a flow.
_CO_GENERATOR, _CO_COROUTINE, _CO_ASYNC_GENERATOR = 0x20, 0x80, 0x200


class Members(NamedTuple):
    """The members of a flow class and its bases; a class overrides its bases."""

    steps: dict[str, Callable[..., Any]]
    parameters: dict[str, Parameter]
    constants: dict[str, Any]
    problems: list[str]
    configs: dict[str, Any]


def read_definition(cls: type[FlowSpec], root: type, known: Graph | None = None) -> FlowDefinition:
    """Return the definition of a flow class. Errors of the flow are in its `problems`, for lint.

    Args:
        root: FlowSpec; its members, and those of its bases, are ignored.
        known: The graph that another process has read from the same source, so that tasks need not
            parse it again; it is used only if it has exactly the steps of the class. None to read
            the source.

    Raises:
        InvalidFlow: If the source of a step is not available.
    """
    members = _members(cls, root)
    line, problems = 0, []
    if known is not None and known.nodes.keys() == members.steps.keys():
        graph = known
        steps = {
            name: _step(name, function, known[name].line, takes_inputs=known[name].is_join)
            for name, function in members.steps.items()
        }
        file = _file(cls, steps)
    else:
        sources = Sources(cls.__name__)
        trees = {name: sources.function(function) for name, function in members.steps.items()}
        steps = {
            name: _step(
                name,
                function,
                trees[name].lineno,
                takes_inputs=len(trees[name].args.posonlyargs) + len(trees[name].args.args) == 2,
            )
            for name, function in members.steps.items()
        }
        file = _file(cls, steps)
        line = sources.class_line(file, cls.__qualname__)
        problems = [InvalidFlow(problem, file=file, line=line) for problem in members.problems]
        graph = _graph(cls, steps, trees, problems)
    return FlowDefinition(
        cls=cls,
        name=cls.__name__,
        file=file,
        doc=graph.doc,
        steps=steps,
        parameters=members.parameters,
        constants=members.constants,
        graph=graph,
        problems=tuple(problems),
        line=line,
        decorators=flow_decorators_of(cls),
        configs=members.configs,
        mutators=_mutators_of(cls),
    )


# ------------------------------------------------------------ members


def _members(cls: type, root: type) -> Members:
    attributes: dict[str, Any] = {}
    for each in reversed(cls.__mro__):
        if each not in root.__mro__:
            attributes.update(vars(each))
    members = Members({}, {}, {}, [], {})
    for name, value in attributes.items():
        _sort_in(members, name, value)
    return members


def _sort_in(members: Members, name: str, value: Any) -> None:
    kind = type(value)  # not isinstance, which reads `__class__` of arbitrary objects
    if name in RESERVED_NAMES:
        members.problems.append(
            f"{name!r} is a reserved name: give the step, parameter or attribute another name."
        )
    elif step_mark(value) is not None:
        members.steps[name] = value
    elif decorators_of(value):
        decorator = decorators_of(value)[0].decorator_name
        members.problems.append(
            f"The method {name!r} has @{decorator} but is not a step: put @step on it."
        )
    elif _is_custom(value):
        members.problems.append(
            f"The method {name!r} has {value!r} but is not a step: put @step below it."
        )
    elif issubclass(kind, Parameter):
        members.parameters[name] = value
    elif issubclass(kind, Config):
        members.configs[name] = value
    elif not name.startswith("_") and not callable(value) and not hasattr(kind, "__get__"):
        members.constants[name] = value


# Most flows have neither custom decorators nor mutators, so `aflow.flow.custom` is not imported
# here.


def _is_custom(value: Any) -> bool:
    """Return whether the member is a custom decorator that has replaced what it decorates.

    This happens if it is applied to something that is not a step.
    """
    module = sys.modules.get("aflow.flow.custom")
    return module is not None and issubclass(type(value), module.OnStep)


def _mutators_of(cls: type) -> tuple[Any, ...]:
    module = sys.modules.get("aflow.flow.custom")
    found: tuple[Any, ...] = () if module is None else module.mutators_of(cls)
    return found


def _file(cls: type, steps: Mapping[str, StepDefinition]) -> str:
    """Return the file of the class: that of one of its own steps, or else of its module."""
    own = [step.file for step in steps.values() if step.name in vars(cls)]
    if own:
        return own[0]
    return file_of(sys.modules.get(cls.__module__)) or f"<{cls.__module__}>"


# ------------------------------------------------------------ steps


def _step(
    name: str, function: Callable[..., Any], line: int, *, takes_inputs: bool
) -> StepDefinition:
    return StepDefinition(
        name=name,
        function=function,
        decorators=decorators_of(function),
        is_async=bool(_flags(function) & _CO_COROUTINE),
        takes_inputs=takes_inputs,
        file=unwrapped(function).__code__.co_filename,
        line=line,
    )


def _flags(function: Callable[..., Any]) -> int:
    """Return the code flags of a function, combined with those of the function that it wraps."""
    flags = 0
    for each in (function, unwrapped(function)):
        code = getattr(each, "__code__", None)
        flags |= code.co_flags if code is not None else 0
    return flags


def _function_problem(step: StepDefinition, tree: FunctionNode) -> str | None:
    """Return an error message if the name, arguments or kind of the function are invalid."""
    name = step.name
    if tree.name != name:
        return (
            f"Step {name!r} is the function {tree.name!r} under another name: give both the same "
            "name. If a decorator of yours has made it, put functools.wraps on what it returns."
        )
    arguments = [*tree.args.posonlyargs, *tree.args.args]
    if len(arguments) not in (1, 2) or tree.args.vararg or tree.args.kwonlyargs or tree.args.kwarg:
        return (
            f"Step {name!r} must take the argument (self), or (self, inputs) where it joins "
            "branches; it takes others."
        )
    if _flags(step.function) & (_CO_GENERATOR | _CO_ASYNC_GENERATOR):
        return f"Step {name!r} is a generator, which would do nothing: remove its yield."
    return None


# ------------------------------------------------------------ graph


def _graph(
    cls: type,
    steps: Mapping[str, StepDefinition],
    trees: Mapping[str, FunctionNode],
    problems: list[InvalidFlow],
) -> Graph:
    start, end = _terminal(steps, "start"), _terminal(steps, "end")
    nodes = {}
    for step in steps.values():
        tree = trees[step.name]
        problem = _function_problem(step, tree)
        if problem:
            problems.append(InvalidFlow(problem, file=step.file, line=step.line))
        node = Node(
            name=step.name,
            kind=Kind.END if step.name == end else Kind.LINEAR,
            is_join=step.takes_inputs,
            file=step.file,
            line=step.line,
            doc=_doc(step.function.__doc__),
        )
        try:
            node = LinkReader(node, tree).read()
        except InvalidFlow as problem_of_link:
            if tree.name == step.name:  # otherwise _function_problem has reported it
                problems.append(problem_of_link)
        nodes[step.name] = node
    doc = _doc(vars(cls).get("__doc__"))
    return Graph(cls.__name__, start, end, connect(nodes, start), doc)


def _doc(text: str | None) -> str:
    if not text:
        return ""
    from inspect import cleandoc  # see aflow/_core/deferred.py

    return cleandoc(text)


def _terminal(steps: Mapping[str, StepDefinition], word: str) -> str:
    """Return the first or the last step; "" if there is none.

    It is the step that is marked as start (or end), or else the one of that name, or else the only
    step.
    """
    for step in steps.values():
        if getattr(step_mark(step.function), word):
            return step.name
    if word in steps:
        return word
    return next(iter(steps)) if len(steps) == 1 else ""
