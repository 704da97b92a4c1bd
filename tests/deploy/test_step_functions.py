"""Flows deployed to Step Functions, whose jobs really run: their artifacts are those of local runs,
and a failed one goes on where it has failed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from aflow import Deployer, client
from aflow.backends import open_metadata
from aflow.client import Run
from aflow.metadata.base import RunRecord
from aflow.scheduler.states import RunState
from tests.support.servers import select_nothing

if TYPE_CHECKING:
    from tests.support.aws.furnished import Account

FLOWS = Path(__file__).parent / "flow_files"
pytestmark = pytest.mark.timeout(400)  # dozens of processes, on a machine that others use
DEADLINE = 150.0  # seconds for an execution


def flow(file: str, *words: str, code: int = 0, cwd: Path | None = None) -> str:
    """What a command of the flow says."""
    done = subprocess.run(
        [sys.executable, str(FLOWS / file), *words], capture_output=True, text=True, cwd=cwd
    )
    assert code == done.returncode, done.stdout + done.stderr
    return done.stdout + done.stderr


def step_functions(file: str, command: str, *words: str, code: int = 0) -> str:
    return flow(file, "step-functions", command, *words, code=code)


def ended(aws: Account, machine: str, run: str) -> str:
    """How the execution of a run has ended."""
    states = aws.client("stepfunctions")
    arn = f"arn:aws:states:us-east-1:123456789012:execution:{machine}:{run.removeprefix('sfn-')}"
    give_up_at = time.monotonic() + DEADLINE
    while (found := states.describe_execution(executionArn=arn))["status"] == "RUNNING":
        assert time.monotonic() < give_up_at, job_logs(aws)
        select_nothing(0.3)
    status: str = found["status"]
    return status


def job_logs(aws: Account) -> str:
    """What all jobs have printed."""
    logs, told = aws.client("logs"), []
    for stream in logs.describe_log_streams(logGroupName="/aws/batch/job")["logStreams"]:
        events = logs.get_log_events(
            logGroupName="/aws/batch/job", logStreamName=stream["logStreamName"]
        )
        told += [each["message"] for each in events["events"]]
    return "\n".join(told)


def run_of(aws: Account, pathspec: str) -> Run:
    client.metadata(aws.metadata.url)
    return Run(pathspec, _namespace_check=False)


def recorded(aws: Account, flow: str, run: str) -> RunRecord:
    """The record of a run."""
    metadata = open_metadata(aws.metadata.url)
    found = metadata.run(flow, run)
    metadata.close()
    assert found is not None
    return found


@pytest.fixture(autouse=True)
def _client(aws: Account) -> Any:
    yield
    client.default_metadata()


def test_a_flow_of_all_shapes_leaves_what_a_local_run_leaves(aws, tmp_path):
    id_file = tmp_path / "local"
    local = ["--datastore", "local", "--metadata", "local"]
    flow(
        "everything.py", *local, "run", "--factor", "3", "--run-id-file", str(id_file), cwd=tmp_path
    )
    client.metadata(f"local@{tmp_path}/.aflow")
    expected = Run(f"Everything/{id_file.read_text()}", _namespace_check=False).end_task.data
    expected_found, expected_base = expected.found, expected.base

    file = tmp_path / "facts"
    create = ["--use-distributed-map", "--deployer-attribute-file", str(file)]
    step_functions("everything.py", "create", *create)
    facts = json.loads(file.read_text())
    run_file = tmp_path / "run"
    words = ["--factor", "3", "--run-id-file", str(run_file)]
    step_functions("everything.py", "trigger", *words)
    run = run_file.read_text()
    assert "SUCCEEDED" == ended(aws, "Everything", run), job_logs(aws)

    there = run_of(aws, f"Everything/{run}")
    assert there.successful
    assert f"production:{facts['production_token']}" in there.tags
    found = there.end_task.data.found
    assert expected_found[:2] == found[:2]
    assert "RuntimeError: for good" in found[2]
    assert expected_base == there.end_task.data.base
    assert 16 == sum(1 for step in there.steps() for _ in step.tasks())
    assert f"found {found!r}"[:40] in there.end_task.stdout
    assert "" == step_functions("everything.py", "diff", "--use-distributed-map", "--quiet")
    _its_end_starts_the_flow_that_follows(aws, run)


def _its_end_starts_the_flow_that_follows(aws: Account, run: str) -> None:
    follower = Deployer(FLOWS / "follower.py", show_output=False).step_functions().create()
    schedule = aws.client("scheduler").get_schedule(Name="Follower")
    assert "Europe/Berlin" == schedule["ScheduleExpressionTimezone"]
    events, states = aws.client("events"), aws.client("stepfunctions")
    pattern = json.loads(events.describe_rule(Name="Follower-events")["EventPattern"])
    detail = {key: values[0] for key, values in pattern["detail"].items()}
    assert "SUCCEEDED" == detail["status"]
    event = {
        "detail-type": pattern["detail-type"][0],
        "detail": {**detail, "name": run.removeprefix("sfn-")},
    }
    (target,) = events.list_targets_by_rule(Rule="Follower-events")["Targets"]
    # What EventBridge does: the stand-in sends no events to state machines.
    started = {"end": json.dumps(event), "tick": schedule["Target"]["Input"]}
    for name, told in started.items():
        states.start_execution(stateMachineArn=target["Arn"], name=name, input=told)
    for name, expected in (("end", f"Everything/{run}"), ("tick", None)):
        assert "SUCCEEDED" == ended(aws, "Follower", name), job_logs(aws)
        assert expected == run_of(aws, f"Follower/sfn-{name}").end_task.data.before
    assert {"sfn-end", "sfn-tick"} == {each.run_id for each in follower.list_runs(["SUCCEEDED"])}
    follower.delete()
    assert [] == aws.client("scheduler").list_schedules()["Schedules"]


def test_a_failed_run_goes_on_where_it_has_failed(aws, tmp_path):
    machine = "tests.user.tester.Mended"
    step_functions("mended.py", "create")
    rule = aws.client("events").describe_rule(Name=machine)
    assert ("cron(0 12 * * ? *)", "ENABLED") == (rule["ScheduleExpression"], rule["State"])

    run_file, switch = tmp_path / "run", tmp_path / "switch"
    words = ["--switch", str(switch), "--run-id-file", str(run_file)]
    step_functions("mended.py", "trigger", *words)
    failed = run_file.read_text()
    assert "FAILED" == ended(aws, machine, failed), job_logs(aws)
    assert f"hook of {failed} on error" in job_logs(aws)
    assert run_of(aws, f"Mended/{failed}").finished
    assert not run_of(aws, f"Mended/{failed}").successful
    assert f"{failed} started:" in step_functions("mended.py", "list-runs", "--failed")

    switch.touch()
    told = step_functions("mended.py", "resume", failed)
    run = re.findall(r"run-id (sfn-[0-9a-f-]+)", told)[0]
    assert "SUCCEEDED" == ended(aws, machine, run), job_logs(aws)
    resumed = run_of(aws, f"Mended/{run}")
    assert resumed.successful
    assert failed == resumed.origin_pathspec.rpartition("/")[2]
    values = resumed.end_task.data.values
    assert [1, 2, 3] == [item for item, _ in values]
    assert (2, run) in values, "the broken item ran again"
    assert f"hook of {run} on success" in job_logs(aws)

    deployer = Deployer(FLOWS / "mended.py", show_output=False).step_functions()
    triggered = deployer.create().trigger()
    stopped = triggered.wait_for_run(DEADLINE)
    triggered.terminate()
    # ABORTED in AWS; the stand-in lets an execution that is stopped catch that.
    assert ended(aws, machine, stopped.id) in ("ABORTED", "FAILED")
    assert RunState.CANCELLED is recorded(aws, "Mended", stopped.id).state

    told = step_functions("mended.py", "terminate", run, code=2)
    assert "has ended already (SUCCEEDED)" in told
    step_functions("mended.py", "delete")
    assert "is not deployed" in step_functions("mended.py", "trigger", code=1)
    assert [] == aws.client("events").list_rules(NamePrefix=machine)["Rules"]
