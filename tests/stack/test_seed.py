"""The path of a team that moves to AWS, from its stack to a flow that runs hourly: with aflow's own
stack, and with one of Metaflow's and its metadata service.

CloudFormation creates the stacks, and all settings come from their outputs. The stand-in for AWS
has no metadata service: the tests run one at the address in the outputs.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.compat.peer import PEER, needs_peer
from tests.stack.conftest import IMAGE, KEY, Made
from tests.step_functions.deployed import ended, job_logs
from tests.support.aws.furnished import Account
from tests.support.local_service import local_service
from tests.support.servers import Server
from tests.support.service import InThread

pytestmark = [pytest.mark.xdist_group("stack"), pytest.mark.timeout(600), pytest.mark.slow]

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
THEIRS = Path(__file__).with_name("metaflow_stack.yaml")


class OnStack(Account):
    """The account in which a stack is."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.endpoint = f"http://127.0.0.1:{server.port}"


@dataclass
class Team:
    """A team whose members know only the name of their stack, in a separate folder."""

    stack: Made
    folder: Path
    environment: dict[str, str]
    is_on_ours: bool

    def do(self, *words: str, program: tuple[str, ...] = ("-m", "aflow")) -> str:
        """Run a command, and return its output."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("AFLOW_", "METAFLOW_", "AWS_"))
        }
        done = subprocess.run(
            [sys.executable, *program, *words],
            cwd=self.folder, env={**kept, **self.stack.environment, **self.environment},
            capture_output=True, text=True,
        )  # fmt: skip
        assert 0 == done.returncode, done.stdout + done.stderr + job_logs(self.account)
        return done.stdout + done.stderr

    @functools.cached_property
    def account(self) -> OnStack:
        """The account of the stack."""
        return OnStack(self.stack.server)

    @property
    def settings(self) -> Path:
        """Return the content of the file that `stack import` writes."""
        return self.folder / "home" / "config.json"


def on_ours(team: Team, made: Made, until: ExitStack) -> None:
    """aflow's own stack, with a metadata service at the address in its outputs."""
    said = team.do("stack", "import", made.name)
    assert "To check all of it, run: aflow doctor" in said
    assert "Metaflow's own" not in said
    service = InThread(f"sqlite:///{team.folder}/service.db", [KEY])
    until.callback(service.stop)
    found = json.loads(team.settings.read_text())
    for key in ("METAFLOW_SERVICE_URL", "METAFLOW_SERVICE_INTERNAL_URL"):
        assert key in found
        found[key] = f"{service.url}/"
    team.settings.write_text(json.dumps(found))


def on_theirs(team: Team, url: str, internal_url: str, value: str = KEY) -> None:
    """A stack like that of Metaflow's template, whose API requires a key."""
    key = team.stack.aws("apigateway").create_api_key(name=team.stack.name, value=value)
    team.stack.aws("cloudformation").create_stack(
        StackName=team.stack.name,
        TemplateBody=THEIRS.read_text(),
        Capabilities=["CAPABILITY_IAM"],
        Parameters=[
            {"ParameterKey": name, "ParameterValue": value}
            for name, value in {
                "Url": f"{url}/", "InternalUrl": f"{internal_url}/", "KeyId": key["id"],
            }.items()
        ],
    )  # fmt: skip
    said = team.do("configure", "import-stack", team.stack.name)
    assert "The stack is of Metaflow's own template" in said
    assert "Runs are registered in its metadata service; their records are kept in .aflow" in said
    assert "Jobs need an image with aflow in it (AFLOW_BATCH_CONTAINER_IMAGE)." in said
    assert "To check all of it, run: aflow doctor" in said
    # The one setting that is not an output of it.
    team.environment["METAFLOW_BATCH_CONTAINER_IMAGE"] = IMAGE


@pytest.fixture(params=["aflow's", "metaflow's", pytest.param("a local service", marks=needs_peer)])
def team(
    request: pytest.FixtureRequest, stack_server: Server, made: Made, tmp_path: Path
) -> Iterator[Team]:
    """A team with its settings."""
    own = request.param == "aflow's"
    name = "theirs" if request.param == "metaflow's" else "theirs-with-a-local-service"
    stack = made if own else Made(stack_server, f"{name}-{os.getpid()}")
    home = {"AFLOW_HOME": str(tmp_path / "home"), "AFLOW_USER": "username"}
    team = Team(stack, tmp_path, home, own)
    with ExitStack() as until:
        if own:
            on_ours(team, made, until)
        elif request.param == "metaflow's":
            database = f"sqlite:///{tmp_path}/service.db"
            outside, inside = InThread(database, [KEY], own=False), InThread(database, own=False)
            until.callback(outside.stop)
            until.callback(inside.stop)
            on_theirs(team, outside.url, inside.url)
        else:
            url = until.enter_context(local_service(PEER, tmp_path / "service"))
            on_theirs(team, url, url, "a-key-that-this-service-does-not-ask-for")
        yield team


def test_a_team_runs_its_flow_here_on_batch_and_every_hour(team: Team) -> None:
    file = team.folder / "metaflow-example.py"
    file.write_text(FLOW.format(schedule=""))

    looked = team.do("doctor")
    whose = "aflow's" if team.is_on_ours else "Metaflow's own"
    assert f"answers as {whose} metadata service" in looked
    assert team.is_on_ours == ("those of deployed flows in the datastore" not in looked)

    # python metaflow-example.py run
    local = team.do("run", file.name, "--no-pylint")
    # python metaflow-example.py --no-pylint run --max-workers 5 --with batch
    batch = team.do("run", file.name, "--max-workers", "5", "--with", "batch")
    for said in (local, batch):
        assert re.search(r"\[\d+/start/1 .*\] alpha is 0\.010000", said), said
        assert re.search(r"\[\d+/end/2 .*\] alpha is still 0\.010000", said)
        assert "Done!" in said

    # python metaflow-example.py --with retry step-functions create
    file.write_text(FLOW.format(schedule="@schedule(hourly=True)"))
    deployed = team.do("step-functions", file.name, "create", "--with", "retry")
    assert "It runs by the schedule cron(0 * * * ? *)" in deployed
    prefix = json.loads(team.settings.read_text()).get("METAFLOW_SFN_STATE_MACHINE_PREFIX")
    machine = f"{prefix}_ParameterFlow" if prefix else "ParameterFlow"
    (run,) = team.account.fire(machine)
    assert "SUCCEEDED" == ended(team.account, machine, run), job_logs(team.account)

    assert "alpha is still 0.010000" in team.do("logs", f"ParameterFlow/{run}/end")
    listed = team.do("runs", "ParameterFlow", "--status", "succeeded")
    assert 3 == listed.count("ParameterFlow/"), listed
    assert run in listed
    read = (
        "from aflow import Flow, namespace; namespace(None); "
        "run = Flow('ParameterFlow').latest_run; print(run); print(run.data.alpha)"
    )
    assert f"Run('ParameterFlow/{run}')\n0.01" in team.do("-c", read, program=())
    team.do("step-functions", file.name, "delete")
