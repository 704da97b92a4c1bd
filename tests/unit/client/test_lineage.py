"""Parents and children of tasks, in runs of any shape."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from aflow.client import Run, Task, connect_to, default_metadata
from aflow.scheduler.messages import FromBranches, FromForeach, FromTask, LaunchAttempt
from aflow.scheduler.states import AttemptState, RunState
from tests.machine.graphs import NESTED, graphs
from tests.machine.world import World
from tests.unit.client.recorded import RecordedRun, Records


def test_children_of_a_nested_foreach_are_those_of_the_same_item(records: Records) -> None:
    world = World(NESTED, {}, seed=1)
    run_out(world)
    record(records, world)

    for task in Run("Flow/1")["outer"]:
        for child in task.child_tasks:
            assert [task.id] == [parent.id for parent in child.parent_tasks]


def test_a_nested_foreach_that_still_grows_has_children(records: Records) -> None:
    run = records.run(graph=NESTED)
    run.task(1, "start", transition=(("outer",), "items", 1))
    growing = (("inner",), "items", None)
    running: dict[str, Any] = {"state": AttemptState.RUNNING, "finished_at": None}
    run.task(2, "outer", inputs=FromTask(1), split=1, index=0, transition=growing, **running)
    for index in range(2):
        run.task(3 + index, "inner", inputs=FromTask(2), split=2, index=index)
    run.commit()

    assert ["3", "4"] == [child.id for child in Task("Flow/1/outer/2").child_tasks]


@given(data=st.data(), seed=st.integers(0, 10_000), latest_first=st.booleans())
def test_parents_are_the_inputs_and_children_are_the_other_way_round(
    data: st.DataObject, seed: int, latest_first: bool
) -> None:
    world = World(data.draw(graphs()), {}, seed)
    run_out(world, latest_first)
    records = Records()
    connect_to(records.metadata, records.store)
    try:
        record(records, world)
        check_relations(world)
    finally:
        default_metadata()
        records.metadata.close()


def check_relations(world: World) -> None:
    tasks: dict[int, Task] = {
        int(task.id): task for step in Run("Flow/1", _namespace_check=False) for task in step
    }
    expected = {
        (parent, launch.task) for launch in world.launched for parent in inputs_of(world, launch)
    }
    parents = {
        (int(each.id), number) for number, task in tasks.items() for each in task.parent_tasks
    }
    children = {
        (number, int(each.id)) for number, task in tasks.items() for each in task.child_tasks
    }
    assert expected == parents
    assert expected == children
    for task in tasks.values():
        assert [each.pathspec for each in task.parent_tasks] == [*task.parent_task_pathspecs]
        assert [each.pathspec for each in task.child_tasks] == [*task.child_task_pathspecs]


def inputs_of(world: World, launch: LaunchAttempt) -> list[int]:
    match launch.inputs:
        case FromTask(task):
            return [task]
        case FromBranches(tasks):
            return [*tasks]
        case FromForeach(split):
            return [*world.arrived[split].values()]
        case _:
            return []


def run_out(world: World, latest_first: bool = False) -> None:
    world.start()
    while world.live:
        world.succeed_as_chosen(max(world.live) if latest_first else min(world.live))


def record(records: Records, world: World) -> RecordedRun:
    """Write the records that a coordinator would have written for the world's run."""
    recorded = records.run(graph=world.graph)
    for launch in world.launched:
        went = world.went[launch.task]
        recorded.task(
            launch.task,
            launch.step,
            inputs=launch.inputs,
            split=launch.split,
            index=launch.index,
            transition=(went.steps, went.foreach, went.count),
        )
    return recorded.commit(RunState.SUCCEEDED)
