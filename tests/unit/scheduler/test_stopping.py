"""Runs that fail or are cancelled: running tasks may finish, no others start, the run ends once."""

from __future__ import annotations

from typing import Any

import pytest

from aflow.scheduler.messages import (
    AttemptEnded,
    AttemptStarted,
    CancelAttempt,
    FinishRun,
    Outcome,
    RunStarted,
    TaskSettled,
    TimePassed,
    Transition,
)
from aflow.scheduler.retry import StepPolicy
from aflow.scheduler.states import AttemptState, RunState
from tests.machine.driving import Run
from tests.machine.graphs import BRANCHES, LINE, WIDE
from tests.machine.inspection import handles

NOT_RETRIED = StepPolicy(retries=1, wait=60.0)


def fanned_out(count: int = 3, policy: StepPolicy | None = None, **options: Any) -> Run:
    """Return a foreach whose first items are live, as tasks 2, 3 and 4."""
    run = Run(WIDE, {"body": policy or StepPolicy()}, **{"max_workers": 3, **options})
    run.start()
    run.succeed(1, count=count)
    return run


def test_the_others_may_finish_when_one_task_fails() -> None:
    run = fanned_out(count=10)

    assert [TaskSettled(2, 0, False, "It broke.")] == run.fail(2)
    assert [TaskSettled(3, 0, True)] == run.succeed(3)
    assert RunState.RUNNING is run.machine.state
    assert [
        TaskSettled(4, 0, True),
        FinishRun(RunState.FAILED, "It broke.", "body", 2),
    ] == run.succeed(4)


def test_the_run_is_named_after_its_first_failure() -> None:
    run = fanned_out()
    run.fail(3, "First.")
    run.fail(2, "Second.")
    run.succeed(4)

    assert FinishRun(RunState.FAILED, "First.", "body", 3) == run.finish
    assert 2 == run.machine.counts()["body"].failed


def test_no_retry_starts_in_a_run_that_fails() -> None:
    run = fanned_out(policy=NOT_RETRIED)
    run.fail(2)
    run.fail(3, retryable=False)

    assert "Not tried again: It broke." == run.settled[2].reason
    assert run.machine.wake_at is None
    assert [TaskSettled(4, 0, False, "It broke.")] == run.fail(4)[:1]
    assert run.finish is not None


@pytest.mark.parametrize(
    "state", [AttemptState.LOST, AttemptState.INTERRUPTED, AttemptState.CANCELLED]
)
def test_an_attempt_cut_short_in_a_run_that_fails_is_cancelled(state: AttemptState) -> None:
    run = fanned_out(count=2)
    run.fail(2)
    run.end(3, state)

    assert 1 == run.machine.counts()["body"].cancelled
    assert run.finish is not None
    assert 2 == run.finish.task


def test_fail_fast_cancels_the_others() -> None:
    run = fanned_out(fail_fast=True)

    assert [
        TaskSettled(3, 0, False, "It broke."),
        CancelAttempt(2, 0),
        CancelAttempt(4, 0),
    ] == run.fail(3)
    run.end(2, AttemptState.CANCELLED)
    run.end(4, AttemptState.CANCELLED)
    assert FinishRun(RunState.FAILED, "It broke.", "body", 3) == run.finish


def test_a_cancelled_run_ends_when_its_attempts_have() -> None:
    run = fanned_out(count=10)

    assert [CancelAttempt(2, 0), CancelAttempt(3, 0), CancelAttempt(4, 0)] == run.cancel("Ctrl-C.")
    run.end(2, AttemptState.CANCELLED)
    run.succeed(3)
    assert [None] == [run.finish]
    run.fail(4)
    assert FinishRun(RunState.CANCELLED, "Ctrl-C.") == run.finish
    assert (1, 1, 1) == run.machine.counts()["body"][-3:]


def test_cancelling_twice_is_cancelling_once() -> None:
    run = fanned_out()
    run.cancel()

    assert [] == run.cancel()


def test_a_run_can_be_cancelled_before_it_has_begun() -> None:
    run = Run(LINE)

    assert [FinishRun(RunState.CANCELLED, "Never mind.")] == run.cancel("Never mind.")
    assert [] == run.start()
    assert RunState.CANCELLED is run.machine.state


def test_a_run_can_be_cancelled_while_a_retry_waits() -> None:
    run = Run(LINE, {"start": NOT_RETRIED})
    run.start()
    run.fail(1)

    assert [
        TaskSettled(1, 0, False, "Not tried again: Enough."),
        FinishRun(RunState.CANCELLED, "Enough."),
    ] == run.cancel("Enough.")


def test_a_run_that_fails_already_stays_failed_when_it_is_cancelled() -> None:
    run = fanned_out(count=2)
    run.fail(2)

    assert [CancelAttempt(3, 0)] == run.cancel()
    run.end(3, AttemptState.CANCELLED)
    assert FinishRun(RunState.FAILED, "It broke.", "body", 2) == run.finish


def test_nothing_follows_a_success_in_a_cancelled_run() -> None:
    run = Run(LINE)
    run.start()
    run.cancel("Enough.")

    assert [
        TaskSettled(1, 0, True),
        FinishRun(RunState.CANCELLED, "Enough."),
    ] == run.succeed(1)


def test_everything_after_the_end_is_ignored() -> None:
    run = Run(LINE)
    run.start()
    run.fail(1)

    assert [] == run.tell(RunStarted())
    assert [] == run.tell(TimePassed())
    assert [] == run.cancel()
    assert [] == run.tell(AttemptStarted(1, 0))
    assert [] == run.tell(AttemptEnded(1, 0, Outcome(AttemptState.FAILED)))


def test_a_late_report_of_an_old_attempt_is_ignored() -> None:
    run = Run(LINE, {"start": StepPolicy(retries=1)})
    run.start()
    run.fail(1)

    late = Outcome(AttemptState.SUCCEEDED, Transition(("middle",)))

    assert [] == run.tell(AttemptEnded(1, 0, late))
    assert [] == run.tell(AttemptStarted(1, 0))
    assert ["middle"] == [run.live[2].step for _ in run.succeed(1)[:1]]


def test_a_report_of_an_attempt_that_waits_for_its_retry_is_ignored() -> None:
    run = Run(LINE, {"start": NOT_RETRIED})
    run.start()
    run.fail(1)

    assert [] == run.tell(AttemptEnded(1, 0, Outcome(AttemptState.FAILED)))
    assert [] == run.tell(AttemptEnded(1, 1, Outcome(AttemptState.FAILED)))


def test_a_second_report_of_the_same_end_is_ignored() -> None:
    run = Run(BRANCHES)
    run.start()
    run.succeed(1)
    ended = AttemptEnded(2, 0, Outcome(AttemptState.SUCCEEDED, Transition(("join",))))
    run.tell(ended)

    assert [] == run.tell(ended)
    assert ["right"] == run.steps()


def test_a_second_report_of_the_same_beginning_is_ignored() -> None:
    run = Run(LINE)
    run.start()
    run.begin(1, "job-1")

    assert [] == run.begin(1, "job-2")
    assert {1: "job-1"} == handles(run.machine)


def test_a_report_of_a_task_that_never_was_is_ignored() -> None:
    run = Run(LINE)
    run.start()

    assert [] == run.tell(AttemptEnded(17, 0, Outcome(AttemptState.FAILED)))
    assert [] == run.tell(AttemptEnded(0, 0, Outcome(AttemptState.FAILED)))
    assert [] == run.tell(AttemptEnded(-1, 0, Outcome(AttemptState.FAILED)))


def test_nothing_but_a_start_or_a_cancellation_begins_a_run() -> None:
    run = Run(LINE)

    assert [] == run.tell(AttemptEnded(1, 0, Outcome(AttemptState.FAILED)))
    assert [] == run.tell(TimePassed())
    assert RunState.PENDING is run.machine.state
