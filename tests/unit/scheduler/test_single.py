"""The machine of a run with one task."""

from __future__ import annotations

import pytest

from aflow.scheduler.machine import SingleTask
from aflow.scheduler.messages import (
    AttemptEnded,
    AttemptStarted,
    CancelAttempt,
    CancelRequested,
    FinishRun,
    LaunchAttempt,
    NoInputs,
    Outcome,
    RunStarted,
    TaskSettled,
    Transition,
)
from aflow.scheduler.states import AttemptState, RunState

LAUNCH = LaunchAttempt(7, "work", 0, NoInputs())


@pytest.fixture
def machine() -> SingleTask:
    """Return a machine that has started."""
    made = SingleTask(LAUNCH)
    assert [LAUNCH] == made.handle(RunStarted(), 0.0)
    return made


def ended(state: AttemptState, reason: str = "") -> AttemptEnded:
    """Return the event of the task's end."""
    transition = Transition(("end",)) if state is AttemptState.SUCCEEDED else None
    return AttemptEnded(7, 0, Outcome(state, transition, reason))


def test_a_success_of_the_task_is_one_of_the_run(machine: SingleTask) -> None:
    assert [TaskSettled(7, 0, True), FinishRun(RunState.SUCCEEDED)] == machine.handle(
        ended(AttemptState.SUCCEEDED), 1.0
    )
    assert 1 == machine.counts()["work"].done


def test_when_the_inputs_of_the_one_task_were_there_is_not_known(machine: SingleTask) -> None:
    assert machine.ready_at(7) is None


def test_a_failure_of_the_task_is_one_of_the_run(machine: SingleTask) -> None:
    assert [
        TaskSettled(7, 0, False, "broken"),
        FinishRun(RunState.FAILED, "broken", "work", 7),
    ] == machine.handle(ended(AttemptState.FAILED, "broken"), 1.0)
    assert 1 == machine.counts()["work"].failed


def test_a_cancelled_run_waits_for_its_task(machine: SingleTask) -> None:
    event = CancelRequested("enough")
    assert [CancelAttempt(7, 0)] == machine.handle(event, 1.0)
    assert machine.journaled(event)
    assert [] == machine.handle(CancelRequested("again"), 1.0)
    assert FinishRun(RunState.CANCELLED, "enough") == machine.stopping
    assert (
        FinishRun(RunState.CANCELLED, "enough")
        == machine.handle(ended(AttemptState.CANCELLED), 2.0)[-1]
    )


def test_a_run_that_is_cancelled_before_it_begins_ends_at_once() -> None:
    machine = SingleTask(LAUNCH)
    assert [FinishRun(RunState.CANCELLED, "no")] == machine.handle(CancelRequested("no"), 0.0)
    assert [] == machine.handle(RunStarted(), 0.0)


def test_what_changes_nothing_is_not_journaled(machine: SingleTask) -> None:
    for event in (RunStarted(), AttemptStarted(7, 0), ended(AttemptState.FAILED)._replace(task=8)):
        assert [] == machine.handle(event, 0.0)
        assert not machine.journaled(event)
    machine.handle(ended(AttemptState.SUCCEEDED), 1.0)
    late = ended(AttemptState.FAILED)
    assert [] == machine.handle(late, 2.0)
    assert not machine.journaled(late)
