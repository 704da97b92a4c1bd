"""self.next() while the step runs: what was called must be what the source says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from aflow.errors import InvalidTransition
from aflow.flow.graph import Kind, Node
from aflow.flow.names import shown

if TYPE_CHECKING:
    from aflow.flow.spec import FlowSpec


class NextCall(NamedTuple):
    """Where a step went. `steps` are those that follow: for a switch the one that was chosen."""

    steps: tuple[str, ...]
    foreach: str | None = None
    num_parallel: int | None = None
    condition: str | None = None


def follow(
    flow: FlowSpec,
    node: Node,
    steps: tuple[Any, ...],
    foreach: str | None,
    num_parallel: int | None,
    condition: str | None,
) -> NextCall:
    """The transition that a call of self.next() asks for; raises InvalidTransition if it is not
    the one of the graph, or the value of a switch is none of its cases."""
    if node.kind is Kind.SWITCH:
        return _choose(flow, node, steps, condition)
    names = tuple([getattr(step, "__name__", None) for step in steps])
    if (
        names != node.next
        or foreach != node.foreach
        or condition is not None
        or (num_parallel is None) is (node.kind is Kind.PARALLEL)
    ):
        raise _disagreement(node, steps)
    if num_parallel is not None:
        _check_gang(node, num_parallel)
    return NextCall(names, foreach, num_parallel)


def _choose(flow: FlowSpec, node: Node, steps: tuple[Any, ...], condition: str | None) -> NextCall:
    cases = steps[0] if len(steps) == 1 else None
    if not isinstance(cases, dict) or condition is None or condition != node.condition:
        raise _disagreement(node, steps)
    names = tuple((str(case), getattr(step, "__name__", "")) for case, step in cases.items())
    if names != node.cases:
        raise _disagreement(node, steps)
    value = getattr(flow, condition)
    try:
        chosen = cases[value]
    except (KeyError, TypeError):  # TypeError: a list, say, cannot be looked up
        allowed = ", ".join(repr(case) for case in cases)
        raise InvalidTransition(
            f"Step {node.name!r} is a switch over self.{condition}, whose value {shown(value)} is "
            f"none of its cases: {allowed}."
        ) from None
    return NextCall((chosen.__name__,), condition=condition)


def _check_gang(node: Node, num_parallel: object) -> None:
    if type(num_parallel) is not int or num_parallel < 1:
        raise InvalidTransition(
            f"Step {node.name!r} has num_parallel={shown(num_parallel)}: it must be a whole number "
            "above 0."
        )


def _disagreement(node: Node, steps: tuple[Any, ...]) -> InvalidTransition:
    for step in steps:
        if not callable(step) and not isinstance(step, dict):
            return InvalidTransition(
                f"Step {node.name!r} gives {shown(step)} to self.next(), which is no step. If an "
                "artifact has the name of a step, rename it."
            )
    if node.kind is Kind.END:
        return InvalidTransition(
            f"Step {node.name!r} is the end of the flow and cannot call self.next()."
        )
    return InvalidTransition(
        f"Step {node.name!r} called self.next() in another way than its source says "
        f"({node.kind.value} to {', '.join(node.next) or 'nothing'}): the graph is read from the "
        "source, so write the call out there."
    )
