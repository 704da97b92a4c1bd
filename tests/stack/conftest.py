"""A CloudFormation stack on moto, created once for all tests that use it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.stack.on_moto import for_moto, loaded
from tests.support.aws import clients
from tests.support.aws.furnished import server_of_jobs
from tests.support.servers import Server

IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/aflow:0.2.0"
KEY = "a-key-of-forty-letters-0123456789abcdefgh"


class Made:
    """A stack, and clients for the services of the same stand-in."""

    def __init__(self, server: Server, name: str) -> None:
        self.name = name
        self.server = server
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def aws(self, service: str) -> Any:
        """Return a client for this service."""
        return clients.client(self.environment["AWS_ENDPOINT_URL"], service)

    def create(self, template: Path, **parameters: str) -> None:
        """Create the stack."""
        secrets = {
            name: self.aws("secretsmanager").create_secret(Name=f"{self.name}-{name}",
                                                           SecretString=value)["ARN"]
            for name, value in {"ServiceKey": KEY, "DatabaseSecret": "{}"}.items()
        }  # fmt: skip
        self.aws("cloudformation").create_stack(
            StackName=self.name,
            TemplateBody=for_moto(loaded(template), secrets),
            Capabilities=["CAPABILITY_IAM"],
            Parameters=[
                {"ParameterKey": key, "ParameterValue": value}
                for key, value in {
                    "Image": IMAGE,
                    "InstanceTypes": "m5.large",
                    **parameters,
                }.items()
            ],
        )

    def push(self) -> None:
        """Push the image to the stack's registry, as a user does beforehand."""
        ecr, (name, _, tag) = self.aws("ecr"), IMAGE.partition("/")[2].partition(":")
        ecr.create_repository(repositoryName=name)
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": {"digest": "sha256:0", "size": 1},
            "layers": [],
        }
        ecr.put_image(repositoryName=name, imageTag=tag, imageManifest=json.dumps(manifest))

    def resources(self) -> dict[str, tuple[str, str]]:
        """Return the type and physical id of the resources, by name."""
        listed = self.aws("cloudformation").get_paginator("list_stack_resources")
        return {
            each["LogicalResourceId"]: (each["ResourceType"], each["PhysicalResourceId"])
            for page in listed.paginate(StackName=self.name)
            for each in page["StackResourceSummaries"]
        }

    def outputs(self) -> dict[str, str]:
        """Return the outputs by name."""
        reported = self.aws("cloudformation").describe_stacks(StackName=self.name)["Stacks"][0]
        assert "CREATE_COMPLETE" == reported["StackStatus"]
        return {each["OutputKey"]: each["OutputValue"] for each in reported["Outputs"]}


@pytest.fixture(scope="session")
def stack_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A separate stand-in whose jobs really run, since stacks leave resources behind."""
    server = server_of_jobs(Path(tmp_path_factory.mktemp("moto-for-stacks")))
    yield server
    server.kill()


@pytest.fixture(scope="session")
def made(stack_server: Server, repository: Path) -> Made:
    """The stack with a notebook."""
    made = Made(stack_server, f"aflow-{os.getpid()}")
    made.push()
    file = repository / "aflow" / "aws" / "stack" / "cloudformation.yaml"
    made.create(file, NotebookInstanceType="ml.t3.medium")
    return made
