"""Where a task of a state machine stands, and the number that it has for that.

There is nobody who counts tasks while a state machine runs. So a task's number follows from its
step and its place alone: another attempt at it, or the join after it, finds it without asking.

A place is the way through the open foreachs: one level for the flow itself and one for each
foreach, from the outside in, joined by dots. A level is an index (0 for the flow itself) and, in
a loop, how often the loop has gone round there: `0`, `0.3`, `0_2.3.11_1`.

Numbers grow along the way of an item, since a join takes the task of the highest number for the
last one; they stay below 10**18, the largest that a pathspec may name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

from aflow.errors import InvalidInput
from aflow.flow.graph import Kind

if TYPE_CHECKING:
    from aflow.flow.graph import Graph

ROOT = "0"
_LEVEL_BITS = 44  # for all levels of a place together
_ORDER_BITS = 12  # for steps, times the rounds of a loop
_HASHED = 7  # the kind of a number that is a digest, since the place has too many parts


class Level(NamedTuple):
    """One level of a place: which item, and how often a loop has gone round."""

    index: int  # type: ignore[assignment]
    rounds: int = 0

    def __str__(self) -> str:
        return f"{self.index}_{self.rounds}" if self.rounds else str(self.index)


def parse(place: str) -> tuple[Level, ...]:
    """The levels of a place; raises InvalidInput for a text that is none."""
    try:
        levels = tuple(Level(*map(int, each.split("_"))) for each in place.split("."))
    except (TypeError, ValueError):
        raise InvalidInput(f"{place!r} is no place in a state machine.") from None
    if any(part < 0 for level in levels for part in level):
        raise InvalidInput(f"{place!r} is no place in a state machine.")
    return levels


def format_place(levels: Sequence[Level]) -> str:
    """The place of these levels."""
    return ".".join(map(str, levels))


def rounds_added(place: str, more: int) -> str:
    """The same place, when the loop has gone round so many times more (or less)."""
    *outer, last = parse(place)
    return format_place([*outer, last._replace(rounds=last.rounds + more)])


def around(place: str) -> str:
    """The place of the foreach that the place is in."""
    return format_place(parse(place)[:-1])


def ordered(graph: Graph) -> dict[str, int]:
    """The steps from 1 on, each after those that lead to it, but for loops."""
    found: dict[str, None] = {}
    on_the_way: set[str] = set()
    todo = [(graph.start, iter(graph[graph.start].next))]
    on_the_way.add(graph.start)
    while todo:
        step, rest = todo[-1]
        following = next((each for each in rest if each not in on_the_way), None)
        if following is None:
            todo.pop()
            found[step] = None
        else:
            on_the_way.add(following)
            todo.append((following, iter(graph[following].next)))
    return {step: number for number, step in enumerate(reversed(found), 1)}


def looping(graph: Graph) -> frozenset[str]:
    """The switches from which the flow may come back to them."""
    return frozenset(
        name
        for name, node in graph.nodes.items()
        if node.kind is Kind.SWITCH and name in _reached(graph, node.next)
    )


def _reached(graph: Graph, steps: Sequence[str]) -> set[str]:
    reached: set[str] = set()
    todo = list(steps)
    while todo:
        step = todo.pop()
        if step not in reached:
            reached.add(step)
            todo += graph[step].next
    return reached


def number_of(order: Mapping[str, int], step: str, place: str) -> int:
    """The number of the task; `order` is `ordered` of its graph. Raises InvalidInput where there
    are too many rounds of a loop for numbers that grow."""
    levels = parse(place)
    turn = levels[-1].rounds * len(order) + order[step]
    depth = len(levels) - 1
    if depth == 0:
        return turn
    if turn >= 1 << _ORDER_BITS:
        raise InvalidInput(
            f"Step {step} has gone round {levels[-1].rounds} times inside of a foreach: a flow of "
            f"{len(order)} steps on Step Functions cannot do so more than "
            f"{(1 << _ORDER_BITS) // len(order) - 1} times."
        )
    bits = _LEVEL_BITS // depth
    exact = (
        depth < _HASHED
        and not any(level.rounds for level in levels[:-1])
        and all(level.index < 1 << bits for level in levels[1:])
    )
    kind, where = (depth, 0) if exact else (_HASHED, _digest(levels))
    if exact:
        for level in levels[1:]:
            where = where << bits | level.index
    return (kind << _ORDER_BITS | turn) << _LEVEL_BITS | where


def _digest(levels: Sequence[Level]) -> int:
    """What stands for a place whose parts are too large: 44 bits, so that two of a hundred
    thousand tasks of a step meet in one of 3,000 runs."""
    text = format_place([*levels[:-1], Level(levels[-1].index)])
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) >> (64 - _LEVEL_BITS)
