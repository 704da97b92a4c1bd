"""Flows from source text, with known line numbers, and a context to run their steps."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, cast

from aflow.errors import ArtifactNotFound
from aflow.flow.definition import FlowDefinition
from aflow.flow.graph import Node
from aflow.flow.spec import FlowSpec, TaskContext, bind, define, new_instance
from aflow.storage.artifacts import ForeachFrame

HEAD = (
    "from aflow import FlowSpec, JSONType, Parameter, step, "
    "retry, catch, concurrency, timeout, environment, resources\n"
)

# The error, the flow from line 2 on, and the problems: line and part of the message.
Fault = tuple[str, str, list[tuple[int, str]]]
MakeFlow = Callable[[str], type[FlowSpec]]


def load_flow(path: Path, body: str) -> type[FlowSpec]:
    """Return the last flow class of a file with the imports on line 1 and `body` from line 2 on."""
    path.write_text(HEAD + textwrap.dedent(body).lstrip("\n"))
    module: dict[str, Any] = {"__name__": "flow_under_test"}
    exec(compile(path.read_text(), str(path), "exec"), module)
    flows = [
        each
        for each in module.values()
        if isinstance(each, type) and issubclass(each, FlowSpec) and each is not FlowSpec
    ]
    return flows[-1]


class FakeContext:
    """A TaskContext on a dictionary of artifacts; it records loads and merges."""

    def __init__(
        self,
        node: Node,
        artifacts: dict[str, Any],
        read_only: Collection[str] = (),
        index: int | None = None,
        item: Any = None,
        definition: FlowDefinition | None = None,
    ) -> None:
        self.flow_name = "TestFlow"
        self.definition = definition
        self.stack: list[ForeachFrame] = []
        self.passes: int | None = None
        self.node = node
        self.step_name = node.name
        self.artifacts = artifacts
        self.read_only = frozenset(read_only)
        self.index = index
        self.input = item
        self.loaded: list[str] = []
        self.merged: list[Any] = []

    def load(self, name: str) -> Any:
        self.loaded.append(name)
        try:
            return self.artifacts[name]
        except KeyError:
            raise ArtifactNotFound(name) from None

    def names(self) -> set[str]:
        return set(self.artifacts)

    def foreach_stack(self) -> list[tuple[int, int, Any]]:
        return [] if self.index is None else [(self.index, 2, self.input)]

    def merge(self, flow: FlowSpec, *arguments: Any) -> None:
        self.merged.append(arguments)


def running(cls: type[FlowSpec], step: str, **artifacts: Any) -> tuple[Any, FakeContext]:
    """Return an instance of the flow within a step, and its context."""
    definition = define(cls)
    flow = new_instance(definition)
    node = definition.graph.nodes[step]
    fixed = [*definition.parameters, *definition.constants, *definition.configs]
    context = FakeContext(node, artifacts, fixed, definition=definition)
    bind(flow, cast(TaskContext, context))
    return flow, context
