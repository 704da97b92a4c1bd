from __future__ import annotations

import pytest

from aflow.runs.attempts import LiveAttempt
from aflow.scheduler.states import AttemptState
from aflow.task.spec import AttemptReport


@pytest.mark.parametrize(("ended_at", "recorded"), [(99.0, 100.0), (101.0, 101.0), (None, 102.0)])
def test_no_attempt_ends_before_it_began_whatever_the_clocks_say(
    ended_at: float | None, recorded: float
) -> None:
    attempt = LiveAttempt("work", fallback=False)
    attempt.started_at = 100.0
    report = AttemptReport(1, 0, AttemptState.SUCCEEDED.value, finished_at=ended_at or 0.0)

    assert recorded == attempt.ended(report, None, None, 102.0).finished_at
