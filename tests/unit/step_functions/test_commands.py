"""`step-functions create --only-json`: how options change the state machine, without AWS."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner, Result

from aflow._core.settings import Settings
from aflow.aws.settings import AwsSettings
from aflow.cli.flow_commands import FlowGroup
from aflow.cli.main import take_apart
from aflow.flow.decorators.attach import attach
from aflow.flow.spec import define
from aflow.step_functions.deployer import Aws, StateMachineDeployer
from aflow.step_functions.names import label_of
from aflow.step_functions.plan import DeploymentOptions
from tests.unit.step_functions.flows import Linear, Nested
from tests.unit.step_functions.golden import TOPIC

ROLE = "arn:aws:iam::123456789012:role/flows"
SETTINGS = {
    "AWS_DEFAULT_REGION": "us-east-1",
    "AFLOW_DEFAULT_DATASTORE": "s3",
    "AFLOW_DATASTORE_SYSROOT_S3": "s3://bucket/prefix",
    "AFLOW_DEFAULT_METADATA": "service",
    "AFLOW_SERVICE_URL": "http://127.0.0.1:9",
    "AFLOW_BATCH_JOB_QUEUE": "queue",
    "AFLOW_BATCH_CONTAINER_IMAGE": "image",
    "AFLOW_ECS_S3_ACCESS_IAM_ROLE": ROLE,
    "AFLOW_SFN_IAM_ROLE": ROLE,
    "AFLOW_USER": "tester",
}


def invoke(*words: str, flow: Any = Linear, **more: str) -> Result:
    group = FlowGroup(flow, "flow.py")
    return CliRunner().invoke(group, ["--quiet", *words], env={**SETTINGS, **more})


def machine(*words: str, flow: Any = Linear, **more: str) -> Any:
    result = invoke(*words, flow=flow, **more)
    assert result.exception is None, result.exception
    return json.loads(result.stdout)


def create(*words: str, flow: Any = Linear, **more: str) -> Any:
    return machine("step-functions", "create", "--only-json", *words, flow=flow, **more)


def test_with_before_the_command_decorates_each_step_of_what_is_deployed() -> None:
    plain = create()["States"]["end"]["Parameters"]
    assert 3 == plain["RetryStrategy"]["Attempts"]  # two of them for machines that go away
    words = ("--with", "retry", "step-functions", "create", "--only-json")
    assert 6 == machine(*words)["States"]["end"]["Parameters"]["RetryStrategy"]["Attempts"]
    by_setting = create(METAFLOW_DEFAULT_DECOSPECS="timeout:seconds=100")["States"]["end"]
    assert 160 == by_setting["Parameters"]["Timeout"]["AttemptDurationSeconds"]


class OnFargate(Aws):
    """The answers of AWS, of which only the queue `common` runs jobs on Fargate."""

    def call(self, service: str, operation: str, **values: Any) -> dict[str, Any]:
        if operation == "describe_job_queues":
            (queue,) = values["jobQueues"]
            return {"jobQueues": [{"computeEnvironmentOrder": [{"computeEnvironment": queue}]}]}
        kind = "FARGATE" if values["computeEnvironments"] == ["common"] else "EC2"
        return {"computeEnvironments": [{"computeResources": {"type": kind}}]}


def test_the_job_that_records_a_failure_has_the_kind_of_the_common_queue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {**SETTINGS, "AFLOW_BATCH_JOB_QUEUE": "common"}.items():
        monkeypatch.setenv(name, value)
    flow = attach(define(Linear), ["batch:queue=own"])
    deployer = StateMachineDeployer(flow, Settings.load(), DeploymentOptions())
    deployer._aws = OnFargate(AwsSettings.load())

    assert {"common"} == deployer._account().fargate


def test_the_name_may_stand_before_the_command_or_behind_it() -> None:
    before = machine("step-functions", "--name", "Other", "create", "--only-json")
    label = label_of(json.dumps(before))
    assert label is not None
    assert "Other-0-none" == label.token
    assert before == create("--name", "Other")
    assert before == machine("deploy", "--name", "Other", "create", "--only-json")


def test_words_of_the_second_command_may_stand_before_the_file() -> None:
    for group in ("deploy", "step-functions"):
        line = take_apart([group, "diff", "flow.py", "--max-workers", "3"])
        assert (group, "flow.py") == (line.command, line.target)
        assert ["diff", "--max-workers", "3"] == line.rest


@pytest.mark.parametrize(
    ("words", "path", "expected"),
    [
        (["--max-workers", "7"], ("States", "start (each)", "MaxConcurrency"), 7),
        (["--workflow-timeout", "90"], ("TimeoutSeconds",), 90),
        (
            ["--use-distributed-map"],
            ("States", "start (each)", "ItemReader", "ReaderConfig", "InputType"),
            "JSON",
        ),
        (["--aws-batch-tag", "a=b"], ("States", "start", "Parameters", "Tags", "a"), "b"),
        (
            ["--notify-on-error", TOPIC],
            ("States", "(note of failure)", "Parameters", "TopicArn"),
            TOPIC,
        ),
        (["--notify-on-success", TOPIC], ("States", "end", "Next"), "(note of success)"),
    ],
)
def test_an_option_of_create_changes_the_machine(words, path, expected) -> None:
    assert expected != _at(create(flow=Nested), path)
    assert expected == _at(create(*words, flow=Nested), path)


def _at(value: Any, path: tuple[str, ...]) -> Any:
    for part in path:
        value = value.get(part, {})
    return value


def test_a_token_is_the_one_that_is_given() -> None:
    label = label_of(json.dumps(create("--new-token", "tok")))
    assert label is not None
    assert "tok" == label.token


def test_tags_and_the_namespace_make_another_order_for_the_jobs() -> None:
    comments = {create(*words)["Comment"] for words in ([], ["--tag", "a"], ["--namespace", "n"])}
    assert 3 == len(comments)


def test_the_python_that_images_are_said_to_have_makes_another_order_for_the_jobs() -> None:
    assert create()["Comment"] != create(AFLOW_JOB_PYTHON="3.99")["Comment"]
    wrong = invoke("step-functions", "create", "--only-json", AFLOW_JOB_PYTHON="three")
    assert "AFLOW_JOB_PYTHON is a version such as 3.12, not 'three'." in str(wrong.exception)


def test_a_machine_is_compressed_by_an_option_or_a_setting() -> None:
    words = ("step-functions", "create", "--only-json")
    assert 20 < len(invoke(*words).stdout.splitlines())
    assert 1 == len(invoke(*words, "--compress-state-machine").stdout.splitlines())
    setting = {"METAFLOW_SFN_COMPRESS_STATE_MACHINE": "True"}
    assert 1 == len(invoke(*words, **setting).stdout.splitlines())
    assert 20 < len(invoke(*words, "--no-compress-state-machine", **setting).stdout.splitlines())


@pytest.mark.parametrize(
    ("words", "settings", "said"),
    [
        (["--aws-batch-tag", "a"], {}, "--aws-batch-tag takes KEY=VALUE, not 'a'"),
        (["--name", "a b"], {}, "'a b' cannot be the name of a state machine"),
        (["--new-token", "a b"], {}, "'a b' cannot be a production token"),
        (["--notify-on-error", "me"], {}, "--notify-on-error takes the ARN"),
        ([], {"AFLOW_SFN_IAM_ROLE": ""}, "set AFLOW_SFN_IAM_ROLE"),
        ([], {"AFLOW_SFN_IAM_ROLE": "role"}, "'role', which is not an ARN of a role"),
        ([], {"AFLOW_BATCH_JOB_QUEUE": ""}, "set AFLOW_BATCH_JOB_QUEUE"),
        ([], {"AFLOW_BATCH_CONTAINER_IMAGE": ""}, "set AFLOW_BATCH_CONTAINER_IMAGE"),
        ([], {"AFLOW_ECS_S3_ACCESS_IAM_ROLE": ""}, "set AFLOW_ECS_S3_ACCESS_IAM_ROLE"),
        ([], {"AFLOW_DEFAULT_DATASTORE": "local"}, "set AFLOW_DEFAULT_DATASTORE=s3"),
        ([], {"AFLOW_DEFAULT_METADATA": "local"}, "AFLOW_DEFAULT_METADATA=service"),
    ],
)
def test_what_cannot_be_deployed_says_which_key_or_option_it_is(words, settings, said) -> None:
    result = invoke("step-functions", "create", "--only-json", *words, **settings)
    assert result.exception is not None
    assert said in str(result.exception)
