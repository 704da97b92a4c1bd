"""`aflow doctor` and the checks of `aflow configure aws`, on a stand-in for AWS."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aflow.metadata.sqlite import SqliteMetadata
from tests.flows.conftest import Ran, Workspace
from tests.support.aws.account import Account
from tests.support.servers import Server, free_port
from tests.support.service import InThread

# One process of the test session makes the account.
pytestmark = pytest.mark.xdist_group("account")
KEY = "a-key-of-the-service"
HERE = f"doctor-{os.getpid()}"


@pytest.fixture(scope="module")
def account(s3_server: Server) -> dict[str, str]:
    """Settings whose resources all exist, by key without prefix; the environment is set as well."""
    account = Account(s3_server)
    account.client("s3").create_bucket(Bucket=HERE)
    log = f"/aws/vendedlogs/states/{HERE}"
    account.client("logs").create_log_group(logGroupName=log)
    account.client("dynamodb").create_table(
        TableName=HERE, BillingMode="PAY_PER_REQUEST",
        AttributeDefinitions=[{"AttributeName": "pathspec", "AttributeType": "S"}],
        KeySchema=[{"AttributeName": "pathspec", "KeyType": "HASH"}],
    )  # fmt: skip
    return {
        "DEFAULT_DATASTORE": "s3",
        "DATASTORE_SYSROOT_S3": f"s3://{HERE}/flows",
        "BATCH_JOB_QUEUE": account.queue(HERE),
        "BATCH_CONTAINER_IMAGE": "python:3.11",
        "ECS_S3_ACCESS_IAM_ROLE": account.role(f"{HERE}-jobs", "ecs-tasks"),
        "SFN_IAM_ROLE": account.role(f"{HERE}-states", "states"),
        "EVENTS_SFN_ACCESS_IAM_ROLE": account.role(f"{HERE}-events", "events", "scheduler"),
        "SFN_EXECUTION_LOG_GROUP_ARN": f"arn:aws:logs:us-east-1:123456789012:log-group:{log}:*",
        "SFN_DYNAMO_DB_TABLE": HERE,
        "DEFAULT_METADATA": "service",
        "SERVICE_AUTH_KEY": KEY,
    }


@pytest.fixture
def service(tmp_path: Path) -> Iterator[InThread]:
    service = InThread(f"sqlite:///{tmp_path}/service.db", [KEY])
    yield service
    service.stop()


def aflow(workspace: Workspace, *words: str, answers: str = "", **env: str) -> Ran:
    done = subprocess.run(
        [sys.executable, "-m", "aflow", *words],
        cwd=workspace.path,
        env=os.environ | {"AFLOW_HOME": str(workspace.path / "home")} | env,
        input=answers,
        capture_output=True,
        text=True,
        check=False,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def doctor(workspace: Workspace, values: dict[str, Any], code: int, **env: str) -> dict[str, str]:
    """Return the findings with these settings in the user's file: "state: sentences" by name."""
    home = workspace.path / "home"
    home.mkdir(exist_ok=True)
    whole = {f"METAFLOW_{key}": value for key, value in values.items()}
    (home / "config.json").write_text(json.dumps(whole))
    ran = aflow(workspace, "doctor", "--json", **env)
    assert code == ran.code, ran.out + ran.err
    found: dict[str, str] = {}
    for each in json.loads(ran.out):
        reported = f"{each['state']}: {each['message']} {each['advice']}".strip()
        found[each["name"]] = "\n".join(filter(None, [found.get(each["name"], ""), reported]))
    return found


def test_all_is_well_where_all_that_is_set_is_there(
    workspace: Workspace, account: dict[str, str], service: InThread, s3_server: Server
) -> None:
    values = account | {"SERVICE_URL": service.url}
    found = doctor(workspace, values, 0, **Account(s3_server).environment)

    assert {
        "python", "settings", "disk", "datastore", "metadata", "credentials", "clock", "table",
        "job queue", "compute", "job role", "job image", "state machines", "schedules", "logs",
    } == found.keys()  # fmt: skip
    assert "can be written, read and removed from" in found["datastore"]
    assert "answers as aflow's metadata service, version 2.5" in found["metadata"]
    assert "EC2 with up to 16 vCPUs" in found["compute"]
    assert "agrees with that of AWS" in found["clock"]
    assert "METAFLOW_SFN_DYNAMO_DB_TABLE" in found["settings"]
    assert "is without effect: state machines of aflow need no table" in found["settings"]
    assert [] == [name for name, reported in found.items() if "fail:" in reported]
    keys = Account(s3_server).client("s3").list_objects_v2(Bucket=HERE).get("Contents", ())
    assert [] == [each["Key"] for each in keys if "checkup/" in each["Key"]]


def test_each_thing_that_is_not_there_is_a_failure_that_says_what_to_do(
    workspace: Workspace, account: dict[str, str], service: InThread, s3_server: Server
) -> None:
    nowhere = "arn:aws:iam::123456789012:role/nowhere"
    values = account | {
        "SERVICE_URL": service.url,
        "SERVICE_AUTH_KEY": "wrong",
        "DATASTORE_SYSROOT_S3": f"s3://{HERE}-absent/flows",
        "BATCH_JOB_QUEUE": "absent",
        "BATCH_GPU_JOB_QUEUE": "absent-gpus",
        "BATCH_LOG_GROUP": "absent-logs",
        "BATCH_CONTAINER_IMAGE": "123456789012.dkr.ecr.us-east-1.amazonaws.com/absent:1",
        "ECS_S3_ACCESS_IAM_ROLE": nowhere,
        "SFN_IAM_ROLE": account["ECS_S3_ACCESS_IAM_ROLE"],
        "EVENTS_SFN_ACCESS_IAM_ROLE": "",
        "SFN_EXECUTION_LOG_GROUP_ARN": "arn:aws:logs:us-east-1:123456789012:log-group:absent:*",
        "SFN_DYNAMO_DB_TABLE": "absent",
    }
    found = doctor(workspace, values, 1, **Account(s3_server).environment)

    expected = {
        "datastore": f"{HERE}-absent",
        "metadata": "answers 401: it takes another key, or one at all. Set AFLOW_SERVICE_AUTH_KEY",
        "job queue": "There is no job queue absent in this region and account. Set AFLOW_BATCH_JOB",
        "GPU queue": "no job queue absent-gpus in this region and account. Set AFLOW_BATCH_GPU_",
        "job logs": "no log group absent-logs in this region and account. Set AFLOW_BATCH_LOG_GR",
        "job image": "There is no image 123456789012.dkr.ecr.us-east-1.amazonaws.com/absent:1",
        "job role": f"There is no role {nowhere} in this account",
        "state machines": "cannot be assumed by states.amazonaws.com. Let its trust policy allow",
        "schedules": "is not known: set AFLOW_EVENTS_SFN_ACCESS_IAM_ROLE",
        "logs": "There is no log group absent",
        "table": "There is no table absent",
    }
    for name, said in expected.items():
        assert "fail: " in found[name], (name, found[name])
        assert said in found[name]


def test_what_may_not_be_looked_at_is_a_doubt(
    workspace: Workspace, account: dict[str, str], service: InThread, s3_server: Server
) -> None:
    values = account | {"SERVICE_URL": service.url}
    with Account(s3_server).nobody() as nobody:
        found = doctor(workspace, values, 1, **nobody)

    assert "fail: " in found["datastore"]
    for name, right in (("job role", "iam:GetRole"), ("job queue", "batch:DescribeJobQueues")):
        assert found[name].startswith("warn: ")
        assert (
            f"may not be looked at by you, so it may be well or not. Ask for {right}"
            in (found[name])
        )


def test_a_half_of_the_settings_of_batch_names_the_other_half(
    workspace: Workspace, account: dict[str, str], s3_server: Server
) -> None:
    values = {"BATCH_JOB_QUEUE": account["BATCH_JOB_QUEUE"]}
    found = doctor(workspace, values, 1, **Account(s3_server).environment)

    assert "set AFLOW_ECS_S3_ACCESS_IAM_ROLE" in found["job role"]
    assert "set AFLOW_BATCH_CONTAINER_IMAGE" in found["job image"]
    assert "warn: Jobs cannot reach a datastore of this machine." in found["job queue"]


def test_on_a_new_machine_all_is_well_and_nothing_is_made(workspace: Workspace) -> None:
    ran = aflow(workspace, "doctor")

    assert 0 == ran.code, ran.err
    assert ["ok"] * 5 == [line.split()[0] for line in ran.out.splitlines()]
    assert [] == [*workspace.path.iterdir()]


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        ('{"AFLOW_USER": }', "settings", "are not valid JSON"),
        ('{"AFLOW_MAX_WORKERS": "many"}', "settings", "AFLOW_MAX_WORKERS in"),
        ('{"AFLOW_DEFAULT_DATASTORE": "s3"}', "datastore", "AFLOW_DATASTORE_SYSROOT_S3"),
        ('{"AFLOW_DEFAULT_METADATA": "service"}', "metadata", "set AFLOW_SERVICE_URL"),
        ('{"AFLOW_EXECUTOR": "queue"}', "queue", "Set AFLOW_QUEUE"),
        ('{"AFLOW_DEFAULT_SECRETS_BACKEND_TYPE": "vault"}', "secrets", "There are: inline, aws-"),
        ('{"AFLOW_QUEUE": "pigeon://loft"}', "queue", "is not a kind of queue that aflow knows"),
    ],
)
def test_settings_that_cannot_be_used_are_failures(
    workspace: Workspace, text: str, name: str, said: str
) -> None:
    (workspace.path / "home").mkdir()
    (workspace.path / "home" / "config.json").write_text(text)

    ran = aflow(workspace, "doctor", "--json")

    assert 1 == ran.code, ran.err
    failures = [each for each in json.loads(ran.out) if each["state"] == "fail"]
    assert [name] == sorted({each["name"] for each in failures})
    assert said in failures[0]["message"] + failures[0]["advice"]


def test_metadata_that_are_there_are_read_and_damage_is_a_failure(workspace: Workspace) -> None:
    file = workspace.path / ".aflow" / "metadata.db"
    file.parent.mkdir()
    metadata = SqliteMetadata(file)
    metadata.put_document("kind", "name", b"")
    metadata.close()

    well = aflow(workspace, "doctor")
    file.write_bytes(b"no database at all, but long enough to be one" * 100)
    damaged = aflow(workspace, "doctor")

    assert (0, 1) == (well.code, damaged.code), well.out
    assert f"sqlite:///{file} can be read." in well.out
    assert "it is not a database: move the file away" in damaged.out


def test_a_role_that_only_rules_may_assume_is_a_doubt(
    workspace: Workspace, account: dict[str, str], service: InThread, s3_server: Server
) -> None:
    there = Account(s3_server)
    old = there.role(f"{HERE}-old", "events")
    values = account | {"SERVICE_URL": service.url, "EVENTS_SFN_ACCESS_IAM_ROLE": old}

    found = doctor(workspace, values, 0, **there.environment)

    assert "warn: " in found["schedules"]
    assert "For @schedule(timezone=): Let its trust policy allow" in found["schedules"]


def test_who_does_not_answer_is_named(workspace: Workspace) -> None:
    port = free_port()
    (workspace.path / "home").mkdir()
    values = {"AFLOW_DEFAULT_METADATA": "service", "AFLOW_SERVICE_URL": f"http://127.0.0.1:{port}",
              "AFLOW_QUEUE": f"redis://127.0.0.1:{port}/0"}  # fmt: skip
    (workspace.path / "home" / "config.json").write_text(json.dumps(values))

    ran = aflow(workspace, "doctor")

    assert 1 == ran.code
    assert f"Nothing answers at http://127.0.0.1:{port}: Connection refused." in ran.out
    assert "Messages are not signed" in ran.out
    assert 2 == ran.out.count("fail ")


def test_another_project_of_the_same_name_is_seen(workspace: Workspace) -> None:
    other = workspace.path / "other" / "aflow-9.9.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: aflow\nVersion: 9.9\n")
    (other / "RECORD").write_text("aflow/__init__.py,,\n")

    found = doctor(workspace, {}, 0, PYTHONPATH=str(other.parent))

    said = f"warn: The distribution aflow 9.9 is installed as well (in {other.parent}"
    assert said in found["packages"]
    assert "pip uninstall aflow" in found["packages"]


def test_what_gives_steps_their_packages_is_named_where_it_is_missing(
    workspace: Workspace,
) -> None:
    hidden = workspace.path / "hidden"
    hidden.mkdir()
    none = "import sys\nsys.modules['uv'] = sys.modules['rattler'] = None\n"
    (hidden / "sitecustomize.py").write_text(none)
    env = {"PYTHONPATH": str(hidden), "PATH": "/nowhere"}

    found = doctor(workspace, {}, 0, **env)
    local = doctor(workspace, {"DEFAULT_ENVIRONMENT": "local"}, 0, **env)
    needed = doctor(workspace, {"DEFAULT_ENVIRONMENT": "conda"}, 1, **env)

    assert "warn: uv is not installed: steps with @pypi cannot have" in found["packages"]
    assert "pip install 'aflow-runtime[environments]'" in found["packages"]
    assert "packages" not in local
    assert "fail: uv is not installed" in needed["packages"]
    assert "fail: rattler is not installed" in needed["packages"]


# ------------------------------------------------------------ configure aws


def test_answers_are_checked_and_asked_again_or_kept(
    workspace: Workspace, account: dict[str, str], service: InThread, s3_server: Server
) -> None:
    answers = [
        "y", "s3://absent-bucket/x", "", "n", f"s3://{HERE}/flows", f"s3://{HERE}/data",
        "y", service.url, "http://internal/", "wrong", "n", service.url, KEY,
        "y", "absent", account["ECS_S3_ACCESS_IAM_ROLE"], "", "", "python:3.11", "y",
        "n",
    ]  # fmt: skip
    ran = aflow(
        workspace, "configure", "aws", answers="\n".join(answers) + "\n",
        **Account(s3_server).environment,
    )  # fmt: skip

    assert 0 == ran.code, ran.out + ran.err
    assert "absent-bucket" in ran.out
    assert f"s3://{HERE}/flows can be written, read and removed from." in ran.out
    assert "answers 401: it takes another key" in ran.out
    assert "There is no job queue absent in this region and account." in ran.out
    assert "ecs-tasks.amazonaws.com may assume it" in ran.out
    written = json.loads((workspace.path / "home" / "config.json").read_text())
    assert f"s3://{HERE}/flows" == written["AFLOW_DATASTORE_SYSROOT_S3"]
    assert KEY == written["AFLOW_SERVICE_AUTH_KEY"]
    assert "absent" == written["AFLOW_BATCH_JOB_QUEUE"], "kept, as was said"
