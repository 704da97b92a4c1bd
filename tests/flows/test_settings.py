"""Metaflow's configuration keys: each has its effect, from every source of settings and under both
names."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from aflow._core.settings import KEYS, Settings
from aflow.cli.doctor.findings import remark
from tests.flows.conftest import Ran, Workspace
from tests.support.aws.account import ID, REGION, Account
from tests.support.servers import Server
from tests.support.service import InThread

# One process of the test session makes the account.
pytestmark = pytest.mark.xdist_group("account")
FLOW = """
from aflow import S3, schedule

@schedule(hourly=True)
class Flow_(FlowSpec):
    alpha = Parameter("alpha", help="Learning rate", default=0.01)

    @step
    def start(self):
        with S3(run=self) as s3:
            s3.put("data", "x")
        self.rows = 1
        self.next(self.end)

    @step
    def end(self):
        print("alpha is", self.alpha)
"""


class Seen(NamedTuple):
    """The results of a run and a deployment with the settings."""

    keys: list[str]  # of the bucket
    runs: str  # that the service at the address tells of
    machine: dict[str, Any]
    definition: dict[str, Any]  # of the jobs
    target: dict[str, Any]  # of the rule that starts the flow

    def variable(self, name: str) -> str:
        """Return a variable of the jobs."""
        found = {each["name"]: each["value"] for each in self.definition["environment"]}
        return str(found[name])


# How each key is observed: its value at the place of its effect.
EFFECTS: dict[str, Callable[[Seen, str], object]] = {
    "BATCH_CONTAINER_IMAGE": lambda seen, value: seen.definition["image"] == value,
    "BATCH_JOB_QUEUE": lambda seen, value: (
        f'"JobQueue":"{value}"' in seen.machine["definition"].replace(": ", ":")
    ),
    "DATASTORE_SYSROOT_S3": lambda seen, value: (
        any(key.startswith(value.split("/", 3)[3] + "/blobs/") for key in seen.keys)
        and seen.variable("AFLOW_SFN_STORAGE").startswith(value)
    ),
    "DATATOOLS_SYSROOT_S3": lambda seen, value: any(
        key.startswith(value.split("/", 3)[3] + "/Flow_/") for key in seen.keys
    ),
    "DEFAULT_DATASTORE": lambda seen, value: seen.variable("AFLOW_SFN_STORAGE")[:2] == value,
    "DEFAULT_METADATA": lambda seen, value: value == "service" and "Flow_/" in seen.runs,
    "ECS_S3_ACCESS_IAM_ROLE": lambda seen, value: seen.definition["jobRoleArn"] == value,
    "EVENTS_SFN_ACCESS_IAM_ROLE": lambda seen, value: seen.target["RoleArn"] == value,
    "SERVICE_INTERNAL_URL": lambda seen, value: seen.variable("AFLOW_SFN_METADATA") == value,
    "SERVICE_URL": lambda seen, value: "Flow_/" in seen.runs,  # the value leads there alone
    "SFN_IAM_ROLE": lambda seen, value: seen.machine["roleArn"] == value,
}
NONE = "SFN_DYNAMO_DB_TABLE"


@pytest.fixture(scope="module")
def queue(s3_server: Server) -> str:
    return Account(s3_server).queue(f"settings-{os.getpid()}")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[InThread]:
    service = InThread(f"sqlite:///{tmp_path}/service.db")
    yield service
    service.stop()


def values(bucket: str, queue: str, service: str) -> dict[str, str]:
    """The configuration with the values of a separate account."""
    role = f"arn:aws:iam::{ID}:role/{bucket}"
    return {
        "BATCH_CONTAINER_IMAGE": f"{ID}.dkr.ecr.{REGION}.amazonaws.com/{bucket}:latest",
        "BATCH_JOB_QUEUE": queue,
        "DATASTORE_SYSROOT_S3": f"s3://{bucket}/metaflow",
        "DATATOOLS_SYSROOT_S3": f"s3://{bucket}/elsewhere/data",
        "DEFAULT_DATASTORE": "s3",
        "DEFAULT_METADATA": "service",
        "ECS_S3_ACCESS_IAM_ROLE": f"{role}-jobs",
        "EVENTS_SFN_ACCESS_IAM_ROLE": f"{role}-events",
        "SERVICE_INTERNAL_URL": f"http://{bucket}.elb.{REGION}.amazonaws.com/",
        "SERVICE_URL": service,
        NONE: f"{bucket}-StepFunctionsState",
        "SFN_IAM_ROLE": f"{role}-states",
    }


def in_place(place: str, folder: Path, given: dict[str, str]) -> dict[str, str]:
    """Write the settings to this place, and return the environment to use them."""
    folder.mkdir()
    if place == "environment":
        return {"AFLOW_HOME": str(folder), **{f"METAFLOW_{k}": v for k, v in given.items()}}
    prefix, name, home = {
        "file of Metaflow": ("METAFLOW", "config.json", "METAFLOW_HOME"),
        "profile": ("AFLOW", "config_team.json", "AFLOW_HOME"),
    }[place]
    (folder / name).write_text(json.dumps({f"{prefix}_{k}": v for k, v in given.items()}))
    profile = {"AFLOW_PROFILE": "team"} if place == "profile" else {}
    return {home: str(folder), **profile}


def seen(workspace: Workspace, account: Account, bucket: str, env: dict[str, str]) -> Seen:
    """Run and deploy the flow, and return the results."""

    def well(*words: str) -> Ran:
        ran = workspace.finish(workspace.start_aflow(*words, **account.environment, **env))
        assert 0 == ran.code, ran.out + ran.err
        return ran

    well("run", "flow.py", "--no-pylint")
    runs = well("runs", "Flow_").out
    well("flow.py", "--no-pylint", "step-functions", "create")
    listed = account.client("s3").list_objects_v2(Bucket=bucket).get("Contents", ())
    arn = f"arn:aws:states:{REGION}:{ID}:stateMachine:Flow_"
    states, events = account.client("stepfunctions"), account.client("events")
    machine = states.describe_state_machine(stateMachineArn=arn)
    (target,) = events.list_targets_by_rule(Rule="Flow_")["Targets"]
    definitions = account.client("batch").describe_job_definitions()["jobDefinitions"]
    used = [each for each in definitions if each["jobDefinitionArn"] in machine["definition"]
            or each["jobDefinitionName"] in machine["definition"]]  # fmt: skip
    properties = used[0]["containerProperties"]
    return Seen([each["Key"] for each in listed], runs, machine, properties, target)


@pytest.mark.parametrize("place", ["file of Metaflow", "profile", "environment"])
def test_every_key_does_what_it_says_wherever_it_is_set(
    place: str, workspace: Workspace, s3_server: Server, queue: str, service: InThread
) -> None:
    account = Account(s3_server)
    bucket = f"{place.split()[0].lower()}-{os.getpid()}"
    account.client("s3").create_bucket(Bucket=bucket)
    workspace.write(FLOW)
    given = values(bucket, queue, service.url)
    env = in_place(place, workspace.path / "home", given)

    found = seen(workspace, account, bucket, env)

    assert EFFECTS.keys() | {NONE} == given.keys()
    without = [key for key, effect in EFFECTS.items() if not effect(found, given[key])]
    assert [] == without, found
    assert "without effect: state machines of aflow need no table" == remark(f"METAFLOW_{NONE}")


MISSING = {
    "BATCH_JOB_QUEUE": "AFLOW_BATCH_JOB_QUEUE",
    "BATCH_CONTAINER_IMAGE": "AFLOW_BATCH_CONTAINER_IMAGE",
    "ECS_S3_ACCESS_IAM_ROLE": "AFLOW_ECS_S3_ACCESS_IAM_ROLE",
    "DATASTORE_SYSROOT_S3": "AFLOW_DATASTORE_SYSROOT_S3",
    "SFN_IAM_ROLE": "AFLOW_SFN_IAM_ROLE",
    "EVENTS_SFN_ACCESS_IAM_ROLE": "AFLOW_EVENTS_SFN_ACCESS_IAM_ROLE",
}


@pytest.mark.parametrize("key", MISSING)
def test_a_setting_that_is_missing_is_named_in_a_sentence(
    key: str, workspace: Workspace, s3_server: Server, queue: str, service: InThread
) -> None:
    account = Account(s3_server)
    workspace.write(FLOW)
    given = values(f"missing-{os.getpid()}", queue, service.url)
    del given[key]
    env = in_place("environment", workspace.path / "home", given)
    account.client("s3").create_bucket(Bucket=f"missing-{os.getpid()}")
    deploy = ["flow.py", "--no-pylint", "step-functions", "create"]
    commands = [deploy] if key.startswith(("SFN", "EVENTS")) else [
        deploy, ["run", "flow.py", "--no-pylint", "--with", "batch"]
    ]  # fmt: skip

    for words in commands:
        ran = workspace.finish(workspace.start_aflow(*words, **account.environment, **env))

        assert 2 == ran.code, ran.out + ran.err
        assert MISSING[key] in ran.err
        assert "Traceback" not in ran.err


# ------------------------------------------------------------ all keys

SAMPLES = {
    "RESOURCES": "gpu=4,memory=64000", "RUN_RESOURCES": "gpu=4",
    "DEFAULT_DATASTORE": "s3", "EXECUTOR": "queue", "DEFAULT_EXECUTOR": "queue",
    "DEFAULT_METADATA": "service", "DEFAULT_ENVIRONMENT": "pypi",
    "DURABILITY": "process", "ISOLATION": "worker",
    "RUN_ISOLATION": "worker", "PROCESS": "fork", "RUN_PROCESS": "fork",
    "DEBUG": "1", "NO_COLOR": "1", "SPIN_PERSIST": "0", "PROGRESS": "0", "RUN_PROGRESS": "0",
    "PREVIEWS": "0",
    "DEFAULT_PACKAGE_SUFFIXES": ".sql", "PACKAGE_SUFFIXES": ".sql",
    "RETRY_WAIT": "3", "SIGNING_KEY": "0123456789abcdef0123456789abcdef",
}  # fmt: skip


@pytest.mark.parametrize("prefix", ["AFLOW", "METAFLOW"])
def test_every_key_changes_the_settings_under_either_name(prefix: str, tmp_path: Path) -> None:
    base = {"USER": "ada", "AFLOW_HOME": "/nowhere", "METAFLOW_HOME": "/nowhere"}
    before = Settings.load(base, tmp_path)
    numbers = {"MAX_WORKERS", "MAX_NUM_SPLITS", "MAX_LOG_SIZE", "S3_WORKER_COUNT",
               "CLIENT_CACHE_MAX_SIZE"}  # fmt: skip

    def sample(key: str) -> str:
        return "7" if key.removeprefix("RUN_") in numbers else SAMPLES.get(key, "something")

    without = {
        key
        for key in KEYS
        if Settings.load({**base, f"{prefix}_{key}": sample(key)}, tmp_path) == before
    }

    assert set() == without
