"""Flows deployed to Step Functions, whose jobs really run: their artifacts equal those of local
runs, and a failed execution can be resumed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from aflow import Deployer, client
from aflow.client import Run
from aflow.scheduler.states import RunState
from tests.step_functions.deployed import (
    DEADLINE,
    FLOWS,
    ended,
    flow,
    job_logs,
    recorded,
    run_of,
    step_functions,
    wait_for_log,
)
from tests.support import packages
from tests.support.service import InThread

if TYPE_CHECKING:
    from tests.support.aws.furnished import Account

pytestmark = pytest.mark.timeout(400)  # dozens of processes, on a machine that others use


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
    # No run refers to the code yet, and gc leaves it alone.
    gc = [sys.executable, "-m", "aflow", "gc", "--sole-owner", "--grace", "0s"]
    subprocess.run(gc, check=True, timeout=60)
    run_file = tmp_path / "run"
    words = ["--factor", "3", "--run-id-file", str(run_file)]
    step_functions("everything.py", "trigger", *words)
    run = run_file.read_text()
    assert "SUCCEEDED" == ended(aws, "Everything", run), job_logs(aws)

    there = run_of(aws, f"Everything/{run}")
    assert there.successful
    assert f"production:{facts['production_token']}" in there.tags
    assert {"user:SFN"} == {each for each in there.tags if each.startswith("user:")}
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
    end = {
        "source": "aws.states",
        "detail-type": "Step Functions Execution Status Change",
        "detail": {
            "stateMachineArn": "arn:aws:states:us-east-1:123456789012:stateMachine:Everything",
            "status": "SUCCEEDED",
            "name": run.removeprefix("sfn-"),
        },
    }
    (by_end,) = aws.fire("Follower-events", end)
    by_tick = aws.start(schedule["Target"]["Arn"], schedule["Target"]["Input"])
    for started, expected in ((by_end, f"Everything/{run}"), (by_tick, None)):
        assert "SUCCEEDED" == ended(aws, "Follower", started), job_logs(aws)
        assert expected == run_of(aws, f"Follower/{started}").end_task.data.before
    assert {by_end, by_tick} == {each.run_id for each in follower.list_runs(["SUCCEEDED"])}
    follower.delete()
    assert [] == aws.client("scheduler").list_schedules()["Schedules"]


def test_a_flow_that_its_schedule_starts_leaves_what_a_local_run_leaves(aws, tmp_path):
    id_file = tmp_path / "local"
    local = ["--datastore", "local", "--metadata", "local", "run", "--run-id-file", str(id_file)]
    flow("shapes.py", *local, cwd=tmp_path)
    client.metadata(f"local@{tmp_path}/.aflow")
    expected = left_by(Run(f"Shapes/{id_file.read_text()}", _namespace_check=False))

    flow("shapes.py", "--with", "retry", "step-functions", "create")
    rule = aws.client("events").describe_rule(Name="Shapes")
    assert ("cron(0 * * * ? *)", "ENABLED") == (rule["ScheduleExpression"], rule["State"])
    (run,) = aws.fire("Shapes")
    assert "SUCCEEDED" == ended(aws, "Shapes", run), job_logs(aws)
    there = run_of(aws, f"Shapes/{run}")
    assert there.successful
    assert expected == left_by(there)
    assert {"zero": 0, "values": [0, [11, 12]]} == there.end_task.data.found


def test_jobs_of_an_image_without_aflow_run_the_one_that_was_shipped(aws, tmp_path):
    # Without `site` and the working folder a Python has the standard library alone.
    bare = ["--with", f"batch:executable={sys.executable} -S -P"]
    flow("follower.py", *bare, "step-functions", "create")
    gc = [sys.executable, "-m", "aflow", "gc", "--sole-owner", "--grace", "0s"]
    subprocess.run(gc, check=True, timeout=60)
    run_file = tmp_path / "run"
    step_functions("follower.py", "trigger", "--run-id-file", str(run_file))
    run = run_file.read_text()

    assert "SUCCEEDED" == ended(aws, "Follower", run), job_logs(aws)
    assert run_of(aws, f"Follower/{run}").successful
    assert "" == flow("follower.py", *bare, "step-functions", "diff", "--quiet")
    step_functions("follower.py", "delete")


@packages.needs_another
def test_steps_with_packages_and_another_python_run_in_jobs_without_an_index_and_are_explained(
    aws, tmp_path, monkeypatch
):
    for version in ("1.0", "2.0", "3.0", "4.0"):
        packages.make_wheel(tmp_path / "index", "tiny", version)
    own, other = ".".join(map(str, sys.version_info[:2])), packages.ANOTHER
    monkeypatch.setenv("ANOTHER_PYTHON", other)
    monkeypatch.setenv("AFLOW_ENVIRONMENTS_FOLDER", str(tmp_path / "environments"))
    monkeypatch.setenv("UV_FIND_LINKS", str(tmp_path / "index"))
    file = str(FLOWS.parents[1] / "batch" / "flow_files" / "packages.py")
    bare = ["--with", f"batch:executable={sys.executable} -S -P"]

    def seen_by_a_run() -> tuple[str, list[tuple[str, str]]]:
        run_file = tmp_path / "run"
        step_functions(file, "trigger", "--run-id-file", str(run_file))
        run = run_file.read_text()
        assert "SUCCEEDED" == ended(aws, "Packages", run), job_logs(aws)
        return run, run_of(aws, f"Packages/{run}").data.seen

    flow(file, *bare, "step-functions", "create")
    gc = [sys.executable, "-m", "aflow", "gc", "--sole-owner", "--grace", "0s"]
    subprocess.run(gc, check=True, timeout=60)
    first, seen = seen_by_a_run()
    assert [("1.0", own), ("2.0", other), ("3.0", other), ("4.0", own)] == seen
    assert "" == flow(file, *bare, "step-functions", "diff", "--quiet")
    known = run_of(aws, f"Packages/{first}").code.environments
    assert ("2.0", other) == (known["second"]["packages"]["tiny"], known["second"]["python"])

    # Deployed again, with another package: neither the index nor a file of it is left.
    shutil.rmtree(tmp_path / "index")
    shutil.rmtree(tmp_path / "environments" / "wheels")
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("SECOND", "3.0")
    flow(file, *bare, "step-functions", "create")
    second, seen = seen_by_a_run()
    assert [("1.0", own), ("3.0", other), ("3.0", other), ("4.0", own)] == seen
    explained = flow(file, "explain", f"Packages/{second}/second")
    assert f"package tiny changed 2.0 -> 3.0 (since Packages/{first})" in explained
    assert "package" not in flow(file, "explain", f"Packages/{second}/third")
    step_functions(file, "delete")


def left_by(run: Run) -> dict[str, list[Any]]:
    """Return the artifacts of all tasks, by step; those of items in the order of the items."""
    found: dict[str, list[Any]] = {}
    for step in run.steps():
        tasks = [{each.id: each.data for each in task if each.id != "_"} for task in step.tasks()]
        found[step.id] = sorted(tasks, key=repr)
    return found


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
    wait_for_log(aws, f"hook of {failed} on error")
    assert run_of(aws, f"Mended/{failed}").finished
    assert not run_of(aws, f"Mended/{failed}").successful
    assert f"{failed} started:" in step_functions("mended.py", "list-runs", "--failed")

    switch.touch()
    reported = step_functions("mended.py", "resume", failed)
    run = re.findall(r"run-id (sfn-[0-9a-f-]+)", reported)[0]
    assert "SUCCEEDED" == ended(aws, machine, run), job_logs(aws)
    resumed = run_of(aws, f"Mended/{run}")
    assert resumed.successful
    assert failed == resumed.origin_pathspec.rpartition("/")[2]
    values = resumed.end_task.data.values
    assert [1, 2, 3] == [item for item, _ in values]
    assert (2, run) in values, "the broken item ran again"
    wait_for_log(aws, f"hook of {run} on success")

    deployer = Deployer(FLOWS / "mended.py", show_output=False).step_functions()
    triggered = deployer.create().trigger()
    stopped = triggered.wait_for_run(DEADLINE)
    triggered.terminate()
    # ABORTED in AWS; in the stand-in, an execution can catch its own abort.
    assert ended(aws, machine, stopped.id) in ("ABORTED", "FAILED")
    assert RunState.CANCELLED is recorded(aws, "Mended", stopped.id).state

    reported = step_functions("mended.py", "terminate", run, code=2)
    assert "has ended already (SUCCEEDED)" in reported
    step_functions("mended.py", "delete")
    assert "is not deployed" in step_functions("mended.py", "trigger", code=1)
    assert [] == aws.client("events").list_rules(NamePrefix=machine)["Rules"]


def test_deploying_with_the_token_leaves_the_flow_with_its_owner_and_is_needed_once(
    aws, tmp_path, monkeypatch
):
    def deploy(user: str, *words: str, code: int = 0) -> str:
        monkeypatch.setenv("AFLOW_USER", user)
        monkeypatch.setenv("AFLOW_HOME", str(tmp_path / user))
        return step_functions("follower.py", "create", "--name", "Shared", *words, code=code)

    token = re.findall(r"token is (\S+):", deploy("pipeline"))[0]
    assert "was deployed by pipeline" in deploy("ann", code=2)
    assert "goes on to belong to pipeline" in deploy("ann", "--authorize", f"production:{token}")
    assert token in deploy("pipeline"), "who has deployed it before goes on to"
    assert token in deploy("ann"), "the token is remembered"
    assert "is deployed as it is" in step_functions("follower.py", "diff", "--name", "Shared")
    deploy("bob", "--authorize", "wrong", code=2)

    said = deploy("ann", "--generate-new-token")
    assert f"It belongs to ann now. pipeline and all who have the token {token} need" in said
    assert "was deployed by ann" in deploy("pipeline", code=2)
    monkeypatch.setenv("AFLOW_USER", "ann")
    monkeypatch.setenv("AFLOW_HOME", str(tmp_path / "ann"))
    step_functions("follower.py", "delete", "--name", "Shared")


def test_with_a_service_of_metaflows_own_runs_are_in_the_store_and_registered_there(
    aws, tmp_path, monkeypatch
):
    theirs = InThread(f"sqlite:///{tmp_path}/theirs.db", own=False)
    monkeypatch.setenv("AFLOW_SERVICE_URL", theirs.url)
    monkeypatch.chdir(tmp_path)
    words = ["--name", "Beside"]
    said = step_functions("pair.py", "create", *words)
    assert "Jobs record their runs in s3://flows/prefix" in said
    run_file = tmp_path / "run"
    step_functions("pair.py", "trigger", "--run-id-file", str(run_file), *words)
    run = run_file.read_text()
    assert "SUCCEEDED" == ended(aws, "Beside", run), job_logs(aws)

    there = Run(f"Pair/{run}", _namespace_check=False)
    assert there.successful
    assert [2, 4] == there.end_task.data.found
    assert "found [2, 4]\n" == there.end_task.stdout
    there.add_tag("good")
    assert "good" in Run(f"Pair/{run}", _namespace_check=False).user_tags
    assert "" == step_functions("pair.py", "diff", "--quiet", *words)
    path = f"{theirs.url}/flows/Pair/runs/aflow-{run}"
    with urllib.request.urlopen(f"{path}/steps/end/tasks") as answer:
        (task,) = json.load(answer)
    with urllib.request.urlopen(f"{path}/steps/end/tasks/{task['task_id']}/artifacts") as answer:
        artifacts = {each["name"]: each for each in json.load(answer)}
    theirs.stop()

    assert {"found", "_task_ok", "_success"} <= artifacts.keys()
    assert "s3" == artifacts["found"]["ds_type"]
    client.default_metadata()
    step_functions("pair.py", "delete", *words)
