"""Graphs for tests: written with one line per step, or generated at random."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from aflow.flow.graph import Graph, Kind, Node
from aflow.scheduler.retry import StepPolicy

FAN_OUT = (Kind.FOREACH, Kind.PARALLEL)
OPENERS = (Kind.SPLIT, *FAN_OUT)


def linear(name: str, follows: str) -> Node:
    return Node(name, Kind.LINEAR, next=(follows,))


def split(name: str, *branches: str, join: str | None) -> Node:
    return Node(name, Kind.SPLIT, next=branches, join=join)


def foreach(name: str, body: str, join: str | None, kind: Kind = Kind.FOREACH) -> Node:
    items = "xs" if kind is Kind.FOREACH else None
    return Node(name, kind, next=(body,), join=join, foreach=items)


def switch(name: str, *cases: str) -> Node:
    return Node(name, Kind.SWITCH, next=cases, condition="c")


def end(name: str = "end") -> Node:
    return Node(name, Kind.END)


def graph(*nodes: Node, flow: str = "Flow") -> Graph:
    """Return the graph of these nodes; the first one is the start. Edges and joins follow from
    `next` and `join`."""
    joins = {node.join for node in nodes}
    whole = [
        replace(
            node,
            is_join=node.name in joins,
            previous=tuple(each.name for each in nodes if node.name in each.next),
        )
        for node in nodes
    ]
    last = next((node.name for node in nodes if node.kind is Kind.END), "")
    return Graph(flow, nodes[0].name, last, {node.name: node for node in whole})


WIDE = graph(
    foreach("start", "body", join="join"), linear("body", "join"), linear("join", "end"), end()
)

NESTED = graph(
    foreach("start", "outer", join="last"),
    foreach("outer", "inner", join="middle"),
    linear("inner", "middle"),
    linear("middle", "last"),
    linear("last", "end"),
    end(),
)

BRANCHES = graph(
    split("start", "left", "right", join="join"),
    linear("left", "join"),
    linear("right", "join"),
    linear("join", "end"),
    end(),
)

LINE = graph(linear("start", "middle"), linear("middle", "end"), end())


class _Builder:
    """Creates nodes from chains of segments, from the end to the start."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self.draw = draw
        self.nodes: dict[str, Node] = {"end": end()}

    def chain(self, follow: str, *, depth: int, least: int, top: bool = False) -> str:
        """Add up to three segments that end at `follow`, and return the name of the first step."""
        entry = follow
        length = self.draw(st.integers(least, 3 if depth else 4))
        for position in range(length):
            # No other chain leads to the next step, so it may be the join as well.
            own = position > 0 or top
            entry = self.segment(entry, depth, own)
        return entry

    def segment(self, follow: str, depth: int, own: bool) -> str:
        kinds = ["step", "switch", "loop", "split", "foreach", "foreach", "parallel"]
        kind = self.draw(st.sampled_from(kinds if depth < 3 else ["step", "loop"]))
        if kind == "step":
            return self.add(lambda name: linear(name, follow))
        if kind == "loop":
            return self.add(lambda name: switch(name, name, follow))
        if kind == "switch":
            first = self.chain(follow, depth=depth + 1, least=1)
            second = self.chain(follow, depth=depth + 1, least=0)
            return self.add(lambda name: switch(name, first, second))
        join = self.join(follow, own)
        if kind == "split":
            width = self.draw(st.integers(2, 3))
            bodies = [self.chain(join, depth=depth + 1, least=1) for _ in range(width)]
            return self.add(lambda name: split(name, *bodies, join=join))
        body = self.chain(join, depth=depth + 1, least=1)
        return self.add(lambda name: foreach(name, body, join, Kind(kind)))

    def join(self, follow: str, own: bool) -> str:
        """Return the join of a split: a new step, or the step that follows."""
        loops = follow in self.nodes[follow].next
        if own and not loops and self.draw(st.booleans()):
            return follow
        return self.add(lambda name: linear(name, follow))

    def add(self, node: Callable[[str], Node]) -> str:
        name = f"s{len(self.nodes)}"
        self.nodes[name] = node(name)
        return name


@st.composite
def graphs(draw: Callable[[st.SearchStrategy[Any]], Any]) -> Graph:
    """Generate any valid flow of up to some dozens of steps."""
    builder = _Builder(draw)
    start = builder.chain("end", depth=0, least=0, top=True)
    nodes = builder.nodes
    return graph(nodes.pop(start), *nodes.values())


def policies(flow: Graph) -> st.SearchStrategy[Mapping[str, StepPolicy]]:
    """Generate policies for the steps of a graph, with @catch only where it is allowed."""
    return st.fixed_dictionaries(
        {},
        optional={
            name: st.builds(
                StepPolicy,
                retries=st.integers(0, 3),
                wait=st.sampled_from([0.0, 0.0, 1.0, 60.0]),
                catches=st.booleans() if node.kind is Kind.LINEAR else st.just(False),
                max_workers=st.sampled_from([None, None, 1, 2]),
            )
            for name, node in flow.nodes.items()
        },
    )
