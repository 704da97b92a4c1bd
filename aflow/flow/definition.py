"""A flow as the rest of aflow sees it: one value that says all there is to know about the class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aflow.flow.decorators import StepDecorator
    from aflow.flow.graph import Graph
    from aflow.flow.parameters import Parameter
    from aflow.flow.spec import FlowSpec


@dataclass(frozen=True, slots=True)
class StepDefinition:
    """One step: its function and the decorators on it, outermost first.

    `takes_inputs` is True for a join. `decorators` hold what was written in the source and what
    `--with` added; at most one of each kind.
    """

    name: str
    function: Callable[..., Any]
    decorators: tuple[StepDecorator, ...]
    is_async: bool
    takes_inputs: bool
    file: str
    line: int

    def decorator(self, name: str) -> StepDecorator | None:
        """The decorator of this name (`retry`, `catch`...), None if the step has none."""
        return next((each for each in self.decorators if each.name == name), None)


@dataclass(frozen=True, slots=True)
class FlowDefinition:
    """A flow class, read once: steps in the order written, parameters, constants, graph.

    `constants` are the class attributes that every task can read and none may set.
    """

    cls: type[FlowSpec]
    name: str
    file: str
    doc: str
    steps: Mapping[str, StepDefinition]
    parameters: Mapping[str, Parameter]
    constants: Mapping[str, Any]
    graph: Graph
