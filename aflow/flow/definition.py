"""A flow as the rest of aflow sees it: one value that says all there is to know about the class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, overload

from aflow._core.records import dataclass, field

if TYPE_CHECKING:
    from aflow.errors import InvalidFlow
    from aflow.flow.configs import Config
    from aflow.flow.custom import FlowMutator
    from aflow.flow.decorators.base import FlowDecorator, StepDecorator
    from aflow.flow.decorators.cache import Cache
    from aflow.flow.decorators.catch import Catch
    from aflow.flow.decorators.concurrency import Concurrency
    from aflow.flow.decorators.environment import Environment
    from aflow.flow.decorators.process import Process
    from aflow.flow.decorators.project import Project
    from aflow.flow.decorators.resources import Resources
    from aflow.flow.decorators.retry import Retry
    from aflow.flow.decorators.timeout import Timeout
    from aflow.flow.graph import Graph
    from aflow.flow.parameters import Parameter
    from aflow.flow.spec import FlowSpec


@dataclass(frozen=True, slots=True)
class StepDefinition:
    """One step: its function and the decorators on it, outermost first.

    `takes_inputs` is True for a join. `decorators` hold what was written in the source and what
    `--with` added; at most one of a kind that is not repeatable. `line` is that of its `def`.
    """

    name: str
    function: Callable[..., Any]
    decorators: tuple[StepDecorator, ...]
    is_async: bool
    takes_inputs: bool
    file: str
    line: int

    @overload
    def decorator(self, name: Literal["cache"]) -> Cache | None: ...
    @overload
    def decorator(self, name: Literal["catch"]) -> Catch | None: ...
    @overload
    def decorator(self, name: Literal["concurrency"]) -> Concurrency | None: ...
    @overload
    def decorator(self, name: Literal["environment"]) -> Environment | None: ...
    @overload
    def decorator(self, name: Literal["process"]) -> Process | None: ...
    @overload
    def decorator(self, name: Literal["resources"]) -> Resources | None: ...
    @overload
    def decorator(self, name: Literal["retry"]) -> Retry | None: ...
    @overload
    def decorator(self, name: Literal["timeout"]) -> Timeout | None: ...
    @overload
    def decorator(self, name: str) -> StepDecorator | None: ...
    def decorator(self, name: str) -> Any:
        """Return the decorator of this name (`retry`, `catch`...), None if the step has none.

        Args:
            name: The name as it is written behind the @, without options.
        """
        for each in self.decorators:  # a loop: asked several times for each task
            if each.decorator_name == name:
                return each
        return None


@dataclass(frozen=True, slots=True)
class FlowDefinition:
    """A flow class, read once: steps in the order written, parameters, constants, graph.

    `parameters` and `constants` (the class attributes that every task can read and none may set)
    are by the name of the attribute. `problems` is what was found wrong while reading, and that
    the graph cannot tell; `flow/lint.py` reports it with all else. `line` is that of the class.
    `decorators` and `mutators` are those of the class and of its bases. `configs` are by
    attribute, and so are their values, None until they are known (`aflow/task/config_binding.py`).
    `unmutated` is the flow before its mutators have changed it, None where there was nothing to do.
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
        """Whether it is not what it will be once the values of its configs are known."""
        return bool(
            self.configs
            or self.mutators
            or any(each.is_late for each in self.decorators)
            or any(each.is_late for step in self.steps.values() for each in step.decorators)
        )

    @property
    def project(self) -> Project | None:
        """The flow's @project, None if it has none."""
        return next(iter(self.flow_decorators("project")), None)

    def flow_decorators(self, name: str) -> list[Any]:
        """Return the flow's decorators of this name (`project`, `exit_hook`...), outermost first.

        Args:
            name: The name as it is written behind the @, without options.
        """
        return [each for each in self.decorators if each.decorator_name == name]
