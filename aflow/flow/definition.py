"""The definition of a flow: one value that describes the flow class to the rest of aflow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from aflow._core.records import dataclass, field

if TYPE_CHECKING:
    from aflow.errors import InvalidFlow
    from aflow.flow.configs import Config
    from aflow.flow.custom import FlowMutator
    from aflow.flow.decorators.base import FlowDecorator, StepDecorator
    from aflow.flow.decorators.project import Project
    from aflow.flow.graph import Graph
    from aflow.flow.parameters import Parameter
    from aflow.flow.spec import FlowSpec


@dataclass(frozen=True, slots=True)
class StepDefinition:
    """One step: its function and its decorators, outermost first.

    `takes_inputs` is True for a join. `decorators` are those in the source and those that `--with`
    added; at most one of each kind that is not repeatable. `line` is the line of the `def`.
    """

    name: str
    function: Callable[..., Any]
    decorators: tuple[StepDecorator, ...]
    is_async: bool
    takes_inputs: bool
    file: str
    line: int

    def decorator(self, name: str) -> Any:
        """Return the decorator of this name (`retry`, `catch`...); None if the step has none.

        Args:
            name: The name after the @, without options.
        """
        for each in self.decorators:  # a loop, because this is called several times for each task
            if each.decorator_name == name:
                return each
        return None


@dataclass(frozen=True, slots=True)
class FlowDefinition:
    """A flow class, read once: its steps in source order, parameters, constants and graph.

    `parameters`, `constants` (class attributes that every task can read and none may set),
    `configs` and `config_values` are by the name of the attribute. `config_values` is None until
    the configs have been read (`aflow/task/config_binding.py`). `problems` are the errors found
    while reading the class; `flow/lint.py` reports them with its own. `line` is the line of the
    class. `decorators` and `mutators` are those of the class and of its bases. `unmutated` is the
    flow before its configs were evaluated and its mutators called; None if it has neither.
    """

    cls: type[FlowSpec]
    name: str
    file: str
    doc: str
    steps: Mapping[str, StepDefinition]
    parameters: Mapping[str, Parameter]
    constants: Mapping[str, Any]
    graph: Graph
    problems: tuple[InvalidFlow, ...] = ()
    line: int = 0
    decorators: tuple[FlowDecorator, ...] = ()
    configs: Mapping[str, Config] = field(default_factory=dict)
    config_values: Mapping[str, Any] | None = None
    mutators: tuple[FlowMutator, ...] = ()
    unmutated: FlowDefinition | None = None

    @property
    def is_late(self) -> bool:
        """Whether the values of configs, or mutators, can still change the flow."""
        return bool(
            self.configs
            or self.mutators
            or any(each.is_late for each in self.decorators)
            or any(each.is_late for step in self.steps.values() for each in step.decorators)
        )

    @property
    def project(self) -> Project | None:
        """The @project of the flow; None if it has none."""
        return next(iter(self.flow_decorators("project")), None)

    def flow_decorators(self, name: str) -> list[Any]:
        """Return the flow's decorators of this name (`project`, `exit_hook`...), outermost first.

        Args:
            name: The name after the @, without options.
        """
        return [each for each in self.decorators if each.decorator_name == name]
