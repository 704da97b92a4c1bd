"""Invalid transitions and graphs."""

from __future__ import annotations

import re
from typing import Any

import pytest

from aflow.errors import InvalidFlow
from aflow.flow.graph import Graph, Kind, Node
from aflow.scheduler.messages import FinishRun, Outcome, Transition
from aflow.scheduler.retry import StepPolicy
from aflow.scheduler.states import AttemptState, IllegalMove, RunState, TaskState
from aflow.scheduler.tasks import LiveTask
from tests.machine import inspection
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


@pytest.mark.parametrize(
    ("workers", "bound", "story"),
    [
        (2, None, "only 2 tasks may: start the run with --max-workers 3"),
        (4, 2, "only 2 tasks of a may"),
    ],
)
def test_a_gang_that_could_never_run_at_once_fails_the_task(
    workers: int, bound: int | None, story: str
) -> None:
    flow = graph(foreach("start", "a", "j", Kind.PARALLEL), linear("a", "j"), end("j"))
    run = Run(flow, {"a": StepPolicy(max_workers=bound)}, max_workers=workers)
    run.start()
    run.succeed(1, count=3)

    assert run.finish is not None
    assert "Step start starts a gang of 3 members, which all run at once" in run.finish.reason
    assert story in run.finish.reason


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


def started(flow: Graph = WIDE, **options: Any) -> Run:
    """Return a run of at most four workers whose start step is done; a foreach has ten items."""
    policies = {"body": StepPolicy(retries=1, wait=5.0, max_workers=options.pop("bound", None))}
    run = Run(flow, policies, **{"max_workers": 4, **options})
    run.start()
    run.succeed(1, count=10 if flow is WIDE else None)
    return run


def spoil(run: Run, change: str) -> None:
    """Corrupt the state of a machine."""
    machine = run.machine
    board = machine._board
    live = [*board.live.values()]
    names = {"machine": machine, "board": board, "live": live, "steps": board.steps}
    exec(change, {**names, "LiveTask": LiveTask, "TaskState": TaskState, "RunState": RunState})


@pytest.mark.parametrize(
    ("options", "change", "found"),
    [
        ({}, "board.limit = 1", "4 attempts are live and 0 places kept, but 1 are allowed"),
        ({}, "steps['body'].bound = 2", "4 attempts of body are live; its bound is 2"),
        (
            {},
            "steps['body'].running += 1",
            "Step body says (live, running, waiting, pending) (4, 1, 0, 6), but has (4, 0, 0, 6)",
        ),
        ({}, "board.limit += 1; board.reserved += 1", "1 places are kept, but 0 tasks hold one"),
        ({}, "steps['body'].done += 1", "5 tasks were launched, but 2 are over, 4 live and 0"),
        ({}, "live[0].state = TaskState.READY", "Live under 2: task 2 of step body"),
        ({}, "machine._state = RunState.PENDING", "Tasks are to start, but the run has not"),
        ({"flow": LINE}, "machine._state = RunState.FAILED", "The run is over, but attempts"),
        ({}, "board.limit = 50", "There is room, but tasks that are ready were not launched"),
        ({"bound": 2}, "steps['body'].bound = 3", "Step body has room, but tasks of it are park"),
        ({}, "board.cursors[0].gang = True", "A gang has begun to start, and some of its"),
        (
            {"flow": BRANCHES, "max_workers": 1},
            "board.ready[0].has_reservation = True; board.reserved = 1; board.limit = 2",
            "A member of a gang has its place, but was not launched",
        ),
        (
            {"flow": LINE},
            "board.live.clear(); steps['middle'].launched = 0; board.launched = 1",
            "The run goes on, but nothing is live and nothing waits",
        ),
        ({}, "live[0].group.arrived += 1", "Split 1 has 10 parts, but 1 have arrived, 4 are"),
        ({}, "live[0].group = None", "Split 1 has 10 parts, but 0 have arrived, 3 are on"),
        ({"flow": BRANCHES}, "live[0].group.last[1] = 9", "counts 0 arrivals, but knows [0, 9]"),
        (
            {"flow": LINE, "max_workers": 1},
            "board.add(LiveTask(steps['end'], None, 0, live[0].inputs))",
            "The run has not exactly one token outside of all splits",
        ),
    ],
)  # fmt: skip
def test_a_machine_that_contradicts_itself_says_in_what(
    options: dict[str, Any], change: str, found: str
) -> None:
    run = started(**options)
    inspection.check_invariants(run.machine)
    spoil(run, change)

    with pytest.raises(IllegalMove) as error:
        inspection.check_invariants(run.machine)
    what, story = str(error.value).split("\n", 1)
    assert found in what
    assert story == inspection.story(run.machine)


def test_a_task_that_waits_for_its_retry_in_another_state_is_found() -> None:
    run = started()
    run.fail(2)
    spoil(run, "board.waiting[0][2].state = TaskState.READY")

    with pytest.raises(IllegalMove, match="Not where its state belongs: task 2 of step body"):
        inspection.check_invariants(run.machine)


def test_a_run_that_stops_without_an_end_is_found() -> None:
    run = Run(LINE)
    run.start()
    run.fail(1)
    assert run.finish is not None
    spoil(run, "machine._state = RunState.RUNNING")

    with pytest.raises(
        IllegalMove, match=r"nothing is live, but it is not over(.|\n)*It stops with"
    ):
        inspection.check_invariants(run.machine)


def test_a_story_names_the_first_tasks_and_how_many_more_there_are() -> None:
    names = [f"b{number}" for number in range(23)]
    wide = graph(split("start", *names, join="join"), *(linear(each, "join") for each in names),
                 end("join"))  # fmt: skip
    run = started(wide)

    lines = inspection.story(run.machine).splitlines()
    assert "The run is running; 5 tasks launched, 4 live." == lines[0]
    assert lines[1].startswith("task 2 of step b0 (running, attempt 0")
    assert ["... and 3 more.", "split 1 of task 1 (start): 0 of 23 at join"] == lines[21:]


def test_a_run_that_is_over_cannot_begin_again() -> None:
    run = started(LINE)
    with pytest.raises(IllegalMove, match="The run is running and cannot become pending"):
        run.machine._move(RunState.PENDING)


def test_an_illegal_move_tells_the_story_of_the_task() -> None:
    run = Run(LINE)
    run.start()
    board = run.machine._board
    task = board.live[1]
    board.end(task)
    run.machine._succeeded(task, Transition(("middle",)), [])

    with pytest.raises(IllegalMove, match=r"task 1 of step start \(succeeded, attempt 0"):
        run.machine._try_again(task, Outcome(AttemptState.LOST), 0.0, [])
