"""The graph of a flow: its steps and the transitions between them, as plain data.

`flow/links.py` reads it from the source of the steps, `flow/lint.py` checks it, and the scheduler
executes it. A run stores the graph with which it started in the form that `as_dict` returns.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from aflow._core.records import asdict, dataclass, field, fields, is_dataclass, replace
from aflow.flow.names import plain

if TYPE_CHECKING:
    from aflow.flow.definition import FlowDefinition


class Kind(StrEnum):
    """The kind of the transition from a step. Whether a step is a join is independent of it."""

    LINEAR = "linear"  # self.next(self.a)
    SPLIT = "split"  # self.next(self.a, self.b)
    FOREACH = "foreach"  # self.next(self.a, foreach="xs")
    PARALLEL = "parallel"  # self.next(self.a, num_parallel=n)
    SWITCH = "switch"  # self.next({...}, condition="x")
    END = "end"  # the last step: no self.next


@dataclass(frozen=True, slots=True)
class Node:
    """One step in the graph.

    `next` are the steps that may follow it, in source order; `previous` are the steps that it may
    follow. `splits` are the SPLIT, FOREACH and PARALLEL steps that are open around it, outermost
    first; a join is outside of the split that it closes. `join` is the step that closes the split
    that this step opens (None if it opens none). `foreach` is the artifact with the items of a
    foreach, `condition` the one that a switch reads; `cases` are the values and steps of the
    switch.
    """

    name: str
    kind: Kind
    is_join: bool = False
    next: tuple[str, ...] = ()
    previous: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    join: str | None = None
    foreach: str | None = None
    condition: str | None = None
    cases: tuple[tuple[str, str], ...] = ()
    file: str = ""
    line: int = 0
    doc: str = ""


@dataclass(frozen=True, slots=True)
class Graph:
    """All steps of a flow, in source order."""

    flow: str
    start: str
    end: str
    nodes: dict[str, Node] = field(default_factory=dict)
    doc: str = ""

    def __getitem__(self, step: str) -> Node:
        return self.nodes[step]

    def levels(self) -> list[list[str]]:
        """Return the steps grouped by their longest distance from the start, in source order.

        The transition of a step to itself is ignored; unreachable steps are omitted.
        """
        distance = {"": -1}  # the source of the way to the first step
        for name, ways in ways_to(self.nodes, self.start).items():
            distance[name] = 1 + max(distance.get(source, -1) for source, _ in ways)
        levels: list[list[str]] = [[] for _ in range(max(distance.values()) + 1)]
        for name in self.nodes:
            if name in distance:
                levels[distance[name]].append(name)
        return levels

    @property
    def gangs(self) -> frozenset[str]:
        """The steps whose tasks are members of gangs (num_parallel)."""
        parallel = (node for node in self.nodes.values() if node.kind is Kind.PARALLEL)
        return frozenset(name for node in parallel for name in node.next)

    def has_many_tasks(self, step: str) -> bool:
        """Return whether the step has a task for each item of a foreach or member of a gang.

        Args:
            step: The name of a step of this graph; KeyError for any other.
        """
        kinds = (self.nodes[split].kind for split in self.nodes[step].splits)
        return any(kind in (Kind.FOREACH, Kind.PARALLEL) for kind in kinds)

    def as_dict(self) -> dict[str, Any]:
        """Return the graph as values that JSON and msgpack can hold."""
        return {
            "flow": self.flow,
            "start": self.start,
            "end": self.end,
            "doc": self.doc,
            "nodes": [asdict(node) for node in self.nodes.values()],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Graph:
        """Return the graph from the result of `as_dict`; keys of later versions are ignored.

        Args:
            data: The result of `as_dict`.
        """
        nodes = {}
        for raw in data["nodes"]:
            known = {key: value for key, value in raw.items() if key in Node.__slots__}
            known["kind"] = Kind(known["kind"])
            for key in ("next", "previous", "splits"):
                known[key] = tuple(known[key])
            known["cases"] = tuple((case, step) for case, step in known["cases"])
            nodes[known["name"]] = Node(**known)
        return cls(data["flow"], data["start"], data["end"], nodes, data.get("doc", ""))


# Find the open splits around each step, and the join that closes each split.
#
# The graph is traversed once, in topological order, so that the time is linear in steps and
# transitions. For an invalid graph the result is an approximation; `flow/lint.py` uses the same
# traversal to report the errors.


OPENERS = frozenset({Kind.SPLIT, Kind.FOREACH, Kind.PARALLEL})

# A split that is open on a way through the graph, and the branch that the way took.
Frame = tuple[str, str]
Frames = tuple[Frame, ...]
Way = tuple[str, Frames]  # the previous step ("" before the first one), and the open splits


def reachable(nodes: Mapping[str, Node], start: str) -> set[str]:
    """Return the steps that can be reached from `start`, including itself.

    Args:
        nodes: The steps, by name.
        start: The name of the first step; the result is empty if it does not exist.
    """
    found = {start} & nodes.keys()
    todo = list(found)
    while todo:
        for name in nodes[todo.pop()].next:
            if name in nodes and name not in found:
                found.add(name)
                todo.append(name)
    return found


def in_order(nodes: Mapping[str, Node], start: str) -> list[str]:
    """Return the steps that can be reached from `start` in topological order. Transitions back to
    an earlier step are ignored.

    Args:
        nodes: The steps, by name.
        start: The name of the first step; the result is empty if it does not exist.
    """
    done: list[str] = []
    seen: set[str] = set()
    path = [("", iter([start]))]
    while path:
        step, targets = path[-1]
        each = next(targets, None)
        if each is None:
            done.append(step)
            path.pop()
        elif each in nodes and each not in seen:
            seen.add(each)
            path.append((each, reversed(nodes[each].next)))
    return done[-2::-1]  # without the "" before the first step


def ways_to(nodes: Mapping[str, Node], start: str) -> dict[str, list[Way]]:
    """Return the ways to each step, by step, in topological order.

    The transition of a step to itself is ignored. Steps on a cycle or after one are omitted.

    Args:
        nodes: The steps, by name.
        start: The name of the first step; the result is empty if it does not exist.
    """
    within = reachable(nodes, start)
    awaited = dict.fromkeys(within, 0)
    for name in within:
        for target in _targets(nodes, name):
            awaited[target] += 1
    ways: dict[str, list[Way]] = {name: [] for name in within}
    ordered: dict[str, list[Way]] = {}
    ready = [start] if start in within else []
    if ready:
        ways[start].append(("", ()))
    while ready:
        name = ready.pop()
        ordered[name] = ways[name]
        for target in _targets(nodes, name):
            ways[target].append((name, _frames_after(nodes[name], ways[name], target)))
            awaited[target] -= 1
            if not awaited[target] and target not in ordered:
                ready.append(target)
    return ordered


def cycle_from(nodes: Mapping[str, Node], start: str) -> list[str]:
    """Return the steps of one cycle that can be reached from `start`; empty if there is none.

    The transition of a step to itself is not a cycle.

    Args:
        nodes: The steps, by name.
        start: The name of the first step.
    """
    path = {start: iter(_targets(nodes, start))}
    done: set[str] = set()
    while path:
        name = next(reversed(path))
        target = next(path[name], None)
        if target is None:
            done.add(name)
            del path[name]
        elif target in path:
            steps = list(path)
            return steps[steps.index(target) :]
        elif target not in done:
            path[target] = iter(_targets(nodes, target))
    return []


def open_in(node: Node, ways: list[Way]) -> Frames:
    """Return the splits that are open around a step, without the one that it closes.

    Args:
        node: The step; it must be reachable, so that `ways` is not empty.
        ways: The result of `ways_to` for the step; in a valid flow all have the same open splits.
    """
    frames = ways[0][1]
    return frames[:-1] if node.is_join else frames


def _frames_after(node: Node, ways: list[Way], target: str) -> Frames:
    frames = open_in(node, ways)
    return (*frames, (node.name, target)) if node.kind in OPENERS else frames


def _targets(nodes: Mapping[str, Node], name: str) -> list[str]:
    return [each for each in nodes[name].next if each in nodes and each != name]


def connect(nodes: Mapping[str, Node], start: str) -> dict[str, Node]:
    """Return the nodes with `previous`, `splits` and `join` filled in.

    Args:
        nodes: The steps, by name.
        start: The name of the first step; steps that cannot be reached from it have no splits.
    """
    previous: dict[str, list[str]] = {name: [] for name in nodes}
    for node in nodes.values():
        for target in node.next:
            if target in previous:
                previous[target].append(node.name)
    ways = ways_to(nodes, start)
    joins: dict[str, str] = {}
    for name, leading in ways.items():
        frames = leading[0][1]
        if nodes[name].is_join and frames:
            joins.setdefault(frames[-1][0], name)
    return {
        name: replace(
            node,
            previous=tuple(previous[name]),
            splits=tuple(split for split, _ in open_in(node, ways[name])) if name in ways else (),
            join=joins.get(name),
        )
        for name, node in nodes.items()
    }


# The value of `current.graph`: a flow as plain values, with the keys that tools for Metaflow read.


def outline(definition: FlowDefinition) -> dict[str, Any]:
    """Return a description of the flow as a new dict: steps, graph, parameters and decorators.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
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
        "steps": {
            name: {
                **node_outline(graph[name], graph),
                "decorators": [_decorator(each) for each in step.decorators],
            }
            for name, step in definition.steps.items()
        },
        "graph_structure": structure(graph),
        "doc": definition.doc,
        "decorators": [
            {"name": each.decorator_name, "attributes": each.as_dict()["options"]}
            for each in definition.decorators
        ],
    }


def node_outline(node: Node, graph: Graph) -> dict[str, Any]:
    """Return the description of a step, without its decorators.

    Args:
        node: A step of `graph`.
        graph: The steps of the flow and the transitions between them.
    """
    found: dict[str, Any] = {
        "name": node.name,
        "type": type_of(node, graph),
        "line": node.line,
        "source_file": node.file,
        "doc": node.doc,
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


def _decorator(decorator: Any) -> dict[str, Any]:
    if is_dataclass(decorator):
        options = {each.name: getattr(decorator, each.name) for each in fields(decorator)}
    else:  # a custom decorator
        args, kwargs = decorator.get_args_kwargs()
        options = {"_args": args, **kwargs}
    return {"name": decorator.decorator_name, "attributes": plain(options)}


def type_of(node: Node, graph: Graph) -> str:
    """Return the kind of a step under the name that Metaflow's client uses.

    Args:
        node: A step of `graph`.
        graph: The steps of the flow and the transitions between them.
    """
    if node.kind is not Kind.LINEAR:
        return _TYPES[node.kind]
    if node.is_join:
        return "join"
    return "start" if node.name == graph.start else "linear"


_TYPES = {
    Kind.SPLIT: "split-static",
    Kind.FOREACH: "split-foreach",
    Kind.PARALLEL: "split-parallel",
    Kind.SWITCH: "split-switch",
    Kind.END: "end",
}


def structure(graph: Graph) -> list[Any]:
    """Return the steps in order, with nested lists for branches and for the cases of switches.

    A split is followed by a list of its branches, each up to the join. A switch is followed by a
    list of its cases, each up to the end of the enclosing list. Cases that lead to the same step
    share one list object from there on.

    Args:
        graph: The steps of the flow and the transitions between them.
    """
    blocks: dict[tuple[str, str], list[Any]] = {}

    def block(step: str, end: str) -> list[Any]:
        if (step, end) in blocks:
            return blocks[step, end]
        found = blocks[step, end] = []
        passed = {end}  # a graph that was not checked here may contain a cycle
        while step in graph.nodes and step not in passed:
            node = graph[step]
            passed.add(step)
            found.append(step)
            if node.kind is Kind.SWITCH:
                found.append([block(each, end) for each in node.next if each != step])
                break
            if node.join is not None:
                found.append([block(each, node.join) for each in node.next])
            step = node.join or next(iter(node.next), end)
        return found

    return [*block(graph.start, graph.end), *([graph.end] if graph.end in graph.nodes else [])]
