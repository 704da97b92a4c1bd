"""What a team does that comes to AWS, from the first file to a flow that runs every hour: on
aflow's own stack, and on one of Metaflow's, whose metadata service is Metaflow's own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.deployed import ended, job_logs
from tests.support.aws.furnished import Account
from tests.support.service import InThread

pytestmark = [pytest.mark.xdist_group("stack"), pytest.mark.timeout(400)]

FLOW = """
from metaflow import FlowSpec, Parameter, step, schedule

{schedule}
class ParameterFlow(FlowSpec):
    alpha = Parameter('alpha',
                      help='Learning rate',
                      default=0.01)

    @step
    def start(self):
        print('alpha is %f' % self.alpha)
        self.next(self.end)

    @step
    def end(self):
        print('alpha is still %f' % self.alpha)

if __name__ == '__main__':
    ParameterFlow()
"""


@pytest.fixture(params=["aflow's", "metaflow's"])
def stack(request: pytest.FixtureRequest, aws: Account, tmp_path: Path) -> Iterator[Account]:
    """The account, with the settings of a stack in the user's own file."""
    own = request.param == "aflow's"
    service = InThread(f"sqlite:///{tmp_path}/service.db", own=own)
    account, url = "123456789012", aws.endpoint
    settings = {
        "METAFLOW_BATCH_CONTAINER_IMAGE": f"{account}.dkr.ecr.us-east-1.amazonaws.com/aflow:latest",
        "METAFLOW_BATCH_JOB_QUEUE": "queue",
        "METAFLOW_DATASTORE_SYSROOT_S3": f"s3://flows/metaflow-{'1' if own else '2'}",
        "METAFLOW_DATATOOLS_SYSROOT_S3": "s3://flows/metaflow/data",
        "METAFLOW_DEFAULT_DATASTORE": "s3",
        "METAFLOW_DEFAULT_METADATA": "service",
        "METAFLOW_ECS_S3_ACCESS_IAM_ROLE": f"arn:aws:iam::{account}:role/BatchS3TaskRole",
        "METAFLOW_EVENTS_SFN_ACCESS_IAM_ROLE": f"arn:aws:iam::{account}:role/EventBridgeRole",
        "METAFLOW_SERVICE_INTERNAL_URL": f"{service.url}/",
        "METAFLOW_SERVICE_URL": f"{service.url}/",
        "METAFLOW_SFN_DYNAMO_DB_TABLE": "metaflow-1-StepFunctionsState",
        "METAFLOW_SFN_IAM_ROLE": f"arn:aws:iam::{account}:role/StepFunctionsRole",
        "METAFLOW_S3_ENDPOINT_URL": url,
    }
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "config.json").write_text(json.dumps(settings))
    yield aws
    service.stop()


def test_a_team_runs_its_flow_here_on_batch_and_every_hour(stack: Account, tmp_path: Path) -> None:
    file = tmp_path / "metaflow-example.py"
    file.write_text(FLOW.format(schedule=""))
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AFLOW_", "METAFLOW_"))
    }
    environment = {**kept, "AFLOW_HOME": str(tmp_path / "home"), "AFLOW_USER": "username"}

    def python(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "aflow", *words],
            cwd=tmp_path, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert 0 == done.returncode, done.stdout + done.stderr + job_logs(stack)
        return done.stdout + done.stderr

    # python metaflow-example.py run
    local = python("run", file.name, "--no-pylint")
    # python metaflow-example.py --no-pylint run --max-workers 5 --with batch
    batch = python("run", file.name, "--max-workers", "5", "--with", "batch")
    for said in (local, batch):
        assert re.search(r"\[\d+/start/1 .*\] alpha is 0\.010000", said), said
        assert re.search(r"\[\d+/end/2 .*\] alpha is still 0\.010000", said)
        assert "Done!" in said

    # python metaflow-example.py --with retry step-functions create
    file.write_text(FLOW.format(schedule="@schedule(hourly=True)"))
    deployed = python("step-functions", file.name, "create", "--with", "retry")
    assert "It runs by the schedule cron(0 * * * ? *)" in deployed
    (run,) = stack.fire("ParameterFlow")
    assert "SUCCEEDED" == ended(stack, "ParameterFlow", run), job_logs(stack)

    assert "alpha is still 0.010000" in python("logs", f"ParameterFlow/{run}/end")
    listed = python("runs", "ParameterFlow", "--status", "succeeded")
    assert 3 == listed.count("ParameterFlow/"), listed
    assert run in listed
    read = "from aflow import Flow, namespace; namespace(None)"
    latest = "run = Flow('ParameterFlow').latest_run; print(run); print(run.data.alpha)"
    done = subprocess.run(
        [sys.executable, "-c", f"{read}; {latest}"],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert f"Run('ParameterFlow/{run}')\n0.01" in done.stdout, done.stderr
    python("step-functions", file.name, "delete")
