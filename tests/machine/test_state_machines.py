"""Random flows as state machines of Step Functions: each does the same as a coordinator, task by
task, and its jobs find the inputs that a coordinator would pass to them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from aflow.flow.graph import Graph, Kind, connect
from aflow.scheduler.messages import FromBranches, FromForeach, FromTask, Inputs, NoInputs
from aflow.scheduler.states import RunState
from aflow.step_functions.machine import JobOf, Where, compiled
from aflow.step_functions.spec import foreach_result, result_name, state_after, switch_result
from aflow.step_functions.tasks import Numbers, TaskReference
from tests.machine.graphs import graphs
from tests.machine.states import Execution
from tests.machine.world import Choices, Visit, World, expected_visits

JOB = JobOf("definition", retries=0, limit=60)


class Jobs:
    """The jobs of one execution: `done` is what each task was, by its number."""

    def __init__(self, graph: Graph, choices: Choices, *, distributed: bool) -> None:
        self._graph = graph
        self._choices = choices
        self._numbers = Numbers(graph)
        self._distributed = distributed
        self.words: dict[str, Any] = {}
        self.done: dict[int, tuple[Visit, TaskReference]] = {}

    def run(self, variables: dict[str, str]) -> None:
        """One job: it finds out which task it is, and leaves its word."""
        step, place, run = (variables[f"AFLOW_SFN_{key}"] for key in ("STEP", "PLACE", "RUN"))
        came_from, branches = (variables.get(f"AFLOW_SFN_{key}") for key in ("FROM", "BRANCHES"))
        reference = self._numbers.reference(step, place, came_from or "", branches)
        assert reference.task not in self.done, "a task is done once"
        visit = self._visit(step, reference)
        self.done[reference.task] = visit, reference
        went, kind = self._choices.transition(visit), self._graph[step].kind
        after = self._numbers.after(step, place) if kind is Kind.SWITCH else place
        state = state_after(run, step, after, variables.get("AFLOW_SFN_STARTED"))
        said: Any = None
        if kind is Kind.SWITCH:
            said = switch_result(state, went.steps[0])
        elif kind is Kind.FOREACH:
            items = range(went.count or 0)
            said = foreach_result(state, items, distributed=self._distributed)
        self.words[f"prefix/{result_name('Flow', run, step, place)}"] = said

    def _visit(self, step: str, reference: TaskReference) -> Visit:
        match reference.inputs:
            case NoInputs():
                return step, (), 0
            case FromTask(task):
                return self._after(step, task, reference)
            case FromBranches(tasks):
                ways = {self.done[task][0][1][:-1] for task in tasks}
                assert 1 == len(ways), "branches end where they began"
                return step, ways.pop(), 0
            case FromForeach(split):
                return step, self.done[split][0][1], 0

    def _after(self, step: str, task: int, reference: TaskReference) -> Visit:
        before, stack, iteration = self.done[task][0]
        node = self._graph[before]
        if node.kind is Kind.SPLIT:
            return step, (*stack, (before, node.next.index(step))), 0
        if node.kind is Kind.FOREACH:
            assert reference.opens_index
            assert reference.index is not None
            return step, (*stack, (before, reference.index)), 0
        return step, stack, iteration + 1 if before == step else 0

    def inputs(self, inputs: Inputs) -> Any:
        """What is read, in words that do not depend on numbers."""
        if isinstance(inputs, FromForeach):
            return self.items(inputs)
        tasks = inputs.tasks if isinstance(inputs, FromBranches) else ()
        tasks = (inputs.task,) if isinstance(inputs, FromTask) else tasks
        return [self.done[task][0] for task in tasks]

    def items(self, inputs: FromForeach) -> dict[int, Visit]:
        """The last task of each item, as readers find it: the one of the highest number."""
        found: dict[int, int] = {}
        for number, (visit, reference) in self.done.items():
            if reference.split == inputs.split and visit[0] in inputs.steps:
                index = reference.index
                assert index is not None
                found[index] = max(number, found.get(index, 0))
        return {index: self.done[number][0] for index, number in found.items()}


def read(world: World, inputs: Inputs) -> Any:
    """The same of a run that a coordinator has driven."""
    if isinstance(inputs, FromForeach):
        arrived = world.arrived[inputs.split]
        return {index: world.seen[task].visit for index, task in arrived.items()}
    tasks = inputs.tasks if isinstance(inputs, FromBranches) else ()
    tasks = (inputs.task,) if isinstance(inputs, FromTask) else tasks
    return [world.seen[task].visit for task in tasks]


def without_gangs(flow: Graph) -> Graph:
    """The same flow with foreachs in place of gangs, which state machines have not."""
    nodes = {
        name: replace(node, kind=Kind.FOREACH) if node.kind is Kind.PARALLEL else node
        for name, node in flow.nodes.items()
    }
    return replace(flow, nodes=connect(nodes, flow.start))


@settings(max_examples=60)
@given(flow=graphs(), seed=st.integers(0, 10_000), distributed=st.booleans(), noted=st.booleans())
def test_an_execution_does_the_tasks_of_a_run_with_the_same_inputs(
    flow: Graph, seed: int, distributed: bool, noted: bool
) -> None:
    graph = without_gangs(flow)
    choices = Choices(graph, seed)
    assume(expected_visits(graph, choices).total() < 200)
    world = World(graph, {}, seed, max_workers=4)
    world.start()
    while world.live:
        world.succeed_as_chosen(min(world.live))
    assert world.finish is not None
    assert RunState.SUCCEEDED is world.finish.state

    topic = "arn:aws:sns:us-east-1:123456789012:topic"
    where = Where(
        "aws", "queue", "bucket", "prefix/deploy/results/Flow", JOB, distributed=distributed,
        timeout=60 if noted else None, on_error=topic if noted else None,
    )  # fmt: skip
    machine = json.loads(json.dumps(compiled(graph, dict.fromkeys(graph.nodes, JOB), where)))
    jobs = Jobs(graph, choices, distributed=distributed)
    Execution(machine, jobs.run, jobs.words).run("name", {})

    visits = Counter(visit for visit, _ in jobs.done.values())
    assert expected_visits(graph, choices) == visits
    expected = {world.seen[each.task].visit: read(world, each.inputs) for each in world.launched}
    assert expected == {
        visit: jobs.inputs(reference.inputs) for visit, reference in jobs.done.values()
    }
    splits = {
        visit: None if reference.split is None else jobs.done[reference.split][0]
        for visit, reference in jobs.done.values()
    }
    assert splits == {
        world.seen[each.task].visit: None if each.split is None else world.seen[each.split].visit
        for each in world.launched
    }
