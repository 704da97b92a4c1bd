"""An account of AWS on a private stand-in, and a user without permissions in it."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.aws import clients
from tests.support.servers import Server

REGION = "us-east-1"
ID = "123456789012"


class Account:
    """An account of AWS on a stand-in; `environment` makes programs use it."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": REGION,
        }

    def client(self, service: str, region: str = REGION) -> Any:
        """Return a client for a service."""
        return clients.client(self.environment["AWS_ENDPOINT_URL"], service, region)

    def secret(self, name: str, value: str | bytes, region: str = REGION) -> str:
        """Create a secret, and return its ARN."""
        given = {"SecretBinary": value} if isinstance(value, bytes) else {"SecretString": value}
        made = self.client("secretsmanager", region).create_secret(Name=name, **given)
        return str(made["ARN"])

    def role(self, name: str, *services: str) -> str:
        """Create a role that these services may assume, and return its ARN."""
        who = {"Service": [f"{each}.amazonaws.com" for each in services]}
        trust = {
            "Version": "2012-10-17",
            "Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": who}],
        }
        made = self.client("iam").create_role(
            RoleName=name, AssumeRolePolicyDocument=json.dumps(trust)
        )
        return str(made["Role"]["Arn"])

    def queue(self, name: str, kind: str = "EC2", state: str = "ENABLED") -> str:
        """Create a job queue with machines of this kind, and return its ARN."""
        batch, ec2, iam = self.client("batch"), self.client("ec2"), self.client("iam")
        profile = iam.create_instance_profile(InstanceProfileName=f"{name}-machines")
        machines = {
            "type": kind,
            "maxvCpus": 16,
            "subnets": [ec2.describe_subnets()["Subnets"][0]["SubnetId"]],
            "securityGroupIds": [ec2.describe_security_groups()["SecurityGroups"][0]["GroupId"]],
        }
        if not kind.startswith("FARGATE"):
            machines |= {
                "minvCpus": 0,
                "instanceTypes": ["optimal"],
                "instanceRole": profile["InstanceProfile"]["Arn"],
            }
        batch.create_compute_environment(
            computeEnvironmentName=f"{name}-machines", type="MANAGED", state="ENABLED",
            serviceRole=self.role(f"{name}-batch", "batch"), computeResources=machines,
        )  # fmt: skip
        order = [{"order": 1, "computeEnvironment": f"{name}-machines"}]
        made = batch.create_job_queue(
            jobQueueName=name, state=state, priority=1, computeEnvironmentOrder=order
        )
        return str(made["jobQueueArn"])

    @contextmanager
    def nobody(self, *policies: str) -> Iterator[dict[str, str]]:
        """Yield the environment of a user who has only the permissions of these managed policies
        (their ARNs). Within the block, the stand-in enforces permissions."""
        iam, name = self.client("iam"), f"nobody-{os.getpid()}"
        iam.create_user(UserName=name)
        for policy in policies:
            iam.attach_user_policy(UserName=name, PolicyArn=policy)
        key = iam.create_access_key(UserName=name)["AccessKey"]
        self._free_actions("0")
        try:
            yield {
                **self.environment,
                "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
                "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
            }
        finally:
            self._free_actions("inf")
            for policy in policies:
                iam.detach_user_policy(UserName=name, PolicyArn=policy)
            iam.delete_access_key(UserName=name, AccessKeyId=key["AccessKeyId"])
            iam.delete_user(UserName=name)

    def _free_actions(self, count: str) -> None:
        """Set the number of calls after which the stand-in enforces permissions."""
        url = f"{self.environment['AWS_ENDPOINT_URL']}/moto-api/reset-auth"
        asked = urllib.request.Request(url, count.encode(), {"Content-Type": "text/plain"})
        with urllib.request.urlopen(asked) as answer:
            answer.read()
