"""Names, tokens, chances and definitions of jobs: what is decided before anybody is asked."""

from __future__ import annotations

import json

import pytest

from aflow import FlowSpec, batch, resources, step, timeout
from aflow.aws.settings import AwsSettings
from aflow.errors import InvalidInput, InvalidSetting
from aflow.executors.jobs.batch.definitions import definition_of
from aflow.flow.spec import define
from aflow.metadata.base import AttemptRecord
from aflow.scheduler.retry import StepPolicy
from aflow.scheduler.states import AttemptState
from aflow.step_functions.names import (
    Label,
    authorized,
    label_of,
    machine_name,
    next_token,
    rule_name,
)
from aflow.step_functions.plan import PROGRAM, job_of
from aflow.step_functions.tasks import NextAttempt, next_attempt

SETTINGS = AwsSettings(image="image:1", registry="host.example", job_role="arn:role")


class Needs(FlowSpec):
    @batch(cpu=2, memory=1000, shared_memory=64, use_tmpfs=True, aws_batch_tags={"a": "b"})
    @resources(cpu=1, memory=8000, gpu=1)
    @timeout(seconds=5)
    @step
    def start(self):
        self.next(self.end)

    @step
    def end(self):
        pass


def test_a_job_has_the_most_of_what_decorators_ask_for():
    start = define(Needs).steps["start"]
    definition = definition_of(start, SETTINGS, {"A": "1"}, PROGRAM)
    properties = definition["containerProperties"]
    needs = {each["type"]: each["value"] for each in properties["resourceRequirements"]}
    assert {"VCPU": "2", "MEMORY": "8000", "GPU": "1"} == needs
    assert "host.example/image:1" == properties["image"]
    assert 64 == properties["linuxParameters"]["sharedMemorySize"]
    assert 500 == properties["linuxParameters"]["tmpfs"][0]["size"]
    job = job_of(start, "name", SETTINGS)
    assert (0, 65, {"a": "b"}) == (job.retries, job.limit, job.tags)


def test_a_definition_is_named_by_its_content():
    steps = define(Needs).steps
    names = [
        definition_of(steps[name], SETTINGS, {"A": value}, PROGRAM)["jobDefinitionName"]
        for name, value in [("end", "1"), ("end", "1"), ("end", "2"), ("start", "1")]
    ]
    assert names[0] == names[1]
    assert 3 == len({*names})


def test_what_fargate_has_not_and_what_is_not_set_are_reported():
    steps = define(Needs).steps
    with pytest.raises(InvalidInput, match="Fargate, which has no sharedMemorySize, tmpfs"):
        definition_of(steps["start"], SETTINGS, {}, PROGRAM, fargate=True)
    with pytest.raises(InvalidSetting, match="AFLOW_ECS_FARGATE_EXECUTION_ROLE"):
        definition_of(steps["end"], SETTINGS, {}, PROGRAM, fargate=True)
    with pytest.raises(InvalidSetting, match="AFLOW_BATCH_CONTAINER_IMAGE"):
        definition_of(steps["end"], AwsSettings(job_role="x"), {}, PROGRAM)


def attempts(states: str) -> list[AttemptRecord]:
    """Attempts that have failed (f), were lost (l), interrupted (i) or never reported an end
    (r)."""
    kinds = {
        "f": AttemptState.FAILED,
        "l": AttemptState.LOST,
        "i": AttemptState.INTERRUPTED,
        "r": AttemptState.RUNNING,
    }
    return [
        AttemptRecord(1, number, kinds[each], 10.0 * number, 10.0 * number + 5)
        for number, each in enumerate(states)
    ]


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("", NextAttempt(0, 0.0, final=False, fallback=False)),
        ("f", NextAttempt(1, 65.0, final=True, fallback=False)),
        ("ff", NextAttempt(2, 0.0, final=True, fallback=True)),
        ("lf", NextAttempt(2, 75.0, final=True, fallback=False)),
        ("iiii", NextAttempt(4, 0.0, final=False, fallback=False)),
        ("lr", NextAttempt(2, 0.0, final=False, fallback=False)),
        ("llr", NextAttempt(3, 0.0, final=True, fallback=True)),
    ],
)
def test_what_the_next_attempt_is_follows_from_those_before(before, expected):
    policy = StepPolicy(retries=1, wait=60.0, catches=True)
    assert expected == next_attempt(policy, attempts(before))


def test_the_wait_before_an_attempt_grows_as_the_policy_says():
    policy = StepPolicy(retries=5, wait=10.0, backoff=2.0, longest_wait=30.0)
    waits = []
    for failures in range(1, 5):
        before = attempts("f" * failures)
        found = next_attempt(policy, before)
        assert found is not None
        assert before[-1].finished_at is not None
        waits.append(found.not_before - before[-1].finished_at)
    assert [10.0, 20.0, 30.0, 30.0] == waits


def test_a_step_that_does_not_catch_has_no_attempt_after_the_last():
    assert next_attempt(StepPolicy(retries=1), attempts("ff")) is None
    assert next_attempt(StepPolicy(retries=1), attempts("lll")) is None


def test_names_of_machines_and_rules_fit_into_what_aws_allows():
    assert "pre_p.user.me.Flow" == machine_name("Flow", "p.user.me.Flow", "pre", None)
    long = machine_name("F" * 90, "p.user.me." + "F" * 90, None, None)
    assert 77 == len(long)
    assert 64 >= len(rule_name(long)) > len("events")
    assert rule_name(long) != rule_name(long, "events")
    for bad in ("F" * 81, "a b", "a/b"):
        with pytest.raises(InvalidInput, match="cannot be the name of a state machine"):
            machine_name("Flow", None, None, bad)
    with pytest.raises(InvalidInput, match="--name cannot be given"):
        machine_name("Flow", "p.user.me.Flow", None, "other")


def test_who_has_not_deployed_a_machine_needs_its_token():
    label = Label("Flow", "ann", "flow-0-abcd")
    assert label == label_of(json.dumps({"Comment": label.comment("key")}))
    assert label_of('{"Comment": "mine"}') is None
    authorized("Flow", label, "ann", [None], "change it")
    authorized("Flow", label, "bob", ["flow-0-abcd"], "change it")
    with pytest.raises(InvalidInput, match="deployed by ann: to change it, ask them") as reported:
        authorized("Flow", label, "bob", ["wrong"], "change it")
    assert "abcd" not in str(reported.value)


def test_tokens_are_numbered():
    first = next_token("p.Flow", None, "abcd")
    assert "p-flow-0-abcd" == first
    assert "p-flow-1-efgh" == next_token("p.Flow", first, "efgh")
