"""What the next attempt at a task is, after those before it: a pure function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from aflow.scheduler.policy import MAX_FALLBACKS, MAX_LOSSES
from aflow.scheduler.states import AttemptState

if TYPE_CHECKING:
    from aflow.metadata.base import AttemptRecord
    from aflow.scheduler.policy import StepPolicy

_FAILED = (AttemptState.FAILED, AttemptState.TIMED_OUT)
_LOST = (AttemptState.LOST, AttemptState.RUNNING)  # one that never told of its end was lost


class Chance(NamedTuple):
    """The next attempt: its number, when it may begin, whether it is the last, and whether the
    step is not to be run, since @catch settles it."""

    attempt: int
    not_before: float
    final: bool
    fallback: bool


def next_chance(policy: StepPolicy, before: Sequence[AttemptRecord]) -> Chance | None:
    """What comes after these attempts, oldest first; None where the task has had all it may have.
    What was interrupted costs nothing."""
    number = before[-1].attempt + 1 if before else 0
    failures = sum(each.state in _FAILED for each in before)
    losses = sum(each.state in _LOST for each in before)
    if failures <= policy.retries and losses < MAX_LOSSES:
        failed = [each for each in before if each.state in _FAILED]
        last = failed[-1].finished_at if failed else None
        not_before = 0.0 if last is None else last + policy.wait
        return Chance(number, not_before, final=failures == policy.retries, fallback=False)
    if policy.catches and failures + losses <= policy.retries + MAX_LOSSES + MAX_FALLBACKS:
        return Chance(number, 0.0, final=True, fallback=True)
    return None
