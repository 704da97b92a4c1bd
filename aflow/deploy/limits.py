"""What Step Functions and AWS Batch can hold, against what a flow may ask of them: pure functions
of the graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aflow.errors import InvalidInput
from aflow.flow.graph import Kind

if TYPE_CHECKING:
    from aflow.flow.graph import Graph, Node

EVENTS = 25_000  # of an execution
DISTRIBUTED_ITEMS = 100_000  # of one foreach, with a distributed map
LONGEST_VARIABLE = 6000  # bytes of one variable of a job, which has 8 KB for all of them
_OTHER_EVENTS = 1000  # of the steps around a foreach
_OF_JOB = 6  # events: entered, scheduled, started, submitted, succeeded, exited
_OF_READING = 5
_OF_PARALLEL = 4
_OF_ITEM = 2  # that it begins, and that it has ended
_PLACE = 24  # bytes of a place and what is around a step's name


def items(graph: Graph, step: str, *, distributed: bool) -> int:
    """How many items a foreach may have. Each takes events of the execution, unless it is one of
    its own; a foreach inside of another one is counted as if it had one item."""
    if distributed:
        return DISTRIBUTED_ITEMS
    inside = [each for each in graph.nodes.values() if step in each.splits]
    return (EVENTS - _OTHER_EVENTS) // (_OF_ITEM + sum(map(_events, inside)))


def _events(node: Node) -> int:
    if node.kind is Kind.SPLIT:
        return _OF_JOB + _OF_PARALLEL
    if node.kind is Kind.FOREACH:
        return _OF_JOB + _OF_READING + _OF_PARALLEL
    if node.kind is Kind.SWITCH:
        return _OF_JOB + _OF_READING + 2
    return _OF_JOB


def too_many_items(graph: Graph, step: str, count: int | None, *, distributed: bool) -> str | None:
    """A sentence, if a foreach has more items than there may be."""
    limit = items(graph, step, distributed=distributed)
    if graph[step].kind is not Kind.FOREACH or count is None or count <= limit:
        return None
    if distributed:
        return (
            f"Foreach in step {step} has {count} items, and on Step Functions it may have {limit}: "
            "let a task do several of them."
        )
    return (
        f"Foreach in step {step} has {count} items, and one execution of Step Functions has room "
        f"for the events of {limit}: deploy the flow with --use-distributed-map, or let a task do "
        "several of them."
    )


def check_branches(graph: Graph, node: Node) -> None:
    """Nothing, if the job of the join may be told where all branches have ended; raises
    InvalidInput."""
    longest = max(len(each.name) for each in graph.nodes.values() if node.join in each.next)
    most = LONGEST_VARIABLE // (longest + _PLACE)
    if len(node.next) > most:
        raise InvalidInput(
            f"Step {node.name} has {len(node.next)} branches, and the job that joins them can be "
            f"told of {most}: use a foreach, or split in two levels."
        )
