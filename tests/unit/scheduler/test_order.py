"""The start of tasks: limits, order, numbers."""

from __future__ import annotations

import pytest

from aflow.flow.graph import Kind
from aflow.scheduler.messages import FromTask, LaunchAttempt
from aflow.scheduler.retry import StepPolicy
from aflow.scheduler.states import AttemptState
from tests.machine.driving import Run, launches
from tests.machine.graphs import BRANCHES, LINE, NESTED, WIDE, end, foreach, graph, linear
from tests.machine.inspection import handles, queued, statistics


@pytest.mark.parametrize(("workers", "lookahead"), [(1, 0), (4, 0), (4, 3)])
def test_no_more_attempts_are_live_than_workers_and_lookahead_allow(
    workers: int, lookahead: int
) -> None:
    run = Run(WIDE, max_workers=workers, lookahead=lookahead)
    run.start()

    assert workers + lookahead == len(launches(run.succeed(1, count=50)))
    assert [2 + workers + lookahead] == [each.task for each in launches(run.succeed(2))]


def test_an_item_of_a_foreach_has_no_number_until_it_is_launched() -> None:
    run = Run(WIDE, max_workers=1)
    run.start()

    assert [(2, 0)] == [(each.task, each.index) for each in launches(run.succeed(1, count=3))]
    assert [(3, 1)] == [(each.task, each.index) for each in launches(run.succeed(2))]


def test_a_task_that_is_ready_goes_before_the_next_item() -> None:
    flow = graph(foreach("s", "a", join="j"), linear("a", "b"), linear("b", "j"), end("j"))
    run = Run(flow, max_workers=1)
    run.start()
    run.succeed(1, count=5)

    assert [("b", 0)] == [(each.step, each.index) for each in launches(run.succeed(2))]


def test_the_foreach_that_was_opened_last_goes_first() -> None:
    run = Run(NESTED, max_workers=1)
    run.start()
    run.succeed(1, count=2)

    assert ["inner"] == [each.step for each in launches(run.succeed(2, count=2))]
    assert ["inner"] == [each.step for each in launches(run.succeed(3))]
    assert ["middle"] == [each.step for each in launches(run.succeed(4))]
    assert ["outer"] == [each.step for each in launches(run.succeed(5))]


def test_a_step_keeps_its_own_bound() -> None:
    run = Run(WIDE, {"body": StepPolicy(max_workers=2)}, max_workers=8, lookahead=4)
    run.start()

    assert [2, 3] == [each.task for each in launches(run.succeed(1, count=5))]
    assert [4] == [each.task for each in launches(run.succeed(3))]
    assert {"ready": 2, "live": 2} == {
        key: statistics(run.machine)[key] for key in ("ready", "live")
    }


def test_a_step_at_its_bound_does_not_hold_up_others() -> None:
    flow = graph(
        foreach("s", "a", join="j"), linear("a", "b"), linear("b", "c"), linear("c", "j"), end("j")
    )
    run = Run(flow, {"b": StepPolicy(max_workers=1)}, max_workers=3)
    run.start()
    run.succeed(1, count=4)
    run.succeed(2)
    assert ["a", "a", "b"] == run.steps()

    # The b of task 3 has to wait, so the last item goes first.
    assert [("a", 3)] == [(each.step, each.index) for each in launches(run.succeed(3))]
    # It was ready before the c of task 5, so it goes before it.
    assert [("b", 1)] == [(each.step, each.index) for each in launches(run.succeed(5))]
    assert [("c", 0)] == [(each.step, each.index) for each in launches(run.succeed(4))]
    assert ["a", "b", "c"] == run.steps()


def test_parked_tasks_come_back_in_order() -> None:
    flow = graph(foreach("s", "a", join="j"), linear("a", "b"), linear("b", "j"), end("j"))
    run = Run(flow, {"b": StepPolicy(max_workers=1)}, max_workers=4)
    run.start()
    run.succeed(1, count=4)
    order = []
    for task in (4, 2, 5, 3):
        run.succeed(task)
    while "b" in run.steps():
        [b] = [launch for launch in run.live.values() if launch.step == "b"]
        order.append(b.index)
        run.succeed(b.task)

    assert [2, 0, 3, 1] == order


def test_two_foreach_of_a_bounded_step_both_come_to_their_end() -> None:
    run = Run(NESTED, {"inner": StepPolicy(max_workers=1)}, max_workers=8)
    run.start()
    run.succeed(1, count=4)
    for task in (2, 3, 4, 5):
        run.succeed(task, count=3)

    while run.finish is None:
        run.succeed(min(run.live))

    assert 12 == run.machine.counts()["inner"].done


def test_an_attempt_that_has_begun_is_no_longer_queued() -> None:
    run = Run(BRANCHES)
    run.start()
    run.succeed(1)
    assert [2, 3] == [each.task for each in queued(run.machine)]

    assert [] == run.begin(3, "job-7")
    assert [2] == [each.task for each in queued(run.machine)]
    assert [2, 3] == [each.task for each in run.machine.live()]
    assert {3: "job-7"} == handles(run.machine)
    assert 1 == run.machine.counts()["right"].running
    assert 1 == run.machine.counts()["left"].queued


def test_an_attempt_may_end_without_having_begun() -> None:
    run = Run(LINE)
    run.start()
    run.succeed(1)

    assert (0, 0, 1) == (
        run.machine.counts()["start"].running,
        run.machine.counts()["start"].queued,
        run.machine.counts()["start"].done,
    )


def test_counts_tell_how_far_each_step_is() -> None:
    policy = StepPolicy(retries=1, wait=10.0)
    run = Run(WIDE, {"body": policy}, max_workers=2)
    run.start()
    run.begin(1)
    run.succeed(1, count=6)
    run.begin(2)
    run.succeed(2)
    run.begin(4)
    run.fail(3)

    body = run.machine.counts()["body"]

    assert (2, 1, 1, 1, 1, 0, 0) == tuple(body)
    assert ("ready", "queued", "running", "waiting", "done", "failed", "cancelled") == body._fields
    assert (0,) * 7 == tuple(run.machine.counts()["join"])


def test_a_task_that_was_interrupted_starts_again_before_all_others() -> None:
    run = Run(BRANCHES, max_workers=1)
    run.start()
    run.succeed(1)

    commands = run.end(2, AttemptState.INTERRUPTED)

    assert LaunchAttempt(2, "left", 1, FromTask(1)) == commands[-1]


@pytest.mark.parametrize(("workers", "lookahead"), [(0, 0), (-1, 3), (1, -1)])
def test_a_run_without_room_for_a_task_is_refused(workers: int, lookahead: int) -> None:
    with pytest.raises(ValueError, match="max_workers"):
        Run(LINE, max_workers=workers, lookahead=lookahead)


# ------------------------------------------------------------------ gangs

GANG = graph(
    foreach("s", "a", join="j"),
    foreach("a", "member", join="g", kind=Kind.PARALLEL),
    linear("member", "g"),
    linear("g", "j"),
    end("j"),
)


def test_the_members_of_a_gang_start_together_with_numbers_that_follow_one_another() -> None:
    run = Run(GANG, max_workers=4)
    run.start()
    run.succeed(1, count=3)  # tasks 2 to 4

    assert [] == launches(run.succeed(2, count=4))
    assert [] == launches(run.succeed(3, count=4))
    started = launches(run.succeed(4, count=4))
    assert [(5, 0), (6, 1), (7, 2), (8, 3)] == [(each.task, each.index) for each in started]


def test_no_item_starts_before_a_gang_whose_turn_has_come() -> None:
    run = Run(GANG, max_workers=3)
    run.start()
    run.succeed(1, count=9)  # tasks 2 to 4, and more to come

    assert [] == launches(run.succeed(2, count=3))
    assert [] == launches(run.succeed(3, count=3))
    assert ["member"] * 3 == [each.step for each in launches(run.succeed(4, count=3))]


def test_a_member_that_is_tried_again_finds_its_place_free() -> None:
    policies = {"member": StepPolicy(retries=1, wait=60.0)}
    run = Run(GANG, policies, max_workers=3)
    run.start()
    run.succeed(1, count=1)
    run.succeed(2, count=3)  # members 3 to 5

    assert [] == launches(run.end(3, AttemptState.FAILED))
    assert [(3, 1)] == [(each.task, each.attempt) for each in launches(run.wake())]


def test_two_gangs_that_lose_members_do_not_take_each_others_places() -> None:
    run = Run(GANG, {"member": StepPolicy(retries=1, wait=60.0)}, max_workers=4)
    run.start()
    run.succeed(1, count=2)
    run.succeed(2, count=2)
    run.succeed(3, count=2)
    members = sorted(run.live)
    assert 4 == len(members)
    run.end(members[0], AttemptState.FAILED)
    run.end(members[2], AttemptState.FAILED)

    again = [each.task for each in launches(run.wake())]

    assert [members[0], members[2]] == sorted(again)


def test_a_gang_keeps_its_places_within_the_limit_of_its_step_while_members_are_retried() -> None:
    policies = {"member": StepPolicy(retries=2, wait=60.0, max_workers=2)}
    run = Run(GANG, policies, max_workers=8)
    run.start()
    run.succeed(1, count=2)
    run.succeed(2, count=2)
    run.succeed(3, count=2)
    first = sorted(run.live)
    assert 2 == len(first)

    # Members of the other gang would take the places, and later wait for each other in vain.
    assert [] == launches(run.end(first[0], AttemptState.FAILED))
    assert [] == launches(run.end(first[1], AttemptState.FAILED))
    assert first == sorted(each.task for each in launches(run.wake()))
    run.succeed(first[0])
    assert ["member"] * 2 == [each.step for each in launches(run.succeed(first[1]))][-2:]


def test_a_gang_that_its_step_has_no_room_for_is_refused() -> None:
    run = Run(GANG, {"member": StepPolicy(max_workers=2)}, max_workers=8)
    run.start()
    run.succeed(1, count=1)
    run.succeed(2, count=3)

    assert run.machine.stopping is not None
    assert "only 2 tasks of member may" in run.machine.stopping.reason
