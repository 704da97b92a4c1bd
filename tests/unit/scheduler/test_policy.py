"""Policies: their validation, their serialization, and how they are derived from a flow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import pytest

from aflow.errors import InvalidSetting
from aflow.flow.definition import FlowDefinition, StepDefinition
from aflow.scheduler.retry import StepPolicy, policies_from


@pytest.mark.parametrize(
    ("options", "story"),
    [
        ({"retries": -1}, "retried -1 times"),
        ({"wait": -0.5}, "wait -0.5 seconds"),
        ({"wait": float("nan")}, "wait nan seconds"),
        ({"wait": float("inf")}, "wait inf seconds"),
        ({"max_workers": 0}, "on 0 workers"),
        ({"backoff": 0.5}, "grow 0.5 times"),
    ],
)
def test_a_policy_that_cannot_be_meant_is_refused(options: dict[str, Any], story: str) -> None:
    with pytest.raises(InvalidSetting, match=story):
        StepPolicy(**options)


def test_a_policy_survives_being_stored() -> None:
    policy = StepPolicy(3, 1.5, catches=True, max_workers=2, backoff=2.0, longest_wait=9.0)

    assert policy == StepPolicy.from_dict(policy.as_dict())


def test_keys_of_a_later_version_are_ignored() -> None:
    assert StepPolicy(retries=1) == StepPolicy.from_dict({"retries": 1, "jitter": 0.5})


@dataclass(frozen=True)
class Decorator:
    """A decorator as the policy sees it."""

    decorator_name: str
    times: int = 0
    wait_seconds: float = 0.0
    backoff: float = 1.0
    max_seconds: float = 60.0
    limit: int = 1


def step(name: str, *decorators: Decorator) -> StepDefinition:
    return StepDefinition(
        name=name,
        function=step,
        decorators=cast(Any, decorators),
        is_async=False,
        takes_inputs=False,
        file="flow.py",
        line=1,
    )


def test_policies_are_read_off_the_decorators() -> None:
    steps = [
        step("start"),
        step("a", Decorator("retry", times=4, wait_seconds=120.0)),
        step("b", Decorator("catch"), Decorator("retry", times=1, backoff=3.0)),
        step("c", Decorator("concurrency", limit=4)),
        step("end", Decorator("resources")),
    ]
    definition = cast(FlowDefinition, type("", (), {"steps": {each.name: each for each in steps}}))

    assert {
        "start": StepPolicy(),
        "a": StepPolicy(retries=4, wait=120.0, longest_wait=120.0),
        "b": StepPolicy(retries=1, catches=True, backoff=3.0, longest_wait=60.0),
        "c": StepPolicy(max_workers=4),
        "end": StepPolicy(),
    } == policies_from(definition)

    assert StepPolicy(max_workers=1) == policies_from(definition, one_at_a_time="start")["start"]
    soon: dict[str, Any] = {"wait": 0.5, "longest_wait": 1.0}
    assert {
        "start": StepPolicy(**soon),
        "a": StepPolicy(retries=4, **soon),
        "b": StepPolicy(retries=1, catches=True, **soon),
        "c": StepPolicy(max_workers=4, **soon),
        "end": StepPolicy(**soon),
    } == policies_from(definition, retry_wait=0.5)


@pytest.mark.parametrize(
    ("policy", "waits"),
    [
        (StepPolicy(wait=5.0), [5, 5, 5, 5]),
        (StepPolicy(wait=5.0, backoff=2.0, longest_wait=30.0), [5, 10, 20, 30]),
        (StepPolicy(wait=0.0, backoff=10.0), [0, 0, 0, 0]),
    ],
)
def test_waits_grow_up_to_the_longest(policy: StepPolicy, waits: list[float]) -> None:
    assert waits == [policy.wait_before(retry) for retry in range(1, 5)]
    assert policy.wait_before(50) <= policy.longest_wait
