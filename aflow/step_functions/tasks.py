"""Which task a job of a state machine is of, what it reads, and whether another attempt at it
follows: pure functions of the graph, the place and the attempts before."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING

from aflow._core.records import NamedTuple
from aflow.errors import InvalidInput
from aflow.flow.graph import Kind
from aflow.scheduler.messages import FromBranches, FromForeach, FromTask, Inputs, NoInputs
from aflow.scheduler.retry import MAX_FALLBACKS, MAX_LOSSES, StepPolicy
from aflow.scheduler.states import AttemptState

if TYPE_CHECKING:
    from aflow.flow.graph import Graph, Node
    from aflow.metadata.base import AttemptRecord

# Where a task of a state machine stands, and the number that it has for that.
#
# There is nobody who counts tasks while a state machine runs. So a task's number follows from its
# step and its place alone: another attempt at it, or the join after it, finds it without asking.
#
# A place is the way through the open foreachs: one level for the flow itself and one for each
# foreach, from the outside in, joined by dots. A level is an index (0 for the flow itself) and, in
# a loop, how often the loop has gone round there: `0`, `0.3`, `0_2.3.11_1`.
#
# Numbers grow along the way of an item, since a join takes the task of the highest number for the
# last one; they stay below 10**18, the largest that a pathspec may name.


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
    """Return the levels of a place.

    Args:
        place: The place of the task: the indices of the foreachs around it.

    Raises:
        InvalidInput: For a text that is none.
    """
    try:
        levels = tuple(Level(*map(int, each.split("_"))) for each in place.split("."))
    except (TypeError, ValueError):
        raise InvalidInput(f"{place!r} is not a place in a state machine.") from None
    if any(part < 0 for level in levels for part in level):
        raise InvalidInput(f"{place!r} is not a place in a state machine.")
    return levels


def format_place(levels: Sequence[Level]) -> str:
    """Return the place of these levels.

    Args:
        levels: The foreachs around the task, the outermost first.
    """
    return ".".join(map(str, levels))


def rounds_added(place: str, more: int) -> str:
    """Return the place after the loop has gone round this many times more (or less).

    Args:
        place: The place of the task: the indices of the foreachs around it.
        more: How many more rounds there are.
    """
    *outer, last = parse(place)
    return format_place([*outer, last._replace(rounds=last.rounds + more)])


def around(place: str) -> str:
    """Return the place of the foreach that the place is in.

    Args:
        place: The place of the task: the indices of the foreachs around it.
    """
    return format_place(parse(place)[:-1])


def ordered(graph: Graph) -> dict[str, int]:
    """Return the steps from 1 on, each after those that lead to it, but for loops.

    Args:
        graph: The steps of the flow and the transitions between them.
    """
    found: dict[str, None] = {}
    on_the_way: set[str] = set()
    todo = [(graph.start, iter(graph[graph.start].next))]
    on_the_way.add(graph.start)
    while todo:
        step, rest = todo[-1]
        next_step = next((each for each in rest if each not in on_the_way), None)
        if next_step is None:
            todo.pop()
            found[step] = None
        else:
            on_the_way.add(next_step)
            todo.append((next_step, iter(graph[next_step].next)))
    return {step: number for number, step in enumerate(reversed(found), 1)}


def looping(graph: Graph) -> frozenset[str]:
    """Return the switches from which the flow may come back to them.

    Args:
        graph: The steps of the flow and the transitions between them.
    """
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
    """Return the number of the task; `order` is `ordered` of its graph.

    Args:
        order: The position of each step in the graph, which makes numbers unique within a level.
        step: The name of the step.
        place: The place of the task: the indices of the foreachs around it.

    Raises:
        InvalidInput: A loop inside of a foreach has gone round too often for the number's bits.
    """
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


class TaskReference(NamedTuple):
    """A task: its number, what it reads, and the innermost foreach around it: the task that opened
    it, the item, and whether the task is the first one of the item."""

    task: int
    inputs: Inputs
    split: int | None
    index: int | None  # type: ignore[assignment]
    opens_index: bool


class Numbers:
    """The numbers of the tasks of one graph."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._order = ordered(graph)
        self._looping = looping(graph)

    def of(self, step: str, place: str) -> int:
        """Return the number of a task.

        Args:
            step: The name of the step.
            place: The place of the task: the indices of the foreachs around it.
        """
        return number_of(self._order, step, place)

    def loops(self, step: str) -> bool:
        """Return whether a switch is in a loop, so that the flow may come back to it.

        Args:
            step: The name of a switch.
        """
        return step in self._looping

    def after(self, step: str, place: str) -> str:
        """Return the place of the tasks that follow a switch; in a loop one more round is counted.

        Args:
            step: The name of a switch; the place stays the same unless it is in a loop.
            place: The place of the task: the indices of the foreachs around it.
        """
        return rounds_added(place, 1) if step in self._looping else place

    def before(self, step: str, place: str) -> int:
        """Return the number of the task of a step that leads to this place, in the same scope.

        Args:
            step: The name of the step that leads here.
            place: The place of the task: the indices of the foreachs around it.
        """
        return self.of(step, rounds_added(place, -1) if step in self._looping else place)

    def reference(
        self, step: str, place: str, came_from: str, branches: str | None
    ) -> TaskReference:
        """Return the task of the step at a place.

        Args:
            step: The name of the step that the job is for.
            place: The place of the task: the indices of the foreachs around it.
            came_from: The name of the step before, as the state machine passes it on.
            branches: Where each branch of the join has ended, as the state machine passes it on;
                None for a step that is not a join.

        Raises:
            InvalidInput: The flow has no such step in this version, or the branches are malformed.
        """
        if step not in self._graph.nodes:
            raise InvalidInput(f"Flow {self._graph.flow} has no step {step!r} in this version.")
        node = self._graph[step]
        opener = self._opener(node)
        opens = opener is not None and came_from == opener
        split = None if opener is None else self.of(opener, around(place))
        index = None if opener is None else parse(place)[-1].index
        inputs = self._inputs(node, place, came_from, branches, split if opens else None)
        return TaskReference(self.of(step, place), inputs, split, index, opens)

    def _opener(self, node: Node) -> str | None:
        """The innermost foreach around a step."""
        foreachs = [each for each in node.splits if self._graph[each].kind is Kind.FOREACH]
        return foreachs[-1] if foreachs else None

    def _inputs(
        self, node: Node, place: str, came_from: str, branches: str | None, opener: int | None
    ) -> Inputs:
        if node.name == self._graph.start and came_from != node.name:
            return NoInputs()
        if branches is not None:
            return FromBranches(tuple(self.before(*each) for each in _pairs(branches)))
        if opener is not None:
            return FromTask(opener)
        if came_from not in self._graph.nodes:
            raise InvalidInput(f"Step {node.name} does not know which step came before it.")
        if node.is_join:
            return FromForeach(self.of(came_from, place), node.previous, 0)
        return FromTask(self.before(came_from, place))


def _pairs(branches: str) -> list[tuple[str, str]]:
    """Last step and place of each branch."""
    try:
        ends = json.loads(branches)
        return list(zip(ends["step"], ends["place"], strict=True))
    except (ValueError, KeyError, TypeError):
        raise InvalidInput(
            f"These are not branches of a state machine: {branches[:200]!r}."
        ) from None


# What the next attempt at a task is, after those before it: a pure function.


_FAILED = (AttemptState.FAILED, AttemptState.TIMED_OUT)
_LOST = (AttemptState.LOST, AttemptState.RUNNING)  # one that never reported its end was lost


class NextAttempt(NamedTuple):
    """The next attempt: its number, when it may begin, whether it is the last, and whether the
    step is not to be run, since @catch settles it."""

    attempt: int
    not_before: float
    final: bool
    fallback: bool


def next_attempt(policy: StepPolicy, before: Sequence[AttemptRecord]) -> NextAttempt | None:
    """Return what comes after these attempts, oldest first; None where the task has had all it may
    have. What was interrupted costs nothing.

    Args:
        policy: The retry policy of the step.
        before: The attempts of the task that were recorded before.
    """
    number = before[-1].attempt + 1 if before else 0
    failures = sum(each.state in _FAILED for each in before)
    losses = sum(each.state in _LOST for each in before)
    if failures <= policy.retries and losses < MAX_LOSSES:
        failed = [each for each in before if each.state in _FAILED]
        last = failed[-1].finished_at if failed else None
        not_before = 0.0 if last is None else last + policy.wait_before(failures)
        return NextAttempt(number, not_before, final=failures == policy.retries, fallback=False)
    if policy.catches and failures + losses <= policy.retries + MAX_LOSSES + MAX_FALLBACKS:
        return NextAttempt(number, 0.0, final=True, fallback=True)
    return None
