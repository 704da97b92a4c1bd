"""The order of tasks: linear steps, splits, foreach, switches, joins and their inputs."""

from __future__ import annotations

import pytest

from aflow.flow.graph import Kind
from aflow.scheduler.messages import (
    FinishRun,
    FromBranches,
    FromForeach,
    FromTask,
    ItemsReady,
    LaunchAttempt,
    NoInputs,
    TaskSettled,
    Transition,
)
from aflow.scheduler.retry import StepPolicy
from aflow.scheduler.states import RunState
from tests.machine.driving import Run, launches
from tests.machine.graphs import (
    BRANCHES,
    LINE,
    NESTED,
    WIDE,
    end,
    foreach,
    graph,
    linear,
    split,
    switch,
)
from tests.machine.inspection import snapshot


def test_a_run_begins_with_its_start_step_as_task_1() -> None:
    run = Run(LINE)

    assert [LaunchAttempt(1, "start", 0, NoInputs())] == run.start()
    assert RunState.RUNNING is run.machine.state


def test_each_step_of_a_line_reads_the_one_before_it() -> None:
    run = Run(LINE)
    run.start()

    assert [
        TaskSettled(1, 0, True),
        LaunchAttempt(2, "middle", 0, FromTask(1)),
    ] == run.succeed(1)
    assert [TaskSettled(2, 0, True), LaunchAttempt(3, "end", 0, FromTask(2))] == run.succeed(2)
    assert [TaskSettled(3, 0, True), FinishRun(RunState.SUCCEEDED)] == run.succeed(3)


def test_a_flow_of_one_step_is_start_and_end_at_once() -> None:
    run = Run(graph(end("only")))
    run.start()

    assert [TaskSettled(1, 0, True), FinishRun(RunState.SUCCEEDED)] == run.succeed(1)


def test_a_join_of_branches_reads_them_in_the_order_of_the_split() -> None:
    run = Run(BRANCHES)
    run.start()
    assert ["left", "right"] == [each.step for each in launches(run.succeed(1))]

    assert [] == launches(run.succeed(3))
    assert [LaunchAttempt(4, "join", 0, FromBranches((2, 3)))] == launches(run.succeed(2))


def test_a_branch_may_lead_straight_to_the_join() -> None:
    run = Run(graph(split("s", "a", "j", join="j"), linear("a", "j"), linear("j", "end"), end()))
    run.start()
    run.succeed(1)

    assert [LaunchAttempt(3, "j", 0, FromBranches((2, 1)))] == launches(run.succeed(2))


def test_each_item_of_a_foreach_knows_its_index_and_that_it_is_the_first_of_it() -> None:
    run = Run(graph(foreach("s", "a", join="j"), linear("a", "b"), linear("b", "j"), end("j")))
    run.start()

    assert [
        LaunchAttempt(2, "a", 0, FromTask(1), split=1, index=0, count=2, opens_index=True),
        LaunchAttempt(3, "a", 0, FromTask(1), split=1, index=1, count=2, opens_index=True),
    ] == launches(run.succeed(1, count=2))
    assert [LaunchAttempt(4, "b", 0, FromTask(3), split=1, index=1, count=2)] == launches(
        run.succeed(3)
    )


def test_a_join_of_a_foreach_starts_when_all_items_have_come() -> None:
    run = Run(WIDE)
    run.start()
    run.succeed(1, count=3)

    assert [] == launches(run.succeed(4))
    assert [] == launches(run.succeed(2))
    assert [LaunchAttempt(5, "join", 0, FromForeach(1, ("body",), 3))] == launches(run.succeed(3))


def test_a_foreach_of_no_items_goes_straight_to_its_join() -> None:
    run = Run(WIDE)
    run.start()

    assert [LaunchAttempt(2, "join", 0, FromForeach(1, ("body",), 0))] == launches(
        run.succeed(1, count=0)
    )


def test_a_foreach_of_no_items_inside_another_counts_as_one_item_of_it() -> None:
    run = Run(NESTED)
    run.start()
    run.succeed(1, count=1)

    middle = LaunchAttempt(3, "middle", 0, FromForeach(2, ("inner",), 0), split=1, index=0, count=1)
    assert [middle] == launches(run.succeed(2, count=0))
    assert [LaunchAttempt(4, "last", 0, FromForeach(1, ("middle",), 1))] == launches(run.succeed(3))


def test_a_join_inside_a_foreach_stays_at_the_index_of_its_item() -> None:
    run = Run(NESTED)
    run.start()
    run.succeed(1, count=2)
    run.succeed(3, count=1)

    [middle] = launches(run.succeed(4))

    assert (1, 1, 2) == (middle.split, middle.index, middle.count)


def test_num_parallel_is_a_foreach_without_an_artifact() -> None:
    run = Run(graph(foreach("s", "a", "j", Kind.PARALLEL), linear("a", "j"), end("j")))
    run.start()

    assert [0, 1] == [each.index for each in launches(run.succeed(1, count=2))]


def test_a_split_inside_a_foreach_keeps_the_place_of_the_item() -> None:
    flow = graph(
        foreach("s", "a", join="j"),
        split("a", "b", "c", join="k"),
        linear("b", "k"),
        linear("c", "k"),
        linear("k", "j"),
        end("j"),
    )
    run = Run(flow)
    run.start()
    run.succeed(1, count=1)

    for launch in launches(run.succeed(2)):
        assert (1, 0, 1, False) == (launch.split, launch.index, launch.count, launch.opens_index)
    run.succeed(3)
    [k] = launches(run.succeed(4))
    assert LaunchAttempt(5, "k", 0, FromBranches((3, 4)), split=1, index=0, count=1) == k
    assert [FromForeach(1, ("k",), 1)] == [each.inputs for each in launches(run.succeed(5))]


def test_a_branch_of_an_item_that_came_early_knows_how_many_items_there_are_in_the_end() -> None:
    flow = graph(
        foreach("start", "body", join="last"), split("body", "left", "right", join="join"),
        linear("left", "join"), linear("right", "join"), linear("join", "last"),
        linear("last", "end"), end(),
    )  # fmt: skip
    run = Run(flow, max_workers=2)
    run.start()
    run.tell(ItemsReady(1, 0, 1))
    (left,) = launches(run.succeed(2))
    assert ("left", 1, 0, None) == (left.step, left.split, left.index, left.count)

    # The worker that the opener frees takes the right branch or the second item.
    launched = {each.step: each for each in launches(run.succeed(1, count=2))}
    launched |= {each.step: each for each in launches(run.succeed(left.task))}

    right = launched["right"]
    assert (1, 0, 2) == (right.split, right.index, right.count)


def test_items_that_are_reported_before_their_step_ends_start_at_once() -> None:
    run = Run(WIDE, max_workers=8, max_num_splits=5)
    run.start()

    assert [0, 1] == [each.index for each in launches(run.tell(ItemsReady(1, 0, 2)))]
    assert [2] == [each.index for each in launches(run.tell(ItemsReady(1, 0, 3)))]
    for nothing in (ItemsReady(1, 0, 3), ItemsReady(1, 0, 2)):  # a late report, and a second one
        assert [] == run.tell(nothing)
    assert [] == run.tell(ItemsReady(1, 7, 5)), "an attempt that is not live"
    assert [] == run.tell(ItemsReady(1, 0, 6)), "more than a foreach may have"
    for task in (2, 3, 4):
        run.succeed(task)
    joined = launches(run.succeed(1, count=3))

    assert [("join", FromForeach(1, ("body",), 3))] == [(each.step, each.inputs) for each in joined]
    assert snapshot(run.machine) == snapshot(run.replayed())


def test_items_of_a_step_that_may_be_tried_again_wait_for_its_end() -> None:
    run = Run(WIDE, {"start": StepPolicy(retries=1)})
    run.start()

    assert [] == run.tell(ItemsReady(1, 0, 2))
    assert [0, 1] == [each.index for each in launches(run.succeed(1, count=2))]


def test_a_step_that_ends_with_fewer_items_than_it_reported_fails() -> None:
    run = Run(WIDE)
    run.start()
    run.tell(ItemsReady(1, 0, 3))
    run.succeed(1, count=2)

    stop = run.machine.stopping
    assert stop is not None
    assert "Foreach in step start has 2 items, but tasks for 3 have begun." == stop.reason
    assert [] == run.tell(ItemsReady(2, 0, 1)), "a run that stops starts nothing"


def test_a_live_task_was_ready_when_all_that_it_reads_was_there() -> None:
    run = Run(WIDE, max_workers=1)
    run.start()
    run.now += 10
    run.succeed(1, count=2)
    run.now += 10
    run.succeed(2)

    assert 1010.0 == run.machine.ready_at(3), "the second item waited for the one worker"
    assert run.machine.ready_at(2) is None


def test_a_foreach_inside_a_branch_returns_to_the_branch() -> None:
    flow = graph(
        split("s", "a", "b", join="j"),
        foreach("a", "item", join="k"),
        linear("item", "k"),
        linear("k", "j"),
        linear("b", "j"),
        end("j"),
    )
    run = Run(flow)
    run.start()
    run.succeed(1)
    run.succeed(3)
    run.succeed(2, count=1)

    assert [LaunchAttempt(5, "k", 0, FromForeach(2, ("item",), 1))] == launches(run.succeed(4))
    assert [FromBranches((5, 3))] == [each.inputs for each in launches(run.succeed(5))]


@pytest.mark.parametrize("case", ["a", "b"])
def test_a_switch_goes_to_the_case_that_was_named(case: str) -> None:
    run = Run(graph(switch("s", "a", "b"), linear("a", "end"), linear("b", "end"), end()))
    run.start()

    assert [LaunchAttempt(2, case, 0, FromTask(1))] == launches(run.succeed(1, case))


def test_a_switch_may_go_back_to_itself() -> None:
    run = Run(graph(switch("loop", "loop", "end"), end()))
    run.start()

    assert [LaunchAttempt(2, "loop", 0, FromTask(1))] == launches(run.succeed(1, "loop"))
    assert [LaunchAttempt(3, "loop", 0, FromTask(2))] == launches(run.succeed(2, "loop"))
    assert [LaunchAttempt(4, "end", 0, FromTask(3))] == launches(run.succeed(3, "end"))


def test_a_switch_may_lead_into_a_join() -> None:
    flow = graph(foreach("s", "a", join="j"), switch("a", "b", "j"), linear("b", "j"), end("j"))
    run = Run(flow)
    run.start()
    run.succeed(1, count=2)
    run.succeed(2, "j")
    run.succeed(3, "b")

    assert [FromForeach(1, ("a", "b"), 2)] == [each.inputs for each in launches(run.succeed(4))]


def test_a_join_may_open_the_next_foreach() -> None:
    flow = graph(
        foreach("s", "a", join="j"),
        linear("a", "j"),
        foreach("j", "b", join="end"),
        linear("b", "end"),
        end(),
    )
    run = Run(flow)
    run.start()
    run.succeed(1, count=1)
    run.succeed(2)

    assert [LaunchAttempt(4, "b", 0, FromTask(3), 3, 0, 1, opens_index=True)] == launches(
        run.succeed(3, count=1)
    )
    assert [FromForeach(3, ("b",), 1)] == [each.inputs for each in launches(run.succeed(4))]
    assert FinishRun(RunState.SUCCEEDED) == run.succeed(5)[-1]


def test_a_join_may_be_a_switch() -> None:
    flow = graph(
        foreach("s", "a", join="j"), linear("a", "j"), switch("j", "b", "end"), linear("b", "end"),
        end(),
    )  # fmt: skip
    run = Run(flow)
    run.start()
    run.succeed(1, count=1)
    run.succeed(2)

    assert ["b"] == [each.step for each in launches(run.end_with(3, Transition(("b",))))]


def test_a_join_is_not_among_the_steps_that_lead_into_it() -> None:
    flow = graph(foreach("s", "a", join="j"), linear("a", "j"), switch("j", "j", "end"), end())
    run = Run(flow)
    run.start()
    run.succeed(1, count=1)

    assert [FromForeach(1, ("a",), 1)] == [each.inputs for each in launches(run.succeed(2))]
