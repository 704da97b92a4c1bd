"""The rules that a flow must obey. Each rule is a small function; a flow that passes all can run.

Rules are grouped in stages. A stage is checked only if all earlier stages passed, so that each
error is reported once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from aflow.errors import InvalidFlow
from aflow.flow.decorators.base import step_mark
from aflow.flow.definition import FlowDefinition
from aflow.flow.graph import (
    OPENERS,
    Frames,
    Kind,
    Node,
    Way,
    cycle_from,
    open_in,
    reachable,
    ways_to,
)
from aflow.flow.names import STEP_NAME, did_you_mean
from aflow.flow.parameters import declaration_problems

Rule = Callable[[FlowDefinition], Iterable[InvalidFlow]]


def check(definition: FlowDefinition) -> list[InvalidFlow]:
    """Return the errors of the flow, with file and line; empty if the flow is valid.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
    """
    for stage in STAGES:
        problems = [problem for rule in stage for problem in rule(definition)]
        if problems:
            return problems
    return []


# ------------------------------------------------------------ the steps, each alone


def what_was_read(flow: FlowDefinition) -> Iterable[InvalidFlow]:
    """Return the errors that reading the class found: arguments, reserved names, self.next() calls.

    Args:
        flow: The flow; `read_definition` has collected its `problems`.
    """
    return flow.problems


def has_steps(flow: FlowDefinition) -> Iterator[InvalidFlow]:
    """Yield an error if the flow has no step.

    Args:
        flow: The flow, which may lack steps, a start and an end.
    """
    if not flow.steps:
        yield _of_flow(flow, f"Flow {flow.name} has no steps: put @step on a method.")


def has_start_and_end(flow: FlowDefinition) -> Iterator[InvalidFlow]:
    """Yield an error if the first step is missing, and one if the last step is.

    Args:
        flow: The flow; without any step, only `has_steps` reports an error.
    """
    for word, step in (("start", flow.graph.start), ("end", flow.graph.end)):
        if flow.steps and not step:
            yield _of_flow(
                flow,
                f"Flow {flow.name} has no {word} step: name a step {word!r}, or mark one with "
                f"@step({word}=True).",
            )


def one_start_and_one_end(flow: FlowDefinition) -> Iterator[InvalidFlow]:
    """Yield an error for each step after the first one that is marked as start, or as end.

    Args:
        flow: The flow; a step named `start` or `end` counts as marked if another one is marked.
    """
    for word in ("start", "end"):
        marked = [
            name for name, step in flow.steps.items() if getattr(step_mark(step.function), word)
        ]
        if marked and word in flow.steps and word not in marked:
            marked.append(word)
        for name in marked[1:]:
            yield _of_node(
                flow.graph[name],
                f"Steps {marked[0]!r} and {name!r} both are the {word} of the flow: mark or name "
                "only one of them so.",
            )


def step_names(flow: FlowDefinition) -> Iterator[InvalidFlow]:
    """Yield an error for each step name with invalid characters.

    A name consists of lowercase letters, digits and _, and starts with a letter.

    Args:
        flow: The flow; the names are those of the methods with @step.
    """
    for node in flow.graph.nodes.values():
        if not STEP_NAME.match(node.name):
            yield _of_node(
                node,
                f"{node.name!r} cannot be the name of a step: use small letters, digits and _, "
                "and begin with a letter.",
            )


def known_steps(flow: FlowDefinition) -> Iterator[InvalidFlow]:
    """Yield an error for each transition to something that is not a step.

    Args:
        flow: The flow; its graph may still name steps that do not exist.
    """
    for node in flow.graph.nodes.values():
        for name in node.next:
            if name not in flow.steps:
                yield _of_node(
                    node,
                    f"Step {node.name!r} leads to {name!r}, which is not a step."
                    f"{did_you_mean(name, flow.steps)} Write the step, or put @step on it.",
                )


def catch_on_steps_that_can_go_on(flow: FlowDefinition) -> Iterator[InvalidFlow]:
    """Yield an error for each @catch on a foreach, num_parallel or switch step.

    If such a step fails, its next tasks are not known.

    Args:
        flow: The flow; decorators from `--with` are checked, too.
    """
    for step in flow.steps.values():
        kind = flow.graph[step.name].kind
        if step.decorator("catch") and kind in (Kind.FOREACH, Kind.PARALLEL, Kind.SWITCH):
            yield _of_node(
                flow.graph[step.name],
                f"Step {step.name!r} cannot have @catch: it is a {kind.value}, and when it fails "
                "nothing says which step follows. Put @catch on the step before or after it.",
            )


def caught_exceptions_can_be_kept(flow: FlowDefinition) -> Iterator[InvalidFlow]:
    """Yield an error for each @catch whose `var` is a name that steps must not set.

    Args:
        flow: The flow; decorators from `--with` are checked, too.
    """
    for step in flow.steps.values():
        caught = step.decorator("catch")
        if caught and caught.var in flow.cls._aflow_fixed_in_step | flow.parameters.keys():
            yield _of_node(
                flow.graph[step.name],
                f"Step {step.name!r} cannot have @catch(var={caught.var!r}): a step, a method, a "
                "parameter or a constant of the flow has that name. Use another one.",
            )


def gangs_are_not_limited(flow: FlowDefinition) -> Iterator[InvalidFlow]:
    """Yield an error for each @concurrency on the step of a gang, whose members start together.

    Args:
        flow: The flow; the step of a gang is the one that follows a num_parallel.
    """
    for step in flow.steps.values():
        if step.decorator("concurrency") and any(
            node.kind is Kind.PARALLEL and step.name in node.next
            for node in flow.graph.nodes.values()
        ):
            yield _of_node(
                flow.graph[step.name],
                f"Step {step.name!r} cannot have @concurrency: num_parallel makes it a gang, whose "
                "members all run at once.",
            )


def parameters_are_declared_well(flow: FlowDefinition) -> Iterator[InvalidFlow]:
    """Yield an error for each duplicate parameter name, and each that is an option of `run`.

    Args:
        flow: The flow; names are compared without regard to case, - and _.
    """
    for problem in declaration_problems(flow.parameters):
        yield _of_flow(flow, problem)


# ------------------------------------------------------------ the steps together


def all_steps_are_reached(flow: FlowDefinition) -> Iterator[InvalidFlow]:
    """Yield an error for each step that cannot be reached from the first one.

    Args:
        flow: The flow; it has passed the rules about single steps.
    """
    within = reachable(flow.graph.nodes, flow.graph.start)
    for node in flow.graph.nodes.values():
        if node.name not in within:
            yield _of_node(
                node,
                f"Step {node.name!r} is never reached: lead to it with self.next(self.{node.name}) "
                "in another step, or remove it.",
            )


def no_cycles(flow: FlowDefinition) -> Iterator[InvalidFlow]:
    """Yield an error for a cycle; a switch may have itself as a case.

    Args:
        flow: The flow; only the first cycle found is reported.
    """
    for node in flow.graph.nodes.values():
        if node.name in node.next and (node.kind is not Kind.SWITCH or node.is_join):
            yield _of_node(
                node,
                f"Step {node.name!r} leads to itself: only a switch that is not a join may do "
                "that, as one of its cases.",
            )
    cycle = cycle_from(flow.graph.nodes, flow.graph.start)
    if cycle:
        way = " -> ".join([*cycle, cycle[0]])
        yield _of_node(
            flow.graph[cycle[0]],
            f"The steps {way} lead back to where they began: remove one of the links. A loop is a "
            "switch that leads to itself.",
        )


def switches_have_a_way_out(flow: FlowDefinition) -> Iterator[InvalidFlow]:
    """Yield an error for each switch all of whose cases lead to itself.

    Args:
        flow: The flow; a switch that leads to itself among other cases is a loop, which is allowed.
    """
    for node in flow.graph.nodes.values():
        if node.kind is Kind.SWITCH and set(node.next) == {node.name}:
            yield _of_node(
                node,
                f"All cases of the switch in step {node.name!r} lead to itself: add one that "
                "leads on.",
            )


def no_join_right_after_its_split(flow: FlowDefinition) -> Iterator[InvalidFlow]:
    """Yield an error for each split that is directly followed by a join.

    Args:
        flow: The flow; splits are branches, foreach and num_parallel, not switches.
    """
    for node in flow.graph.nodes.values():
        for name in node.next:
            if node.kind in OPENERS and flow.graph[name].is_join:
                yield _of_node(
                    node,
                    f"Step {node.name!r} splits and leads straight into the join {name!r}: put a "
                    "step between them.",
                )


# ------------------------------------------------------------ splits and joins


def splits_are_closed(flow: FlowDefinition) -> Iterator[InvalidFlow]:
    """Yield an error for the first split whose branches do not all end in one join.

    Args:
        flow: The flow; every step can be reached, and there is no cycle.
    """
    nodes = flow.graph.nodes
    for name, ways in ways_to(nodes, flow.graph.start).items():
        fault = _join_fault(flow, name, ways) if nodes[name].is_join else _step_fault(name, ways)
        if fault is None and nodes[name].kind is Kind.END:
            fault = _end_fault(name, open_in(nodes[name], ways))
        if fault is not None:
            yield _of_node(nodes[name], fault)
            return  # errors of later steps would only be consequences


def _step_fault(name: str, ways: list[Way]) -> str | None:
    """Check that the same splits are open on all ways to a step that is not a join."""
    for source, frames in ways[1:]:
        if frames == ways[0][1]:
            continue
        if [split for split, _ in frames] == [split for split, _ in ways[0][1]]:
            return (
                f"Branches of the split in step {_differing(frames, ways[0][1])!r} meet in step "
                f"{name!r}, which is not a join: give it the arguments (self, inputs)."
            )
        return (
            f"Step {name!r} is reached from {ways[0][0]!r} {_inside(ways[0][1])} and from "
            f"{source!r} {_inside(frames)}: close the splits with a join before the ways meet."
        )
    return None


def _join_fault(flow: FlowDefinition, name: str, ways: list[Way]) -> str | None:
    """Check that the ways to a join are exactly the branches of one split."""
    first = ways[0][1]
    if not first:
        return (
            f"Step {name!r} takes inputs as a join does, but no split is open where it stands: "
            f"write it as def {name}(self), or add a split before it."
        )
    for source, frames in ways[1:]:
        if not frames or frames[:-1] != first[:-1] or frames[-1][0] != first[-1][0]:
            return (
                f"The join {name!r} is reached from {ways[0][0]!r} {_inside(first)} and from "
                f"{source!r} {_inside(frames)}: a join closes one split."
            )
    split = first[-1][0]
    reached = {frames[-1][1] for _, frames in ways}
    missing = [branch for branch in flow.graph[split].next if branch not in reached]
    if missing:
        return (
            f"The join {name!r} closes the split in step {split!r}, but not all of its branches "
            f"lead to it: lead {', '.join(repr(each) for each in missing)} to it too."
        )
    return None


def _end_fault(name: str, frames: Frames) -> str | None:
    if not frames:
        return None
    return (
        f"The flow reaches its end {name!r} while the split in step {frames[-1][0]!r} is open: "
        "add a step with the arguments (self, inputs) that joins its branches."
    )


def _inside(frames: Frames) -> str:
    if not frames:
        return "outside of any split"
    return f"inside of the split in {frames[-1][0]!r}"


def _differing(one: Frames, other: Frames) -> str:
    return next(a[0] for a, b in zip(one, other, strict=True) if a != b)


STAGES: tuple[tuple[Rule, ...], ...] = (
    (
        what_was_read,
        has_steps,
        has_start_and_end,
        one_start_and_one_end,
        step_names,
        known_steps,
        catch_on_steps_that_can_go_on,
        caught_exceptions_can_be_kept,
        gangs_are_not_limited,
        parameters_are_declared_well,
    ),
    (all_steps_are_reached, no_cycles, switches_have_a_way_out, no_join_right_after_its_split),
    (splits_are_closed,),
)


def _of_node(node: Node, message: str) -> InvalidFlow:
    return InvalidFlow(message, file=node.file, line=node.line)


def _of_flow(flow: FlowDefinition, message: str) -> InvalidFlow:
    return InvalidFlow(message, file=flow.file, line=flow.line)
