"""A flow as plain values, for programs: what `current.graph` is, under the names that tools for
Metaflow read."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from aflow.flow.graph import Kind
from aflow.flow.names import plain

if TYPE_CHECKING:
    from aflow.flow.definition import FlowDefinition, StepDefinition
    from aflow.flow.graph import Graph, Node

_TYPES = {
    Kind.SPLIT: "split-static",
    Kind.FOREACH: "split-foreach",
    Kind.PARALLEL: "split-parallel",
    Kind.SWITCH: "split-switch",
    Kind.END: "end",
}


def outline(definition: FlowDefinition) -> dict[str, Any]:
    """The flow's steps, what they say of themselves and who leads where; a new dict each time.

    `graph_structure` lists the steps in order, what lies between a split and its join as a list of
    branches.
    """
    graph = definition.graph
    return {
        "file": definition.file,
        "start_step": graph.start,
        "end_step": graph.end,
        "parameters": [
            {"name": name, "type": type(each).__name__}
            for name, each in (*definition.parameters.items(), *definition.configs.items())
        ],
        "constants": [
            {"name": name, "type": type(value).__name__}
            for name, value in definition.constants.items()
            if name not in definition.configs
        ],
        "steps": {name: _step(step, graph[name], graph) for name, step in definition.steps.items()},
        "graph_structure": [*_between(graph, graph.start, graph.end), graph.end],
        "doc": definition.doc,
        "decorators": [
            {"name": each.kind, "attributes": each.as_dict()["options"]}
            for each in definition.decorators
        ],
    }


def _step(step: StepDefinition, node: Node, graph: Graph) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": node.name,
        "type": _type(node, graph),
        "line": node.line,
        "source_file": node.file,
        "doc": node.doc,
        "decorators": [
            {
                "name": each.name,
                "attributes": {one.name: plain(getattr(each, one.name)) for one in fields(each)},
            }
            for each in step.decorators
        ],
        "next": list(node.next),
    }
    if node.kind is Kind.FOREACH:
        found["foreach_artifact"] = node.foreach
    if node.kind is Kind.SWITCH:
        found["condition"] = node.condition
        found["switch_cases"] = dict(node.cases)
    if node.join is not None:
        found["matching_join"] = node.join
    return found


def _type(node: Node, graph: Graph) -> str:
    if node.kind is not Kind.LINEAR:
        return _TYPES[node.kind]
    if node.is_join:
        return "join"
    return "start" if node.name == graph.start else "linear"


def _between(graph: Graph, step: str, end: str) -> list[Any]:
    """What is passed from a step on, before `end`."""
    found: list[Any] = []
    while step != end:
        node = graph[step]
        found.append(step)
        if node.kind is Kind.SWITCH:
            found.append([_between(graph, each, end) for each in node.next if each != step])
            return found
        if node.join is not None:
            found.append([_between(graph, each, node.join) for each in node.next])
        step = node.join or node.next[0]
    return found
