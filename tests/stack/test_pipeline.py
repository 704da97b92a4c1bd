"""The pipeline of docs/cicd.md: its commands work in this order."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.server.conftest import Daemon
from tests.stack.conftest import KEY, Made
from tests.support.service import InThread

pytestmark = pytest.mark.xdist_group("stack")
INSTALL = "python -m pip install -r requirements.txt"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def blocks(repository: Path, language: str) -> list[str]:
    text = (repository / "docs" / "cicd.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def project(repository: Path, tmp_path: Path) -> Path:
    """The project that the page describes."""
    flow, test = blocks(repository, "python")
    folder = tmp_path / "project"
    (folder / "tests").mkdir(parents=True)
    (folder / "flow.py").write_text(flow)
    (folder / "tests" / "test_flow.py").write_text(test)
    return folder


@pytest.fixture
def jobs(repository: Path) -> dict[str, Any]:
    """Return the jobs of the pipeline."""
    found: dict[str, Any] = yaml.safe_load(blocks(repository, "yaml")[0])["jobs"]
    return found


def commands(job: dict[str, Any]) -> list[str]:
    """Return the commands of the job, without the installation, which the test machine already
    has."""
    found = [step["run"] for step in job["steps"] if "run" in step]
    assert INSTALL in found
    return [each for each in found if each != INSTALL]


def carried_out(
    words: list[str], project: Path, **environment: str
) -> list[subprocess.CompletedProcess[str]]:
    """The commands, as a runner of GitHub calls them; all of them have to end well."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = []
    for command in words:
        done.append(
            subprocess.run(
                ["bash", "-e", "-o", "pipefail", "-c", command],
                cwd=project,
                env=os.environ | environment | {"PATH": path, "GITHUB_SHA": COMMIT},
                capture_output=True,
                text=True,
            )
        )
        assert 0 == done[-1].returncode, (command, done[-1].stdout, done[-1].stderr)
    return done


def test_the_first_job_finds_nothing_wrong_with_the_flow(
    jobs: dict[str, Any], project: Path
) -> None:
    lint, check, test, run = carried_out(commands(jobs["test"]), project)

    assert "All checks passed" in lint.stdout
    assert "1 passed" in test.stdout
    assert "The graph looks good" in check.stdout + check.stderr
    assert f"total {sum(range(100))}" in run.stdout


def test_the_second_job_runs_the_flow_with_the_settings_of_a_stack(
    jobs: dict[str, Any], project: Path, made: Made, tmp_path: Path
) -> None:
    service = InThread(f"sqlite:///{tmp_path}/metadata.db", [KEY])
    environment = {
        **made.environment,
        "STACK": made.name,
        "AFLOW_USER": jobs["deploy"]["env"]["AFLOW_USER"],
        "AFLOW_HOME": str(tmp_path / "home"),
        "METAFLOW_SERVICE_URL": service.url,  # the stand-in has no server at the address of the API
    }
    try:
        *_, listed, _ = carried_out(commands(jobs["deploy"]), project, **environment)
    finally:
        service.stop()

    (run,) = json.loads(listed.stdout)
    assert run["pathspec"].endswith((project / "run.txt").read_text().strip())
    machines = made.aws("stepfunctions").list_state_machines()["stateMachines"]
    assert f"{made.name}_ScoresFlow" in [each["name"] for each in machines]
    assert [] == [*project.glob(".aflow/data")], "artifacts belong into the bucket"


def test_a_server_runs_what_the_pipeline_sends(
    repository: Path, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (step,) = yaml.safe_load(blocks(repository, "yaml")[1])
    monkeypatch.setenv("PYTHONPATH", str(repository))
    daemon = Daemon(tmp_path)
    daemon.begin(AFLOW_SERVICE_AUTH_KEY=KEY)

    try:
        (sent,) = carried_out(
            [step["run"]], project, AFLOW_SERVER=daemon.url, AFLOW_SERVICE_AUTH_KEY=KEY
        )
    finally:
        daemon.stop()

    assert {"AFLOW_SERVER", "AFLOW_SERVICE_AUTH_KEY"} == step["env"].keys()
    assert sent.stdout.startswith("ScoresFlow/")


def test_nothing_that_others_may_write_becomes_a_part_of_a_command(jobs: dict[str, Any]) -> None:
    steps = [step for job in jobs.values() for step in job["steps"]]

    assert [] == [step["run"] for step in steps if "${{" in step.get("run", "")]
    assert [] == [step for step in steps if "uses" in step and "@v" not in step["uses"]]
    assert all("timeout-minutes" in job and "runs-on" in job for job in jobs.values())
