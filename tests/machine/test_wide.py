"""Wide runs: no operation is quadratic, and finished tasks are dropped from memory."""

from __future__ import annotations

import gc

from aflow.flow.graph import Graph
from aflow.scheduler.machine import RunMachine
from aflow.scheduler.messages import (
    AttemptEnded,
    FromForeach,
    LaunchAttempt,
    Outcome,
    RunStarted,
    Transition,
)
from aflow.scheduler.states import AttemptState, RunState
from aflow.scheduler.tasks import Branches, Items, LiveTask
from tests.machine.graphs import FAN_OUT, NESTED, WIDE
from tests.machine.inspection import statistics


def drive(
    machine: RunMachine, flow: Graph, count: int, stop_after: int = 1 << 60
) -> tuple[list[LaunchAttempt], int]:
    """Let every task succeed, each foreach with `count` items, until `stop_after` have. The
    launches of joins, and the most splits that were open at a time."""
    ends = {
        name: Outcome(
            AttemptState.SUCCEEDED,
            Transition(node.next, node.foreach, count if node.kind in FAN_OUT else None),
        )
        for name, node in flow.nodes.items()
    }
    todo = machine.handle(RunStarted(), 0.0)
    joins, deepest, done = [], 0, 0
    while todo:
        commands = []
        for launch in todo:
            if isinstance(launch, LaunchAttempt):
                if isinstance(launch.inputs, FromForeach):
                    joins.append(launch)
                ended = AttemptEnded(launch.task, launch.attempt, ends[launch.step])
                commands += machine.handle(ended, 0.0)
                deepest = max(deepest, statistics(machine)["open"] if done % 64 == 0 else 0)
                done += 1
                if done == stop_after:
                    return joins, deepest
        todo = commands
    return joins, deepest


def test_a_foreach_of_100_000_items_is_joined_once_by_one_reference() -> None:
    machine = RunMachine(WIDE, {}, max_workers=16, max_num_splits=100_000)

    joins, _ = drive(machine, WIDE, 100_000)

    assert RunState.SUCCEEDED is machine.state
    assert [FromForeach(split=1, steps=("body",), count=100_000)] == [join.inputs for join in joins]
    assert [100_002] == [join.task for join in joins]
    assert 100_003 == statistics(machine)["finished"]


def test_a_foreach_of_300_in_a_foreach_of_300_keeps_few_splits_open() -> None:
    machine = RunMachine(NESTED, {}, max_workers=16, max_num_splits=300)

    joins, deepest = drive(machine, NESTED, 300)

    assert RunState.SUCCEEDED is machine.state
    assert 301 == len(joins)
    assert deepest <= 2 * 16 + 1


def held() -> int:
    """Return the number of aflow's objects that are alive in this process."""
    gc.collect()
    ours = (LiveTask, Items, Branches, LaunchAttempt, Outcome, Transition)
    return sum(type(each) in ours for each in gc.get_objects())


def test_finished_tasks_leave_no_objects() -> None:
    before = held()
    machine = RunMachine(WIDE, {}, max_workers=16, max_num_splits=100_000)
    drive(machine, WIDE, 100_000, stop_after=20_000)

    assert 16 == len(machine.live())
    assert held() - before < 200
