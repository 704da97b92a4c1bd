"""@secrets from AWS Secrets Manager, on a stand-in that stores secrets."""

from __future__ import annotations

import base64
import itertools
import os
from typing import Any

import pytest

from aflow.aws.client import AwsClient
from aflow.errors import SecretsError
from aflow.task.secrets_manager import SecretsManager
from tests.flows.conftest import Ran, Workspace
from tests.flows.test_queue_runs import Workers
from tests.support.aws.account import Account
from tests.support.servers import Server

# One process of the test session runs the stand-in.
pytestmark = pytest.mark.xdist_group("account")
PASSWORD = "correct horse battery staple"
_numbers = itertools.count()


@pytest.fixture
def account(s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> Account:
    """An account, with its user's settings in this process."""
    account = Account(s3_server)
    for name, value in account.environment.items():
        monkeypatch.setenv(name, value)
    return account


@pytest.fixture
def name() -> str:
    """A unique name for a secret."""
    return f"team/db-{os.getpid()}-{next(_numbers)}"


def get(id: str | None, role: str | None = None, **options: Any) -> dict[str, str]:
    return dict(SecretsManager().get(id, options, role))


# ------------------------------------------------------------ variables of a secret


def test_every_key_of_an_object_is_a_variable_that_has_a_text(account: Account, name: str) -> None:
    account.secret(name, '{"DB_USER": "ann", "db.port/main-1": 5432, "TLS": true, "NONE": null}')

    # As Metaflow has it: `str` of each value, and _ for what no name can have.
    assert {"DB_USER": "ann", "db_port_main_1": "5432", "TLS": "True", "NONE": "None"} == get(name)


def test_a_text_is_one_variable_if_that_is_said(account: Account, name: str) -> None:
    account.secret(name, PASSWORD)
    variable = name.replace("/", "_").replace("-", "_")

    assert {variable: PASSWORD} == get(name, json=False)
    assert {"TOKEN": PASSWORD} == get(name, json=False, env_var_name="TOKEN")


def test_bytes_are_one_variable_as_base64(account: Account, name: str) -> None:
    account.secret(name, b"\x00\xff")

    assert {"KEY": base64.b64encode(b"\x00\xff").decode()} == get(name, env_var_name="KEY")
    assert [name.replace("/", "_").replace("-", "_")] == [*get(name)]


def test_the_region_is_that_of_the_arn_of_the_options_or_of_the_settings(
    account: Account, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arn = account.secret(name, '{"A": "far"}', region="eu-west-1")

    assert {"A": "far"} == get(arn, region="us-west-2")
    assert {"A": "far"} == get(name, region="eu-west-1")
    monkeypatch.setenv("METAFLOW_AWS_SECRETS_MANAGER_DEFAULT_REGION", "eu-west-1")
    assert {"A": "far"} == get(name)


def test_a_role_is_assumed(account: Account, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    role = account.role(f"reader-{os.getpid()}-{next(_numbers)}", "ecs-tasks")
    account.secret(name, '{"A": "b"}')

    assert {"A": "b"} == get(name, role)
    monkeypatch.setenv("AFLOW_AWS_SECRETS_MANAGER_DEFAULT_ROLE", role)
    assert {"A": "b"} == get(name)
    assumed = AwsClient(role=role).call("sts", "get_caller_identity")["Arn"]
    assert f":assumed-role/{role.rpartition('/')[2]}/" in assumed


# ------------------------------------------------------------ unavailable secrets


def refused(id: str | None, **options: Any) -> str:
    with pytest.raises(SecretsError) as caught:
        get(id, **options)
    assert PASSWORD not in str(caught.value)
    assert caught.value.__cause__ is None or PASSWORD not in repr(caught.value.__cause__)
    return str(caught.value)


def test_a_secret_that_is_not_there_is_named_with_its_region(account: Account) -> None:
    assert "there is no secret 'nowhere' in AWS Secrets Manager in eu-west-1" in refused(
        "nowhere", region="eu-west-1"
    )


def test_a_secret_that_may_not_be_read_is_reported_with_what_to_allow(
    account: Account, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    account.secret(name, PASSWORD)
    with account.nobody() as environment:
        for key, value in environment.items():
            monkeypatch.setenv(key, value)

        said = refused(name)
        as_another = refused_as(name, "arn:aws:iam::123456789012:role/another")

    assert f"the secret {name!r} may not be read by who runs this step: allow" in said
    assert "secretsmanager:GetSecretValue" in said
    assert "may not be read by the role arn:aws:iam::123456789012:role/another" in as_another


def test_a_role_that_is_none_is_said_to_be(account: Account, name: str) -> None:
    account.secret(name, PASSWORD)

    assert f"the secret {name!r} cannot be read: " in refused_as(name, "no-role")


def refused_as(id: str, role: str) -> str:
    with pytest.raises(SecretsError) as caught:
        get(id, role)
    return str(caught.value)


@pytest.mark.parametrize("value", [PASSWORD, f'["{PASSWORD}"]', f'"{PASSWORD}"', f"{{{PASSWORD}"])
def test_what_is_no_object_is_refused_without_being_shown(
    account: Account, name: str, value: str
) -> None:
    account.secret(name, value)

    assert "is not a JSON object: keep one variable a key, or say options=" in refused(name)


def test_keys_that_are_the_same_variable_are_refused(account: Account, name: str) -> None:
    account.secret(name, f'{{"a-b": "{PASSWORD}", "a.b": "{PASSWORD}"}}')

    assert "two keys of the secret" in refused(name)


def test_an_option_that_there_is_not_is_refused(account: Account) -> None:
    assert "has no option 'jason'; there are: env_var_name, json, region" in refused(
        "x", jason=False
    )
    assert "needs an id" in refused(None)


def test_without_a_region_or_credentials_the_key_to_set_is_named(
    account: Account, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    without_region = refused(name)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")

    assert (
        "cannot be read: The region of AWS is not known: set AWS_DEFAULT_REGION" in without_region
    )
    assert "There are no credentials of AWS: set AWS_PROFILE" in refused(name)


# ------------------------------------------------------------ in a step

FLOW = """
from aflow import secrets

class Flow_(FlowSpec):
    @secrets(sources={sources}, role={role!r})
    @step
    def start(self):
        print("length", len(os.environ["DB_PASSWORD"]), os.environ.get("DB_USER"))
        self.next(self.end)

    @step
    def end(self):
        assert "DB_PASSWORD" not in os.environ
"""


def run(workspace: Workspace, sources: str, role: str | None = None, **env: str) -> Ran:
    workspace.write(FLOW.format(sources=sources, role=role))
    return workspace.run(**env)


@pytest.fixture
def kept(account: Account, name: str) -> str:
    """The ARN of a secret with user and password."""
    return account.secret(name, f'{{"DB_USER": "ann", "DB_PASSWORD": "{PASSWORD}"}}')


def test_steps_read_secrets_by_name_arn_and_default_backend_and_nothing_is_kept(
    workspace: Workspace, account: Account, kept: str, name: str
) -> None:
    role = account.role(f"step-{os.getpid()}-{next(_numbers)}", "ecs-tasks")
    whole = {"type": "aws-secrets-manager", "id": name, "options": {"json": True}, "role": role}
    ran = [
        run(workspace, f"['aws-secrets-manager.{name}']"),
        run(workspace, f"[{kept!r}]"),
        run(workspace, f"[{name!r}]", METAFLOW_DEFAULT_SECRETS_BACKEND_TYPE="aws-secrets-manager"),
        run(workspace, f"[{whole}]"),
    ]

    for each in ran:
        assert 0 == each.code, each.err
        assert f"length {len(PASSWORD)} ann" in each.lines
        assert PASSWORD not in each.out + each.err
    for file in (workspace.path / ".aflow").rglob("*"):
        assert file.is_dir() or PASSWORD.encode() not in file.read_bytes(), file


def test_a_worker_reads_the_secrets_of_the_steps_that_it_runs(
    workspace: Workspace, kept: str
) -> None:
    workspace.write(FLOW.format(sources=[kept], role=None))
    workers = Workers(workspace)
    try:
        workers.start()
        ran = workers.run()
    finally:
        workers.close()

    assert 0 == ran.code, ran.err
    assert f"length {len(PASSWORD)} ann" in ran.lines


def test_a_step_whose_secret_cannot_be_used_fails_in_a_sentence(
    workspace: Workspace, account: Account, name: str
) -> None:
    account.secret(name, f'{{"1st": "{PASSWORD}"}}')
    account.secret(f"{name}-2", f'{{"AFLOW_USER": "{PASSWORD}"}}')
    ran = [
        run(workspace, f"[{{'type': 'aws-secrets-manager', 'id': {each!r}}}]")
        for each in (name, f"{name}-2")
    ]

    assert [1, 1] == [each.code for each in ran]
    assert "'1st', which is not a variable with a text: a name has letters, digits" in ran[0].err
    assert "'AFLOW_USER': names that begin so are settings of aflow" in ran[1].err
    assert all(PASSWORD not in each.out + each.err for each in ran)
