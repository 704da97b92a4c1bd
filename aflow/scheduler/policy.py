"""How a step may fail and how wide it may run: its policy, as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from aflow.errors import InvalidSetting

if TYPE_CHECKING:
    from aflow.flow.definition import FlowDefinition, StepDefinition

MAX_LOSSES = 3
"""A task whose attempts were lost this often, for no known reason, is not tried again."""

MAX_FALLBACKS = 3
"""How many fallback attempts may settle a task of a step that catches."""


@dataclass(frozen=True, slots=True)
class StepPolicy:
    """`retries` further attempts after a failure, each `wait` seconds later.

    With `catches` a task that is out of attempts is settled by a fallback attempt instead of
    failing. `max_workers` bounds the step's own live attempts, None leaves that to the run. Raises
    InvalidSetting for a value that cannot be meant.
    """

    retries: int = 0
    wait: float = 0.0
    catches: bool = False
    max_workers: int | None = None

    def __post_init__(self) -> None:
        if self.retries < 0:
            raise InvalidSetting(f"A step cannot be retried {self.retries} times; give 0 or more.")
        if not (self.wait >= 0 and math.isfinite(self.wait)):
            raise InvalidSetting(f"A retry cannot wait {self.wait} seconds; give 0 or more.")
        if self.max_workers is not None and self.max_workers < 1:
            raise InvalidSetting(
                f"A step cannot run on {self.max_workers} workers; give max_workers of 1 or more."
            )

    def as_dict(self) -> dict[str, Any]:
        """The policy as values that JSON and msgpack can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StepPolicy:
        """The policy that `as_dict` gave; unknown keys of a later version are ignored."""
        return cls(**{key: value for key, value in data.items() if key in cls.__slots__})


def policies_from(definition: FlowDefinition) -> dict[str, StepPolicy]:
    """The policy of every step, as its @retry and @catch say."""
    return {name: _policy_of(step) for name, step in definition.steps.items()}


def _policy_of(step: StepDefinition) -> StepPolicy:
    # Typed loosely: each decorator has its own options, and is known here by its name alone.
    retry: Any = step.decorator("retry")
    return StepPolicy(
        retries=retry.times if retry else 0,
        wait=retry.wait_seconds if retry else 0.0,
        catches=step.decorator("catch") is not None,
    )
