"""Recovery of orphaned runs: how often it is tried, and when it is given up."""

from __future__ import annotations

from aflow.metadata.base import RunLease, RunRecord
from aflow.scheduler.states import RunState
from aflow.server.recovery import Tries, next_for


def left(cancel: str | None = None, seconds: float = 0.0) -> RunRecord:
    """Return a run that has been orphaned for this many seconds."""
    return RunRecord(
        1, "Flow", "1", RunState.RUNNING, "ann", 1.0, None, 0, (), (), {}, {},
        lease=RunLease("server/gone", -seconds, cancel),
    )  # fmt: skip


def test_a_run_that_was_left_is_taken_up_and_after_a_failure_later_again() -> None:
    assert "recover" == next_for(Tries(since=0.0), left(), 0.0, 3600.0)
    tries = Tries(since=0.0, begun=1, failed=1, not_before=4.0)
    assert "wait" == next_for(tries, left(), 3.0, 3600.0)
    assert "recover" == next_for(tries, left(), 4.0, 3600.0)


def test_a_run_that_is_to_be_cancelled_is_tried_once_and_then_ended() -> None:
    assert "recover" == next_for(Tries(since=0.0, not_before=300.0), left("enough"), 1.0, 3600.0)
    assert "cancel" == next_for(Tries(since=0.0, begun=1, failed=1), left("enough"), 1.0, 3600.0)


def test_a_run_fails_when_nobody_could_take_it_up_for_the_time_that_was_said() -> None:
    tries = Tries(since=0.0, begun=9, failed=9, not_before=9e9)
    assert "wait" == next_for(tries, left(seconds=3500.0), 3599.0, 3600.0)
    assert "fail" == next_for(tries, left(seconds=3500.0), 3600.0, 3600.0)
    assert "fail" == next_for(tries, left(seconds=3600.0), 10.0, 3600.0)
    # A server that was away for hours tries for a minute first.
    tries = Tries(since=0.0, begun=4, failed=4)
    assert "recover" == next_for(tries, left(seconds=90000.0), 30.0, 3600.0)
