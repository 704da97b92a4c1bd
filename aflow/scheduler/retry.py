"""How a step may fail and how wide it may run: its policy, as plain data.

This is what users configure. Tries of aflow's own calls have `aflow/_core/backoff.py`: their times
are nobody's setting, and have jitter, while a user's waits are as long as they were given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aflow._core.records import asdict, dataclass, replace
from aflow.errors import InvalidSetting

if TYPE_CHECKING:
    from aflow.flow.definition import FlowDefinition, StepDefinition

MAX_LOSSES = 3
"""A task whose attempts were lost this often is not tried again."""

MAX_FALLBACKS = 3
"""How many fallback attempts may settle a task of a step that catches."""


@dataclass(frozen=True, slots=True)
class StepPolicy:
    """`retries` further attempts after a failure: the first `wait` seconds later, each following
    one after `backoff` times as long as the one before, but never after more than `longest_wait`.

    With `catches` a task that is out of attempts is settled by a fallback attempt instead of
    failing. `max_workers` bounds the step's own live attempts, None leaves that to the run. Raises
    InvalidSetting for a value that cannot be meant.
    """

    retries: int = 0
    wait: float = 0.0
    catches: bool = False
    max_workers: int | None = None
    backoff: float = 1.0
    longest_wait: float = 3600.0

    def __post_init__(self) -> None:
        if self.retries < 0:
            raise InvalidSetting(f"A step cannot be retried {self.retries} times; give 0 or more.")
        if not (self.wait >= 0 and math.isfinite(self.wait)):
            raise InvalidSetting(f"A retry cannot wait {self.wait} seconds; give 0 or more.")
        if not (self.backoff >= 1 and math.isfinite(self.backoff)):
            raise InvalidSetting(f"A wait cannot grow {self.backoff} times; give 1 or more.")
        if self.max_workers is not None and self.max_workers < 1:
            raise InvalidSetting(
                f"A step cannot run on {self.max_workers} workers; give max_workers of 1 or more."
            )

    def wait_before(self, retry: int) -> float:
        """Return seconds before a retry, the first of which is 1.

        Args:
            retry: The number of the retry, from 1.
        """
        wait = self.wait
        for _ in range(retry - 1):  # step by step: a power of it might be too large for a number
            wait = min(wait * self.backoff, self.longest_wait)
        return wait

    def as_dict(self) -> dict[str, Any]:
        """Return the policy as values that JSON and msgpack can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StepPolicy:
        """Return the policy that `as_dict` gave; unknown keys of a later version are ignored.

        Args:
            data: The encoded form.
        """
        return cls(**{key: value for key, value in data.items() if key in cls.__slots__})


def policies_from(
    definition: FlowDefinition, retry_wait: float | None = None, one_at_a_time: str | None = None
) -> dict[str, StepPolicy]:
    """Return the policy of every step, as its @retry, @catch and @concurrency say. With
    `retry_wait` so many seconds pass between any two attempts, whatever @retry says. Tasks of the
    step `one_at_a_time` run one after the other.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        retry_wait: Seconds before a retry that override those of the steps; None for theirs.
        one_at_a_time: The name of the step whose tasks run one after the other; None for none.
    """
    found = {name: policy_of(step) for name, step in definition.steps.items()}
    if one_at_a_time in found:
        found[one_at_a_time] = replace(found[one_at_a_time], max_workers=1)
    if retry_wait is None:
        return found
    return {
        name: replace(each, wait=retry_wait, backoff=1.0, longest_wait=max(retry_wait, 1.0))
        for name, each in found.items()
    }


def policy_of(step: StepDefinition) -> StepPolicy:
    """Return the policy of a step, as its @retry, @catch and @concurrency say.

    Args:
        step: The step, with its decorators.
    """
    # Typed loosely: each decorator has its own options, and is known here by its name alone.
    retry: Any = step.decorator("retry")
    concurrency: Any = step.decorator("concurrency")
    policy = StepPolicy(
        catches=step.decorator("catch") is not None,
        max_workers=concurrency.limit if concurrency else None,
    )
    if not retry:
        return policy
    return replace(
        policy,
        retries=retry.times,
        wait=retry.wait_seconds,
        backoff=retry.backoff,
        longest_wait=max(retry.max_seconds, retry.wait_seconds),
    )
