"""Determine the task of a state machine's job, its inputs and its next attempt: pure functions of
the graph, the place and the earlier attempts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING

from aflow._core.records import NamedTuple
from aflow.errors import InvalidInput
from aflow.flow.graph import Kind, reachable
from aflow.scheduler.messages import FromBranches, FromForeach, FromTask, Inputs, NoInputs
from aflow.scheduler.retry import MAX_FALLBACKS, MAX_LOSSES, StepPolicy
from aflow.scheduler.states import AttemptState

if TYPE_CHECKING:
    from aflow.flow.graph import Graph, Node
    from aflow.metadata.base import AttemptRecord

# The place of a task in a state machine, and the task number that is derived from it.
#
# A state machine has no coordinator that could assign task numbers. So the number of a task is a
# function of its step and place: a later attempt, or a join after it, computes the same number.
#
# A place identifies the enclosing foreach items: one level for the flow itself and one for each
# enclosing foreach, outermost first, joined by dots. A level is the index of the item (0 for the
# flow itself) and, in a loop, the number of completed iterations: `0`, `0.3`, `0_2.3.11_1`.
#
# The numbers of the tasks of an item increase, because a join takes the task with the highest
# number as the last one. They are below 10**18, the limit of task numbers in pathspecs.


ROOT = "0"
_LEVEL_BITS = 44  # for all levels of a place together
_ORDER_BITS = 12  # for the position of the step, plus the iterations of a loop times the steps
_HASHED = 7  # the kind of a number with a digest of the place, because the place needs more bits


class Level(NamedTuple):
    """One level of a place: the index of the item, and the number of completed loop iterations."""

    index: int  # type: ignore[assignment]
    rounds: int = 0

    def __str__(self) -> str:
        return f"{self.index}_{self.rounds}" if self.rounds else str(self.index)


def parse(place: str) -> tuple[Level, ...]:
    """Return the levels of a place.

    Args:
        place: The place of a task, for example `0.3`.

    Raises:
        InvalidInput: If the place is malformed.
    """
    try:
        levels = tuple(Level(*map(int, each.split("_"))) for each in place.split("."))
    except (TypeError, ValueError):
        raise InvalidInput(f"{place!r} is not a place in a state machine.") from None
    if any(part < 0 for level in levels for part in level):
        raise InvalidInput(f"{place!r} is not a place in a state machine.")
    return levels


def format_place(levels: Sequence[Level]) -> str:
    """Return the place with these levels.

    Args:
        levels: The level of the flow, then those of the enclosing foreachs, outermost first.
    """
    return ".".join(map(str, levels))


def rounds_added(place: str, more: int) -> str:
    """Return the place with a number added to the loop iterations of its innermost level.

    Args:
        place: The place of a task.
        more: The number of iterations to add; may be negative.
    """
    *outer, last = parse(place)
    return format_place([*outer, last._replace(rounds=last.rounds + more)])


def around(place: str) -> str:
    """Return the place of the task that opened the innermost foreach.

    Args:
        place: The place of a task inside a foreach.
    """
    return format_place(parse(place)[:-1])


def ordered(graph: Graph) -> dict[str, int]:
    """Return the position of each step in topological order, from 1; back edges of loops are
    ignored.

    Args:
        graph: The steps of the flow and the transitions between them.
    """
    found: dict[str, None] = {}
    on_the_way = {graph.start}
    todo = [(graph.start, iter(graph[graph.start].next))]
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
    """Return the names of the switches that are part of a loop.

    Args:
        graph: The steps of the flow and the transitions between them.
    """
    return frozenset(
        name
        for name, node in graph.nodes.items()
        if node.kind is Kind.SWITCH
        and any(name in reachable(graph.nodes, each) for each in node.next)
    )


def number_of(order: Mapping[str, int], step: str, place: str) -> int:
    """Return the number of a task.

    Args:
        order: The positions of the steps, from `ordered`.
        step: The name of the step.
        place: The place of the task.

    Raises:
        InvalidInput: If a loop inside a foreach has too many iterations for the bits of a number.
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
    """Return a digest of a place whose levels need too many bits. It has 44 bits: of 3,000 runs
    with a hundred thousand tasks of a step, one has a collision."""
    text = format_place([*levels[:-1], Level(levels[-1].index)])
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) >> (64 - _LEVEL_BITS)


class TaskReference(NamedTuple):
    """A task: its number, its inputs, and the innermost foreach: the task that opened it, the index
    of the item, and whether the task is the first one of the item."""

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
            place: The place of the task.
        """
        return number_of(self._order, step, place)

    def loops(self, step: str) -> bool:
        """Return whether a step is a switch that is part of a loop.

        Args:
            step: The name of a step.
        """
        return step in self._looping

    def after(self, step: str, place: str) -> str:
        """Return the place of the tasks after a switch; in a loop, one iteration is added.

        Args:
            step: The name of a switch.
            place: The place of the switch's task.
        """
        return rounds_added(place, 1) if step in self._looping else place

    def before(self, step: str, place: str) -> int:
        """Return the number of the previous task, in the same scope.

        Args:
            step: The name of the previous step.
            place: The place of the present task.
        """
        return self.of(step, rounds_added(place, -1) if step in self._looping else place)

    def reference(
        self, step: str, place: str, came_from: str, branches: str | None
    ) -> TaskReference:
        """Return the task of the step at a place.

        Args:
            step: The name of the step.
            place: The place of the task.
            came_from: The name of the previous step, from the variables of the job.
            branches: The last step and place of each branch as JSON, from the variables of the job;
                None if the step does not join branches.

        Raises:
            InvalidInput: If the deployed version of the flow has no such step, or a variable is
                malformed.
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
        """Return the step that opens the innermost foreach around a step; None outside of one."""
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
    """Return the last step and the place of each branch."""
    try:
        ends = json.loads(branches)
        return list(zip(ends["step"], ends["place"], strict=True))
    except (ValueError, KeyError, TypeError):
        raise InvalidInput(
            f"These are not branches of a state machine: {branches[:200]!r}."
        ) from None


# The next attempt of a task: a pure function of the earlier attempts.


_FAILED = (AttemptState.FAILED, AttemptState.TIMED_OUT)
_LOST = (AttemptState.LOST, AttemptState.RUNNING)  # an attempt without a recorded end was lost


class NextAttempt(NamedTuple):
    """The next attempt: its number, its earliest start, whether it is the last one, and whether it
    does not run the step because @catch settles the task."""

    attempt: int
    not_before: float
    final: bool
    fallback: bool


def next_attempt(policy: StepPolicy, before: Sequence[AttemptRecord]) -> NextAttempt | None:
    """Return the next attempt of a task; None if it has no attempts left. Interrupted attempts do
    not count.

    Args:
        policy: The retry policy of the step.
        before: The recorded attempts of the task, oldest first.
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
