"""Failures, losses, interruptions, and retries."""

from __future__ import annotations

import pytest

from aflow.flow.graph import Graph
from aflow.scheduler.messages import (
    FinishRun,
    FromTask,
    LaunchAttempt,
    NoInputs,
    RetryAttempt,
    TaskSettled,
    TimePassed,
)
from aflow.scheduler.retry import StepPolicy
from aflow.scheduler.states import AttemptState, RunState
from tests.machine.driving import Run, launches
from tests.machine.graphs import LINE, WIDE, end, graph

ONE: Graph = graph(end("only"))


def started(policy: StepPolicy | None = None) -> Run:
    run = Run(ONE, {"only": policy or StepPolicy()})
    run.start()
    return run


@pytest.mark.parametrize("state", [AttemptState.FAILED, AttemptState.TIMED_OUT])
def test_a_failed_attempt_is_tried_again_after_the_wait(state: AttemptState) -> None:
    run = started(StepPolicy(retries=1, wait=30.0))

    assert [RetryAttempt(1, 0, run.now + 30)] == run.end(1, state, "It broke.")
    assert run.now + 30 == run.machine.wake_at
    assert [LaunchAttempt(1, "only", 1, NoInputs(), final=True)] == run.wake()
    assert run.machine.wake_at is None


def test_a_retry_does_not_start_before_its_time() -> None:
    run = started(StepPolicy(retries=1, wait=30.0))
    run.fail(1)
    run.now += 29

    assert [] == run.tell(TimePassed())


def test_a_retry_without_a_wait_starts_at_once() -> None:
    run = started(StepPolicy(retries=1))

    assert [RetryAttempt(1, 0, run.now), LaunchAttempt(1, "only", 1, NoInputs())] == run.fail(1)


def test_retries_that_are_due_start_in_the_order_of_their_times() -> None:
    run = Run(WIDE, {"body": StepPolicy(retries=1, wait=10.0)})
    run.start()
    run.succeed(1, count=3)
    run.fail(3)
    run.now += 1
    run.fail(2)
    run.fail(4)
    run.now += 100

    assert [3, 2, 4] == [each.task for each in launches(run.tell(TimePassed()))]


def test_only_the_last_attempt_is_final() -> None:
    run = started(StepPolicy(retries=2))
    run.fail(1)
    run.fail(1)

    assert [False, False, True] == [launch.final for launch in run.launched]


def test_a_task_that_is_out_of_attempts_fails_the_run_with_its_reason() -> None:
    run = started(StepPolicy(retries=1))
    run.fail(1)

    assert [
        TaskSettled(1, 1, False, "Disk full."),
        FinishRun(RunState.FAILED, "Disk full.", "only", 1),
    ] == run.fail(1, "Disk full.")


def test_a_failure_without_a_reason_is_given_one() -> None:
    run = started()
    run.fail(1, "")

    assert run.finish is not None
    assert "Attempt 0 of step only (task 1) ended as failed" in run.finish.reason


def test_a_failure_that_asks_for_no_retry_gets_none() -> None:
    run = started(StepPolicy(retries=3))
    run.fail(1, retryable=False)

    assert run.finish is not None
    assert RunState.FAILED is run.finish.state


def test_a_loss_costs_no_retry() -> None:
    run = started(StepPolicy(retries=1, wait=60.0))

    assert [
        RetryAttempt(1, 0, run.now),
        LaunchAttempt(1, "only", 1, NoInputs(), final=False),
    ] == run.lose(1)


def test_a_task_that_is_lost_three_times_fails_and_says_so() -> None:
    run = started(StepPolicy(retries=5))
    run.lose(1)
    run.lose(1)
    run.lose(1)

    assert run.finish is not None
    assert RunState.FAILED is run.finish.state
    assert "lost 3 times, so it is not tried again; the last time: " in run.finish.reason
    assert "The machine is gone." in run.finish.reason


def test_a_loss_that_asks_for_no_retry_is_a_failure() -> None:
    run = started()
    run.end(1, AttemptState.LOST, "Delivered too often.", retryable=False)

    assert run.finish is not None
    assert "Delivered too often." == run.finish.reason


@pytest.mark.parametrize("state", [AttemptState.INTERRUPTED, AttemptState.CANCELLED])
def test_an_interruption_costs_nothing_however_often_it_happens(state: AttemptState) -> None:
    run = started(StepPolicy(retries=1, wait=60.0))
    for _ in range(10):
        run.end(1, state)

    assert [False] * 11 == [launch.final for launch in run.launched]
    assert 10 == run.live[1].attempt


def test_an_attempt_number_is_never_used_twice() -> None:
    run = started(StepPolicy(retries=1))
    run.lose(1)
    run.end(1, AttemptState.INTERRUPTED)
    run.fail(1)

    assert [0, 1, 2, 3] == [launch.attempt for launch in run.launched]


@pytest.mark.parametrize(
    "state", [AttemptState.FAILED, AttemptState.TIMED_OUT, AttemptState.INTERRUPTED]
)
def test_a_retry_has_the_inputs_and_place_of_the_first_attempt(state: AttemptState) -> None:
    run = Run(WIDE, {"body": StepPolicy(retries=1)}, max_workers=1)
    run.start()
    run.succeed(1, count=2)
    run.end(2, state)

    [first, second] = run.launched[1:]

    assert (FromTask(1), 1, 0, 2, True) == (
        second.inputs,
        second.split,
        second.index,
        second.count,
        second.opens_index,
    )
    assert (first.task, first.inputs) == (second.task, second.inputs)


# ---------------------------------------------------------------------- @catch


@pytest.mark.parametrize(
    "state", [AttemptState.FAILED, AttemptState.TIMED_OUT, AttemptState.QUEUED]
)
def test_a_step_that_catches_is_settled_by_a_fallback_when_its_process_dies(
    state: AttemptState,
) -> None:
    run = Run(LINE, {"start": StepPolicy(retries=1, wait=5.0, catches=True)})
    run.start()
    run.end(1, state)
    run.wake()
    assert run.live[1].final

    assert [
        RetryAttempt(1, 1, run.now),
        LaunchAttempt(1, "start", 2, NoInputs(), final=False, fallback=True),
    ] == run.end(1, state)
    assert ["middle"] == [each.step for each in launches(run.succeed(1))]


def test_the_third_fallback_is_the_last() -> None:
    run = started(StepPolicy(catches=True))
    for _ in range(4):
        run.fail(1)

    fallbacks = [(launch.fallback, launch.final) for launch in run.launched]

    assert [(False, True), (True, False), (True, False), (True, True)] == fallbacks
    assert run.finish is not None
    assert RunState.FAILED is run.finish.state


def test_a_lost_fallback_counts_as_one() -> None:
    run = started(StepPolicy(catches=True))
    run.fail(1)
    for _ in range(3):
        run.lose(1)

    assert run.finish is not None
    assert RunState.FAILED is run.finish.state


def test_an_interrupted_fallback_is_launched_again_as_it_was() -> None:
    run = started(StepPolicy(catches=True))
    run.fail(1)
    before = run.live[1]
    run.end(1, AttemptState.INTERRUPTED)

    assert (True, before.final) == (run.live[1].fallback, run.live[1].final)


def test_a_poison_task_of_a_step_that_catches_goes_to_the_fallback() -> None:
    run = started(StepPolicy(retries=3, catches=True))
    for _ in range(3):
        run.lose(1)

    assert run.live[1].fallback


def test_a_failure_that_asks_for_no_retry_goes_to_the_fallback_if_the_step_catches() -> None:
    run = started(StepPolicy(retries=3, catches=True))
    run.fail(1, retryable=False)

    assert run.live[1].fallback
