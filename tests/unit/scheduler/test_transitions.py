"""Transitions and graphs that cannot be followed."""

from __future__ import annotations

import re
from typing import Any

import pytest

from aflow.errors import InvalidFlow
from aflow.flow.graph import Graph, Kind, Node
from aflow.scheduler.messages import FinishRun, Outcome, Transition
from aflow.scheduler.retry import StepPolicy
from aflow.scheduler.states import AttemptState, IllegalMove, RunState
from tests.machine.driving import Run
from tests.machine.graphs import (
    BRANCHES,
    LINE,
    WIDE,
    end,
    foreach,
    graph,
    linear,
    split,
    switch,
)

CHOICE = graph(switch("start", "a", "b"), linear("a", "end"), linear("b", "end"), end())
LAST = graph(end("start"))


@pytest.mark.parametrize(
    ("flow", "transition", "story"),
    [
        (LINE, None, "without saying which steps follow"),
        (LINE, Transition(), "went to nowhere, but by the graph of the flow it goes to middle"),
        (LINE, Transition(("end",)), "went to end, but"),
        (LINE, Transition(("middle", "end")), "went to middle, end, but"),
        (LINE, Transition(("middle",), "xs", 3), r"went to middle \(for 3 items\), but"),
        (LINE, Transition((7,)), "went to 7, but"),  # type: ignore[arg-type]
        (WIDE, Transition(("body",)), "went to body, but .* goes to body for each item"),
        (WIDE, Transition(("body",), "xs", -1), r"for -1 items"),
        (WIDE, Transition(("body",), "xs", "3"), r"for '3' items"),  # type: ignore[arg-type]
        (BRANCHES, Transition(("left",)), "went to left, but .* goes to left, right"),
        (BRANCHES, Transition(("right", "left")), "went to right, left, but"),
        (CHOICE, Transition(("end",)), "went to end, but .* goes to a or b"),
        (CHOICE, Transition(("a", "b")), "went to a, b, but"),
        (LAST, Transition(("start",)), "went to start, but .* goes to nowhere"),
    ],
)
def test_a_transition_that_disagrees_with_the_graph_fails_the_task(
    flow: Graph, transition: Transition | None, story: str
) -> None:
    run = Run(flow, {"start": StepPolicy(retries=3, catches=True)})
    run.start()
    run.end_with(1, transition)

    assert run.finish is not None
    assert (RunState.FAILED, "start", 1) == (run.finish.state, run.finish.step, run.finish.task)
    assert re.search(story, run.finish.reason)


def test_a_foreach_of_too_many_items_fails_the_task() -> None:
    run = Run(WIDE, max_num_splits=100)
    run.start()
    run.succeed(1, count=101)

    reason = (
        "Foreach in step start yielded 101 child steps which is more than the current maximum "
        "of 100 children. You can raise the maximum with the --max-num-splits option."
    )
    assert FinishRun(RunState.FAILED, reason, "start", 1) == run.finish


def test_a_foreach_of_as_many_items_as_allowed_is_fine() -> None:
    run = Run(WIDE, max_num_splits=100)
    run.start()
    run.succeed(1, count=100)

    assert run.machine.stopping is None


def test_the_size_of_a_gang_is_not_limited() -> None:
    flow = graph(foreach("start", "a", "j", Kind.PARALLEL), linear("a", "j"), end("j"))
    run = Run(flow, max_num_splits=1)
    run.start()
    run.succeed(1, count=2)

    assert run.machine.stopping is None


def test_a_join_that_closes_nothing_fails_the_step_that_led_there() -> None:
    flow = graph(
        switch("start", "s", "j"), split("s", "a", "b", join="j"), linear("a", "j"),
        linear("b", "j"), end("j"),
    )  # fmt: skip
    run = Run(flow)
    run.start()
    run.succeed(1, "j")

    assert run.finish is not None
    assert "no split that j closes is open there" in run.finish.reason


def test_a_way_out_of_two_splits_at_once_fails_the_step() -> None:
    flow = graph(
        foreach("start", "a", join="outer"),
        foreach("a", "b", join="inner"),
        switch("b", "inner", "outer"),
        linear("inner", "outer"),
        end("outer"),
    )
    run = Run(flow)
    run.start()
    run.succeed(1, count=1)
    run.succeed(2, count=1)
    run.succeed(3, "outer")

    assert run.finish is not None
    assert "no split that outer closes is open there" in run.finish.reason


def test_a_join_cannot_go_back_to_itself() -> None:
    flow = graph(foreach("start", "a", join="j"), linear("a", "j"), switch("j", "j", "end"), end())
    run = Run(flow)
    run.start()
    run.succeed(1, count=1)
    run.succeed(2)
    run.succeed(3, "j")

    assert run.finish is not None
    assert "no split that j closes is open there" in run.finish.reason


def test_an_end_inside_a_split_fails_the_end() -> None:
    flow = graph(split("start", "a", "end", join="j"), linear("a", "j"), linear("j", "end"), end())
    run = Run(flow)
    run.start()
    run.succeed(1)
    run.succeed(3)
    run.succeed(2)

    assert run.finish is not None
    assert "ends the flow inside the split that step start opened" in run.finish.reason


@pytest.mark.parametrize(
    ("nodes", "story"),
    [
        ([linear("start", "nirvana"), end()], "leads to nirvana, which is not a step"),
        ([Node("start", Kind.LINEAR), end()], "leads nowhere"),
        ([Node("start", Kind.END, next=("start",))], "ends the flow but leads on"),
        ([Node("start", Kind.LINEAR, next=("end", "end")), end()], "leads to 2 steps"),
        ([split("start", "a", "end", join=None), linear("a", "end"), end()], "no join closes"),
        ([foreach("start", "end", join="end"), end()], "leads straight into the join end"),
    ],
)
def test_a_graph_that_cannot_be_followed_is_refused(nodes: list[Node], story: str) -> None:
    with pytest.raises(InvalidFlow, match=f"Step start .*{story}"):
        Run(graph(*nodes))


def test_a_graph_without_its_start_is_refused() -> None:
    with pytest.raises(InvalidFlow, match="no step 'start'"):
        Run(Graph("Empty", "start", "end", {}))


@pytest.mark.parametrize("state", [AttemptState.QUEUED, AttemptState.RUNNING])
def test_an_end_that_is_none_counts_as_a_failure(state: AttemptState) -> None:
    run = Run(LINE)
    run.start()
    run.end(1, state)

    assert run.finish is not None
    assert RunState.FAILED is run.finish.state


# ---------------------------------------------------------------------- the guards themselves


def spoil_the_count(run: Run) -> None:
    run.machine._board.steps["body"].done += 1


def spoil_the_bound(run: Run) -> None:
    run.machine._board.limit = 1


def spoil_the_group(run: Run) -> None:
    next(iter(run.machine._board.live.values())).group = None


def spoil_the_tokens(run: Run) -> None:
    group: Any = next(iter(run.machine._board.live.values())).group
    group.arrived += 1


def spoil_the_queue(run: Run) -> None:
    run.machine._board.limit = 50


@pytest.mark.parametrize(
    "spoil",
    [spoil_the_count, spoil_the_bound, spoil_the_group, spoil_the_tokens, spoil_the_queue],
)
def test_a_machine_that_contradicts_itself_is_found_out(spoil: Any) -> None:
    run = Run(WIDE, max_workers=4)
    run.start()
    run.succeed(1, count=10)
    spoil(run)

    with pytest.raises(IllegalMove, match="The run is running; 5 tasks launched, 4 live"):
        run.machine.check_invariants()


def test_an_illegal_move_tells_the_story_of_the_task() -> None:
    run = Run(LINE)
    run.start()
    board = run.machine._board
    task = board.live[1]
    board.end(task)
    run.machine._succeeded(task, Transition(("middle",)), [])

    with pytest.raises(IllegalMove, match=r"task 1 of step start \(succeeded, attempt 0"):
        run.machine._try_again(task, Outcome(AttemptState.LOST), 0.0, [])
