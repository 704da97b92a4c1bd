"""What the links of a flow amount to: which splits are open where, and which join closes which.

The ways through a flow are followed once, in topological order, so that all is linear in steps
and edges. What is found is the best that can be said of a graph with faults; `flow/lint.py` uses
the same ways to say what the faults are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from aflow.flow.graph import Kind, Node

OPENERS = frozenset({Kind.SPLIT, Kind.FOREACH, Kind.PARALLEL})

# A split that is open on a way, and the branch of it that the way took.
Frame = tuple[str, str]
Frames = tuple[Frame, ...]
Way = tuple[str, Frames]  # the step it comes from ("" for the first), and what is open on it


def reachable(nodes: Mapping[str, Node], start: str) -> set[str]:
    """The steps that can be reached from `start`, itself among them."""
    found = {start} & nodes.keys()
    todo = list(found)
    while todo:
        for name in nodes[todo.pop()].next:
            if name in nodes and name not in found:
                found.add(name)
                todo.append(name)
    return found


def ways_to(nodes: Mapping[str, Node], start: str) -> dict[str, list[Way]]:
    """For each step the ways that lead to it, in topological order from `start`.

    A step's own link to itself is no way. Steps on a cycle, and behind one, are left out.
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
    """The steps of a cycle that can be reached from `start`; empty where there is none. A step's
    own link to itself is no cycle."""
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
    """The splits that are open around a step; a join has closed its own."""
    frames = ways[0][1]
    return frames[:-1] if node.is_join else frames


def _frames_after(node: Node, ways: list[Way], target: str) -> Frames:
    frames = open_in(node, ways)
    return (*frames, (node.name, target)) if node.kind in OPENERS else frames


def _targets(nodes: Mapping[str, Node], name: str) -> list[str]:
    return [each for each in nodes[name].next if each in nodes and each != name]


def connect(nodes: Mapping[str, Node], start: str) -> dict[str, Node]:
    """The nodes with `previous`, `splits` and `join` filled in."""
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
