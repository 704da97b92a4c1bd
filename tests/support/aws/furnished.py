"""An account of AWS in which jobs really run, and a metadata service for them."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from aflow import client
from tests.support.aws import clients
from tests.support.servers import Server, free_port

ROLE = "arn:aws:iam::123456789012:role/flows"


def server_of_jobs(folder: Path, podman: Sequence[str] = ()) -> Server:
    """Start a stand-in for AWS whose jobs and state machines really run: as processes, or, with a
    command line of podman, jobs of local images in containers."""
    pytest.importorskip("moto.server", reason="moto[server] is not installed")
    port = free_port()
    script = Path(__file__).with_name("serve.py")
    path = f"PATH={Path(sys.executable).parent}:{os.environ['PATH']}"
    containers = f"JOBS_IN_CONTAINERS={shlex.join(podman)}"
    command = ["env", containers, sys.executable, str(script), str(port), path]
    return Server("moto", command, port, folder / "moto.log").start()


class Account:
    """The account: `endpoint` is its URL, `metadata` the metadata service, `settings` the
    environment variables to use both."""

    def __init__(self, folder: Path, podman: Sequence[str] = ()) -> None:
        self.server = server_of_jobs(folder, podman)
        from tests.support.service import InThread  # lazy: all tests import this, few use it

        self.metadata = InThread(f"sqlite:///{folder}/metadata.db")
        self.endpoint = f"http://127.0.0.1:{self.server.port}"
        self.settings = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AFLOW_DEFAULT_DATASTORE": "s3",
            "AFLOW_DATASTORE_SYSROOT_S3": f"s3://flows/prefix?endpoint={self.endpoint}",
            "AFLOW_DEFAULT_METADATA": "service",
            "AFLOW_SERVICE_URL": self.metadata.url,
            "AFLOW_BATCH_JOB_QUEUE": "queue",
            "AFLOW_BATCH_CONTAINER_IMAGE": "aflow",
            "AFLOW_ECS_S3_ACCESS_IAM_ROLE": ROLE,
            "AFLOW_SFN_IAM_ROLE": ROLE,
            "AFLOW_EVENTS_SFN_ACCESS_IAM_ROLE": ROLE,
            "AFLOW_USER": "tester",
        }

    def client(self, service: str) -> Any:
        """Return the client of one of its services."""
        return clients.client(self.endpoint, service)

    def jobs(self, beginning: str) -> list[dict[str, Any]]:
        """Return AWS Batch's descriptions of the jobs with this prefix of their names, in the order
        of submission."""
        batch = self.client("batch")
        filters = [{"name": "JOB_NAME", "values": [f"{beginning}*"]}]
        listed = batch.list_jobs(jobQueue="queue", filters=filters)["jobSummaryList"]
        found: list[dict[str, Any]] = batch.describe_jobs(jobs=[e["jobId"] for e in listed])["jobs"]
        return sorted(found, key=lambda each: each["createdAt"])

    def furnish(self) -> None:
        """Create a bucket, and a job queue with machines."""
        self.client("s3").create_bucket(Bucket="flows")
        iam = self.client("iam")
        role = iam.create_role(RoleName="batch", AssumeRolePolicyDocument="{}")
        profile = iam.create_instance_profile(InstanceProfileName="machines")
        ec2, batch = self.client("ec2"), self.client("batch")
        machines = {
            "type": "EC2",
            "maxvCpus": 16,
            "minvCpus": 0,
            "instanceTypes": ["optimal"],
            "instanceRole": profile["InstanceProfile"]["Arn"],
            "subnets": [ec2.describe_subnets()["Subnets"][0]["SubnetId"]],
            "securityGroupIds": [ec2.describe_security_groups()["SecurityGroups"][0]["GroupId"]],
        }
        batch.create_compute_environment(
            computeEnvironmentName="machines", type="MANAGED", state="ENABLED",
            serviceRole=role["Role"]["Arn"], computeResources=machines,
        )  # fmt: skip
        batch.create_job_queue(
            jobQueueName="queue", state="ENABLED", priority=1,
            computeEnvironmentOrder=[{"order": 1, "computeEnvironment": "machines"}],
        )  # fmt: skip

    def fire(self, rule: str, event: Any = None) -> list[str]:
        """Trigger a rule as EventBridge does at its next time, or for this event, since the
        stand-in only stores rules. Returns the ids of the started runs."""
        events = self.client("events")
        found = events.describe_rule(Name=rule)
        assert "ENABLED" == found["State"]
        assert event is None or matches(json.loads(found["EventPattern"]), event)
        return [
            self.start(target["Arn"], target.get("Input", json.dumps(event)))
            for target in events.list_targets_by_rule(Rule=rule)["Targets"]
        ]

    def start(self, machine: str, reported: str) -> str:
        """Start an execution, as EventBridge does, and return the id of its run."""
        states = self.client("stepfunctions")
        made = states.start_execution(stateMachineArn=machine, name=str(uuid4()), input=reported)
        return f"sfn-{made['executionArn'].rpartition(':')[2]}"

    def close(self) -> None:
        self.metadata.stop()
        self.server.kill()


def matches(pattern: Any, event: Any) -> bool:
    """Return whether an event matches the pattern of a rule."""
    if isinstance(pattern, list):
        return event in pattern
    return all(key in event and matches(each, event[key]) for key, each in pattern.items())


@pytest.fixture(scope="session")
def aws_account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    """The account, one per session."""
    account = Account(tmp_path_factory.mktemp("aws"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in account.settings.items():
            patch.setenv(name, value)
        account.furnish()
    yield account
    account.close()


@pytest.fixture
def aws(aws_account: Account, monkeypatch: pytest.MonkeyPatch) -> Iterator[Account]:
    """The account, with its settings in the environment."""
    for name, value in aws_account.settings.items():
        monkeypatch.setenv(name, value)
    yield aws_account
    client.default_metadata()
