"""A machine that is rebuilt from its journal equals the machine that wrote it."""

from __future__ import annotations

from aflow.scheduler.messages import AttemptEnded, CancelRequested, Outcome, RunStarted, TimePassed
from aflow.scheduler.retry import StepPolicy
from aflow.scheduler.states import AttemptState, RunState
from tests.machine.driving import Run
from tests.machine.graphs import LINE, NESTED, WIDE
from tests.machine.inspection import handles, queued, snapshot, statistics


def half_way() -> Run:
    """Return a run with something of every kind: live, started, waiting, ready, parked, open."""
    policies = {
        "inner": StepPolicy(retries=2, wait=5.0, max_workers=2),
        "outer": StepPolicy(retries=1),
    }
    run = Run(NESTED, policies, max_workers=4)
    run.start()
    run.succeed(1, count=6)
    run.begin(2, "job-2")
    run.succeed(2, count=4)
    run.succeed(3, count=4)
    run.fail(min(run.live))
    run.begin(max(run.live))
    inner = [launch.task for launch in run.live.values() if launch.step == "inner"]
    run.fail(inner[0])
    run.lose(inner[1])
    return run


def test_a_replay_gives_an_equal_machine() -> None:
    run = half_way()

    replayed = run.replayed()

    assert snapshot(run.machine) == snapshot(replayed)
    assert run.machine.live() == replayed.live()
    assert queued(run.machine) == queued(replayed)
    assert handles(run.machine) == handles(replayed)
    assert run.machine.wake_at == replayed.wake_at


def test_a_replayed_machine_goes_on_to_the_end() -> None:
    run = half_way()
    run.machine = run.replayed()

    while run.finish is None:
        if not run.live:
            run.wake()
        else:
            task = min(run.live)
            run.succeed(task, count=2 if run.live[task].step == "outer" else None)

    assert RunState.SUCCEEDED is run.finish.state


def test_machines_that_differ_are_not_equal() -> None:
    run, other = Run(LINE), Run(LINE)
    run.start()

    assert snapshot(run.machine) != snapshot(other.machine)
    other.start()
    assert snapshot(run.machine) == snapshot(other.machine)
    run.begin(1)
    assert snapshot(run.machine) != snapshot(other.machine)


def test_only_what_changed_something_is_stored() -> None:
    machine = Run(LINE).machine
    start = RunStarted()
    machine.handle(start, 0.0)
    assert machine.journaled(start)

    for nothing in (
        RunStarted(),
        TimePassed(),
        AttemptEnded(9, 0, Outcome(AttemptState.FAILED)),
        AttemptEnded(1, 5, Outcome(AttemptState.FAILED)),
    ):
        machine.handle(nothing, 0.0)
        assert not machine.journaled(nothing)

    cancel = CancelRequested()
    machine.handle(cancel, 0.0)
    assert machine.journaled(cancel)
    machine.handle(cancel, 0.0)
    assert not machine.journaled(cancel)


def test_a_snapshot_of_a_finished_run_holds_no_tasks() -> None:
    run = Run(WIDE)
    run.start()
    run.succeed(1, count=50)
    while run.live:
        run.succeed(min(run.live))

    _, board = snapshot(run.machine)
    *_, live, ready, cursors, waiting, _, groups = board

    assert ((), (), (), (), ()) == (live, ready, cursors, waiting, groups)
    assert {
        "launched": 53,
        "finished": 53,
        "live": 0,
        "ready": 0,
        "waiting": 0,
        "splits": 1,
        "open": 0,
    } == statistics(run.machine)
