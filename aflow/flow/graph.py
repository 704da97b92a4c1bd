"""The graph of a flow: nodes and what leads where, as plain data.

Read from the source of the steps by `flow/source.py`, checked by `flow/lint.py`, followed by the
scheduler. `as_dict` and `from_dict` are the form in which a run stores the graph it began with.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


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
        """The steps by their longest distance from the start, in the order in which they are
        written; a loop does not count, and steps that nothing leads to are left out."""
        distance: dict[str, int] = {}
        todo = [(self.start, 0)]
        while todo:
            name, steps = todo.pop()
            if steps <= distance.get(name, -1) or steps > len(self.nodes):
                continue
            distance[name] = steps
            todo += [(after, steps + 1) for after in self.nodes[name].next if after != name]
        levels: list[list[str]] = [[] for _ in range(max(distance.values()) + 1)]
        for name in self.nodes:
            if name in distance:
                levels[distance[name]].append(name)
        return [level for level in levels if level]

    def has_many_tasks(self, step: str) -> bool:
        """Whether the step has a task for each item of a foreach, or of a gang."""
        kinds = (self.nodes[split].kind for split in self.nodes[step].splits)
        return any(kind in (Kind.FOREACH, Kind.PARALLEL) for kind in kinds)

    def as_dict(self) -> dict[str, Any]:
        """The graph as values that JSON and msgpack can hold."""
        return {
            "flow": self.flow,
            "start": self.start,
            "end": self.end,
            "doc": self.doc,
            "nodes": [asdict(node) for node in self.nodes.values()],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Graph:
        """The graph that `as_dict` gave; unknown keys of a later version are ignored."""
        nodes = {}
        for raw in data["nodes"]:
            known = {key: value for key, value in raw.items() if key in Node.__slots__}
            known["kind"] = Kind(known["kind"])
            for key in ("next", "previous", "splits"):
                known[key] = tuple(known[key])
            known["cases"] = tuple((case, step) for case, step in known["cases"])
            nodes[known["name"]] = Node(**known)
        return cls(data["flow"], data["start"], data["end"], nodes, data.get("doc", ""))
