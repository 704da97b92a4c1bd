"""How the jobs of a state machine are submitted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aflow.aws.definitions import limit_of
from aflow.deploy.machine import JobOf

if TYPE_CHECKING:
    from aflow.aws.settings import AwsSettings
    from aflow.flow.definition import StepDefinition

PROGRAM = "aflow.deploy.inside"


def job_of(step: StepDefinition | None, definition: str, settings: AwsSettings) -> JobOf:
    """How the step's job is submitted; None is the job for what belongs to no step."""
    if step is None:
        return JobOf(definition, 2, limit_of(None, settings))
    retry = step.decorator("retry")
    batch: Any = step.decorator("batch")
    # An attempt waits in its container before it tries again, and starts it first.
    wait = retry.wait_seconds if retry and retry.times else 0.0
    return JobOf(
        definition,
        retry.times if retry else 0,
        limit_of(step, settings, wait),
        step.decorator("catch") is not None,
        batch.queue if batch else None,
        (batch.aws_batch_tags if batch else None) or {},
    )
