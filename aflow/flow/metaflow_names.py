"""Private attributes of Metaflow's FlowSpec that public flows read.

Flows read `self._graph[step].type`, `self._foreach_stack` or `self._current_step`, and tests read
`MyFlow(use_cli=False)._graph`. The values are the same as in Metaflow. Only FlowSpec uses this
module, and none of the values are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from aflow._core.records import NamedTuple
from aflow.errors import ArtifactNotFound
from aflow.flow.graph import Kind, in_order, outline, type_of

if TYPE_CHECKING:
    from aflow.flow.definition import FlowDefinition
    from aflow.flow.graph import Node
    from aflow.flow.spec import FlowSpec, TaskContext


class ForeachFrame(NamedTuple):
    """One level of nested foreaches around a task.

    `step` is the first step inside it, `var` the artifact with its items, `num_splits` the number
    of items, `index` the index of the current item and `value` a short text of it.
    """

    step: str
    var: str
    num_splits: int | None
    index: int  # type: ignore[assignment]  # Metaflow's name
    value: str | None


_GANG = "_parallel_ubf_iter"  # Metaflow's name for the items of a gang
_TYPES = {"split-static": "split", "split-foreach": "foreach", "split-parallel": "foreach"}


class GraphNode:
    """A step of a FlowGraph."""

    def __init__(self, definition: FlowDefinition, node: Node, closed: str | None) -> None:
        graph, step = definition.graph, definition.steps[node.name]
        self.name = node.name
        self.type = type_of(node, graph)
        self.type = _TYPES.get(self.type, self.type)
        self.doc = node.doc
        self.source_file = node.file
        self.func_lineno = node.line
        self.decorators = list(step.decorators)
        self.num_args = 2 if node.is_join else 1
        self.in_funcs = sorted(node.previous)
        self.out_funcs = list(node.next)
        # In Metaflow's graph a join is still inside the split that it closes.
        self.split_parents = [*node.splits, *([closed] if closed else [])]
        self.matching_join = node.join
        self.is_inside_foreach = any(
            graph[each].kind in (Kind.FOREACH, Kind.PARALLEL) for each in node.splits
        )
        self.foreach_param = node.foreach
        self.parallel_foreach = node.kind is Kind.PARALLEL
        self.parallel_step = any(
            graph[each].kind is Kind.PARALLEL and node.name in graph[each].next
            for each in node.previous
        )
        self.condition = node.condition
        self.switch_cases = dict(node.cases)
        self.is_start_step = node.name == graph.start
        self.is_end_step = node.name == graph.end
        self.has_tail_next = node.kind is not Kind.END
        self.invalid_tail_next = False
        self.node_info: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"<step {self.name}: {self.type}>"


class FlowGraph:
    """The graph of a flow class: `FlowGraph(MyFlow)["start"].type`, iteration over its nodes."""

    def __init__(self, flow: type[FlowSpec]) -> None:
        from aflow.flow.spec import define  # spec imports this module

        definition = define(flow)
        graph = definition.graph
        self._definition = definition
        self.name = definition.name
        self.doc = definition.doc
        self.start_step, self.end_step = graph.start, graph.end
        closed = {node.join: name for name, node in graph.nodes.items()}
        self.nodes = {
            name: GraphNode(definition, node, closed.get(name))
            for name, node in graph.nodes.items()
        }
        self.sorted_nodes = in_order(graph.nodes, graph.start)

    def __getitem__(self, step: str) -> GraphNode:
        return self.nodes[step]

    def __contains__(self, step: object) -> bool:
        return step in self.nodes

    def __iter__(self) -> Iterator[GraphNode]:
        return iter(self.nodes.values())

    def output_steps(self) -> tuple[dict[str, Any], list[Any]]:
        """Return the steps by name, and their structure: see `structure` in aflow/flow/graph.py."""
        found = outline(self._definition)
        return found["steps"], found["graph_structure"]


class OfTheClass:
    """A computed attribute of flow instances and flow classes: `_graph`, `_steps`.

    It is not a data descriptor, so that a flow may set an attribute of this name; an artifact of
    this name takes precedence.
    """

    def __init__(self, compute: Callable[[type[FlowSpec]], Any]) -> None:
        self._compute = compute

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, flow: FlowSpec | None, cls: type[FlowSpec]) -> Any:
        context: TaskContext | None = None if flow is None else flow.__dict__.get("_aflow_context")
        if context is not None and self._name in context.names():
            assert flow is not None, "only an instance has a context"
            return flow.__getattr__(self._name)
        return self._compute(cls)


class Datastore(Mapping[str, Any]):
    """The artifacts that a step can read, by name: `self._datastore["x"]`."""

    def __init__(self, context: TaskContext) -> None:
        self._context = context
        self.flow_name = context.flow_name

    def __getitem__(self, name: str) -> Any:
        try:
            return self._context.load(name)
        except ArtifactNotFound as error:
            raise KeyError(name) from error

    def __contains__(self, name: object) -> bool:
        return name in self._context.names()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._context.names()))

    def __len__(self) -> int:
        return len(self._context.names())


def _frames(context: TaskContext) -> list[ForeachFrame]:
    frames = []
    for each in context.stack:
        opener = context.definition.graph[each.step]
        of: tuple[str, int | None, int, str | None]
        of = (each.var, each.num_splits, each.index, each.value)
        if opener.kind is Kind.PARALLEL:
            of = (_GANG, None, each.index, None)
        # Metaflow uses the first step inside the foreach, not the step that opened it.
        frames.append(ForeachFrame(opener.next[0], *of))
    return frames


# Attributes of a running step, unless an artifact has the name.
OF_A_TASK: Mapping[str, Callable[[TaskContext], Any]] = {
    "_current_step": lambda context: context.step_name,
    "_datastore": Datastore,
    "_exception": lambda context: None,
    "_foreach_num_splits": lambda context: None,
    "_foreach_stack": _frames,
    "_foreach_var": lambda context: None,
    "_graph_info": lambda context: outline(context.definition),
    "_iteration_stack": lambda context: [] if context.passes is None else [context.passes],
    "_success": lambda context: False,
    "_task_ok": lambda context: None,
    "_transition": lambda context: None,
}
