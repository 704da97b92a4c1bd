"""The policy of a step: its retries, and how many of its tasks may run at the same time.

Users configure these values with decorators, and the waits have no jitter. Retries of aflow's own
calls to databases and services are in `aflow/_core/backoff.py`.
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
"""The number of lost attempts after which a task is not retried."""

MAX_FALLBACKS = 3
"""The maximum number of fallback attempts that settle a failed task of a step with @catch."""


@dataclass(frozen=True, slots=True)
class StepPolicy:
    """The retries and limits of one step.

    A failed task is retried up to `retries` times: the first time after `wait` seconds; each
    further wait is `backoff` times as long as the one before, and at most `longest_wait`. If
    `catches` is True, a task without attempts left is settled by a fallback attempt instead of
    failing. `max_workers` limits the live attempts of the step; None means no limit besides that of
    the run. Raises InvalidSetting if a value is out of range.
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
        """Return the seconds to wait before a retry.

        Args:
            retry: The number of the retry, from 1.
        """
        wait = self.wait
        for _ in range(retry - 1):  # step by step: a power of `backoff` could overflow
            wait = min(wait * self.backoff, self.longest_wait)
        return wait

    def as_dict(self) -> dict[str, Any]:
        """Return the policy as values that JSON and msgpack can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StepPolicy:
        """Return the policy from the result of `as_dict`; keys of later versions are ignored.

        Args:
            data: The result of `as_dict`.
        """
        return cls(**{key: value for key, value in data.items() if key in cls.__slots__})


def policies_from(
    definition: FlowDefinition, retry_wait: float | None = None, one_at_a_time: str | None = None
) -> dict[str, StepPolicy]:
    """Return the policy of each step, from its @retry, @catch and @concurrency.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        retry_wait: Seconds before each retry, instead of the waits in @retry; None uses @retry.
        one_at_a_time: The name of a step whose tasks run one after the other, or None.
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
    """Return the policy of a step, from its @retry, @catch and @concurrency.

    Args:
        step: The step, with its decorators.
    """
    # Any: this layer cannot import the decorator classes.
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
