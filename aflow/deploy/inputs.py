"""Which task a job runs, and which tasks it reads: pure functions of the graph and the place."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from aflow.deploy.places import around, looping, number_of, ordered, parse, rounds_added
from aflow.errors import InvalidInput
from aflow.flow.graph import Kind
from aflow.scheduler.messages import FromBranches, FromForeach, FromTask, Inputs, NoInputs

if TYPE_CHECKING:
    from aflow.flow.graph import Graph, Node


class Standing(NamedTuple):
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
        """The number of a task."""
        return number_of(self._order, step, place)

    def loops(self, step: str) -> bool:
        """Whether the flow may come back to the switch."""
        return step in self._looping

    def after(self, step: str, place: str) -> str:
        """The place of what follows a switch: a loop goes round once more there."""
        return rounds_added(place, 1) if step in self._looping else place

    def before(self, step: str, place: str) -> int:
        """The number of the task of a step that leads to this place, in the same scope."""
        return self.of(step, rounds_added(place, -1) if step in self._looping else place)

    def standing(self, step: str, place: str, came_from: str, branches: str | None) -> Standing:
        """The task of the step at the place. `branches` says where each branch of a join ended, as
        the state machine puts it. Raises InvalidInput."""
        if step not in self._graph.nodes:
            raise InvalidInput(f"Flow {self._graph.flow} has no step {step!r} in this version.")
        node = self._graph[step]
        opener = self._opener(node)
        opens = opener is not None and came_from == opener
        split = None if opener is None else self.of(opener, around(place))
        index = None if opener is None else parse(place)[-1].index
        inputs = self._inputs(node, place, came_from, branches, split if opens else None)
        return Standing(self.of(step, place), inputs, split, index, opens)

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
            raise InvalidInput(f"Step {node.name} was not told which step came before it.")
        if node.is_join:
            return FromForeach(self.of(came_from, place), node.previous, 0)
        return FromTask(self.before(came_from, place))


def _pairs(branches: str) -> list[tuple[str, str]]:
    """Last step and place of each branch."""
    try:
        said = json.loads(branches)
        return list(zip(said["step"], said["place"], strict=True))
    except (ValueError, KeyError, TypeError):
        raise InvalidInput(
            f"These are no branches of a state machine: {branches[:200]!r}."
        ) from None
