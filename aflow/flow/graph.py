"""The graph of a flow: nodes and what leads where, as plain data.

Read from the source of the steps by `flow/links.py`, checked by `flow/lint.py`, followed by the
scheduler. `as_dict` and `from_dict` are the form in which a run stores the graph it began with.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any, assert_never

from aflow._core.records import asdict, dataclass, field, fields, is_dataclass, replace
from aflow.flow.names import plain

if TYPE_CHECKING:
    from aflow.flow.definition import FlowDefinition


class Kind(StrEnum):
    """How a step goes on. A join is a property beside it: a join may go on in any way."""

    LINEAR = "linear"  # self.next(self.a)
    SPLIT = "split"  # self.next(self.a, self.b)
    FOREACH = "foreach"  # self.next(self.a, foreach="xs")
    PARALLEL = "parallel"  # self.next(self.a, num_parallel=n)
    SWITCH = "switch"  # self.next({...}, condition="x")
    END = "end"  # the last step: no self.next


@dataclass(frozen=True, slots=True)
class Node:
    """One step as the graph sees it.

    `next` are the steps it may lead to, in the order written. `previous` the steps that may lead
    to it. `splits` the names of the SPLIT, FOREACH and PARALLEL steps that are open around it,
    outermost first; a join stands outside of the split that it closes. `join` is the step that
    closes the split which this node opens (None if it opens none). `foreach` names the artifact
    iterated, `condition` the one a switch reads; `cases` are the switch's values and steps.
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
    """All nodes of a flow, in the order in which the steps are written."""

    flow: str
    start: str
    end: str
    nodes: dict[str, Node] = field(default_factory=dict)
    doc: str = ""

    def __getitem__(self, step: str) -> Node:
        return self.nodes[step]

    def levels(self) -> list[list[str]]:
        """Return the steps by their longest distance from the start, in the order in which they are
        written; a loop does not count, and steps that nothing leads to are left out."""
        distance = {"": -1}  # where the way to the start comes from
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
        """Return whether the step has a task for each item of a foreach, or of a gang.

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
        """Return the graph that `as_dict` gave; unknown keys of a later version are ignored.

        Args:
            data: The plain values, as `to_dict` returns them.
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


# What the links of a flow amount to: which splits are open where, and which join closes which.
#
# The ways through a flow are followed once, in topological order, so that all is linear in steps
# and edges. What is found is the best that can be said of a graph with faults; `flow/lint.py` uses
# the same ways to say what the faults are.


OPENERS = frozenset({Kind.SPLIT, Kind.FOREACH, Kind.PARALLEL})

# A split that is open on a way, and the branch of it that the way took.
Frame = tuple[str, str]
Frames = tuple[Frame, ...]
Way = tuple[str, Frames]  # the step it comes from ("" for the first), and what is open on it


def reachable(nodes: Mapping[str, Node], start: str) -> set[str]:
    """Return the steps that can be reached from `start`, itself among them.

    Args:
        nodes: The steps, by name.
        start: The name of the first step; nothing is reachable from one that does not exist.
    """
    found = {start} & nodes.keys()
    todo = list(found)
    while todo:
        for name in nodes[todo.pop()].next:
            if name in nodes and name not in found:
                found.add(name)
                todo.append(name)
    return found


def ways_to(nodes: Mapping[str, Node], start: str) -> dict[str, list[Way]]:
    """Return for each step the ways that lead to it, in topological order. A step's own link to
    itself is no way. Steps on a cycle, and behind one, are left out.

    Args:
        nodes: The steps, by name.
        start: The name of the first step; the result is empty where it does not exist.
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
    """Return the steps of a cycle that can be reached from `start`; empty where there is none. A
    step's own link to itself is not a cycle.

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
    """Return the splits that are open around a step; a join has closed its own.

    Args:
        node: The step; it must be reachable, so that `ways` is not empty.
        ways: What `ways_to` gives for the step; all of them have the same splits open in a valid
            flow.
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
        start: The name of the first step; steps that it does not reach stay without splits.
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


# A flow as plain values, for programs: what `current.graph` is, under the names that tools for
# Metaflow read.


def outline(definition: FlowDefinition) -> dict[str, Any]:
    """Return the flow's steps, what they say of themselves and who leads where; a new dict each
    time.

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
    """Return the step as the graph knows it.

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
    else:  # one of the user's own
        args, kwargs = decorator.get_args_kwargs()
        options = {"_args": args, **kwargs}
    return {"name": decorator.decorator_name, "attributes": plain(options)}


def type_of(node: Node, graph: Graph) -> str:
    """Return the kind of a step, in the words of Metaflow's client.

    Args:
        node: A step of `graph`.
        graph: The steps of the flow and the transitions between them.
    """
    match node.kind:
        case Kind.LINEAR:
            if node.is_join:
                return "join"
            return "start" if node.name == graph.start else "linear"
        case Kind.SPLIT:
            return "split-static"
        case Kind.FOREACH:
            return "split-foreach"
        case Kind.PARALLEL:
            return "split-parallel"
        case Kind.SWITCH:
            return "split-switch"
        case Kind.END:
            return "end"
        case _:
            assert_never(node.kind)


def structure(graph: Graph) -> list[Any]:
    """Return the steps in order, what lies between a split and its join as a list of branches, and
    the ways of a switch up to the end of what is around it. Where ways meet again, their lists
    share what follows.

    Args:
        graph: The steps of the flow and the transitions between them.
    """
    blocks: dict[tuple[str, str], list[Any]] = {}

    def block(step: str, end: str) -> list[Any]:
        if (step, end) in blocks:
            return blocks[step, end]
        found = blocks[step, end] = []
        passed = {end}  # a graph from elsewhere may lead back
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
