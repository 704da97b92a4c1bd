"""Names, tokens, attempts and job definitions: the plan of a deployment, without requests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aflow import (
    FlowSpec,
    batch,
    kubernetes,
    project,
    resources,
    step,
    timeout,
    trigger_on_finish,
)
from aflow._core.secret import SecretUrl
from aflow._core.settings import Settings
from aflow.aws.settings import Account, AwsSettings
from aflow.errors import CorruptBlob, InvalidInput, InvalidMessage, InvalidSetting
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
from aflow.step_functions.plan import (
    PROGRAM,
    DeploymentOptions,
    DeploymentPlan,
    job_of,
    metadata_of_jobs,
    plan,
    token_for,
)
from aflow.step_functions.spec import (
    DeploymentSpec,
    StateJobVariables,
    foreach_result,
    read_spec,
    result_name,
    spec_name,
    state_after,
    switch_result,
)
from aflow.step_functions.tasks import NextAttempt, next_attempt
from aflow.storage.memory import MemoryStore
from aflow.task.code_package import Package

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
    with pytest.raises(InvalidInput, match=r"cannot be the name of a state machine.*Give --branch"):
        machine_name("Flow", "p.user.me@example.Flow", None, None)


def test_who_has_not_deployed_a_machine_needs_its_token():
    label = Label("Flow", "ann", "flow-0-abcd")
    assert label == label_of(json.dumps({"Comment": label.comment("key")}))
    for other in ('{"Comment": "mine"}', "[]", json.dumps({"Comment": label.comment("")[:-9]})):
        assert label_of(other) is None
    authorized("Flow", label, "ann", [None], "change it")
    authorized("Flow", label, "bob", ["flow-0-abcd"], "change it")
    with pytest.raises(InvalidInput, match="deployed by ann: to change it, ask them") as reported:
        authorized("Flow", label, "bob", ["wrong"], "change it")
    assert "abcd" not in str(reported.value)


def test_tokens_are_numbered():
    first = next_token("p.Flow", None, "abcd")
    assert "p-flow-0-abcd" == first
    assert "p-flow-1-efgh" == next_token("p.Flow", first, "efgh")


# ------------------------------------------------------------------ a whole deployment

WHOLE = AwsSettings(image="image:1", queue="queue", job_role="arn:role", internal_url="http://in")
ACCOUNT = Account("aws", "r", "1")
PLAINLY = DeploymentOptions()


def deployed(flow: type[FlowSpec], wanted: DeploymentOptions = PLAINLY) -> DeploymentPlan:
    settings = Settings(
        root=Path("/.aflow"), user="ann", datastore="s3", datastore_s3="s3://bucket/some",
        metadata="service", service_url="http://out",
    )  # fmt: skip
    package = Package("key", "flow.py", 10)
    return plan(define(flow), wanted, settings, WHOLE, ACCOUNT, package, "token")


def test_jobs_read_the_order_that_the_plan_names_and_no_other():
    made = deployed(Needs, DeploymentOptions(tags=("a",), namespace="n"))
    store = MemoryStore()
    store.put(spec_name(made.spec_key), [made.spec])

    order = read_spec(store, made.spec_key)
    assert ("Needs", "Needs", "key", "flow.py") == (
        order.flow,
        order.machine,
        order.code,
        order.script,
    )
    assert (("a", "production:token"), "n") == (order.tags, order.namespace)
    assert made.spec == order.encode()
    store.put(spec_name(made.spec_key), [made.spec + b"x"])
    with pytest.raises(CorruptBlob, match="in memory: is damaged"):
        read_spec(store, made.spec_key)
    with pytest.raises(InvalidMessage, match="deployed by a newer aflow"):
        DeploymentSpec.decode(b"\x92\x7f\x01")
    with pytest.raises(InvalidMessage, match="description is damaged"):
        DeploymentSpec.decode(b"\x92\x01\x01")


def test_a_flow_in_a_project_waits_for_another_one_of_it():
    flow = project(name="p")(trigger_on_finish(flow="Other")(plain("InProject")))
    made = deployed(flow, DeploymentOptions(branch="b"))
    assert ("p.test.b.InProject", Label("InProject", "ann", "token")) == (made.name, made.label)
    assert made.events is not None
    machine = "arn:aws:states:r:1:stateMachine:Other"
    assert [machine] == made.events.pattern["detail"]["stateMachineArn"]
    with pytest.raises(InvalidInput, match="in no project: branches need @project"):
        deployed(plain("Outside"), DeploymentOptions(production=True))


def test_a_step_that_no_state_machine_can_run_is_named():
    with pytest.raises(InvalidInput, match="Step start has @kubernetes, which Step Functions"):
        deployed(plain("Elsewhere", kubernetes))


def plain(name: str, decorate=lambda function: function) -> type[FlowSpec]:
    """Return a flow of two steps, whose first one has this decorator."""

    def start(self):
        self.next(self.end)

    def end(self):
        pass

    steps = {"start": decorate(step(start)), "end": step(end)}
    return type(name, (FlowSpec,), {"__module__": __name__, **steps})


def test_a_new_token_is_random_and_follows_the_one_before():
    first, second = token_for("p.Flow", None), token_for("p.Flow", "p-flow-3-abcd")
    assert first.startswith("p-flow-0-")
    assert second.startswith("p-flow-4-")
    assert first[9:] != second[9:]


def test_jobs_reach_the_metadata_by_the_address_that_they_can_use():
    def of(metadata: str, *, in_store: bool = False, **aws: str) -> str:
        settings = Settings(
            root=Path("/.aflow"), user="ann", datastore="s3", datastore_s3="s3://bucket/some",
            metadata=metadata, service_url="http://out",
        )  # fmt: skip
        return metadata_of_jobs(settings, AwsSettings(**aws), in_store=in_store)

    assert "http://in" == of("service", internal_url="http://in")
    assert "http://out" == of("service")
    assert "postgresql://db/name" == of("postgresql://db/name")
    assert "s3://bucket/some#http://in" in of("service", in_store=True, internal_url="http://in")
    assert "s3://bucket/some#http://out" in of("service", in_store=True)
    with pytest.raises(InvalidSetting, match="Jobs cannot reach metadata of this machine"):
        of("local")
    secret = SecretUrl("postgresql://me:hidden@db/name")
    with pytest.raises(InvalidSetting, match="has a password") as error:
        of(secret)
    assert "hidden" not in str(error.value)


def test_a_job_knows_what_it_is_by_its_variables(monkeypatch):
    with pytest.raises(
        InvalidInput, match="not a job of a state machine: AFLOW_SFN_DEPLOYMENT is not"
    ):
        StateJobVariables.load()
    given = {"DEPLOYMENT": "o", "STORAGE": "s", "METADATA": "m", "RUN": "sfn-7", "STEP": "start"}
    for name, value in given.items():
        monkeypatch.setenv(f"AFLOW_SFN_{name}", value)
    plain_job = StateJobVariables.load()
    assert ("sfn-7", "7", "start", "0", None) == (
        plain_job.run, plain_job.execution, plain_job.step, plain_job.place, plain_job.limit,
    )  # fmt: skip
    monkeypatch.setenv("AFLOW_SFN_STARTED", "2026-01-01T00:00:00Z")
    monkeypatch.setenv("AFLOW_SFN_TIMEOUT", "60")
    assert (60, "2026-01-01T00:00:00Z") == StateJobVariables.load()[-2:]


def test_the_result_of_a_job_is_the_state_in_which_the_machine_goes_on():
    assert "deploy/results/F/r/s/0.1" == result_name("F", "r", "s", "0.1")
    state = state_after("r", "s", "0.1", "then")
    assert {"run": "r", "place": "0.1", "from": {"step": "s"}, "started": "then"} == state
    assert "started" not in state_after("r", "s", "0.1", None)
    assert {**state, "next": "end"} == switch_result(state, "end")
    assert {**state, "items": [0, 1]} == foreach_result(state, range(2), distributed=False)
    assert [0, 1] == foreach_result(state, range(2), distributed=True)
