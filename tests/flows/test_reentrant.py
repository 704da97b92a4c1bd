"""`resume --reentrant`: one of several callers starts the run, and all get its result."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from aflow import client
from aflow.metadata.base import RunRecord
from aflow.metadata.sqlite import SqliteMetadata
from aflow.scheduler.states import RunState
from tests.flows.conftest import Ran, Workspace

FLOW = """
class Flow_(FlowSpec):
    @step
    def start(self):
        self.x = 5
        self.next(self.work)

    @step
    def work(self):
        if not os.path.exists("mended"):
            raise ValueError("broken")
        if os.path.exists("gate"):
            open("gate").read()  # until the test has opened it, and closed it again
        print("work runs")
        self.next(self.end)

    @step
    def end(self):
        pass
"""


@pytest.fixture
def failed(workspace: Workspace) -> Workspace:
    """A workspace with a failed run, which the tests name origin, whose cause is fixed."""
    workspace.write(FLOW)
    assert 1 == workspace.run("--run-id-file", "origin").code
    (workspace.path / "mended").touch()
    return workspace


def start(workspace: Workspace, *args: str) -> subprocess.Popen[str]:
    origin = (workspace.path / "origin").read_text()
    shared = ["--reentrant", "--origin-run-id", origin, "--run-id", "shared", *args]
    return workspace.start("--no-pylint", "resume", *shared)


def resume(workspace: Workspace, *args: str) -> Ran:
    return workspace.finish(start(workspace, *args))


def shared(workspace: Workspace) -> client.Run:
    """Return the run that all callers share; it is the only one besides its origin."""
    client.metadata(f"local@{workspace.path}")
    client.namespace(None)
    runs: list[client.Run] = [*client.Flow("Flow_")]
    assert ["shared"] == [run.id for run in runs][:-1]
    return runs[0]


def test_one_resumes_and_the_others_wait_for_it(failed: Workspace) -> None:
    os.mkfifo(failed.path / "gate")
    first = start(failed, "--resume-identifier", "start-1")
    assert first.stdout is not None
    assert any("Task is starting." in line for line in first.stdout)
    second = start(failed, "--run-id-file", "mine", "--runner-attribute-file", "facts")
    assert second.stderr is not None
    reported = next(line for line in second.stderr if "waiting" in line)
    assert "Flow_/shared is being resumed by start-1" in reported
    with (failed.path / "gate").open("w"):  # opens when the step reads from it
        pass
    ran = [failed.finish(each) for each in (first, second)]
    assert [0, 0] == [each.code for each in ran], ran
    assert "Flow_/shared is succeeded" in ran[1].err
    assert "work runs\n" == shared(failed)["work"].task.stdout
    assert "shared" == (failed.path / "mine").read_text()
    assert '"run_id": "shared"' in (failed.path / "facts").read_text()
    late = resume(failed)
    assert (0, "") == (late.code, late.out)
    failed.check()


def test_many_at_once_make_one_run(failed: Workspace) -> None:
    started = [start(failed, "--clone-only") for _ in range(4)]
    ran = [failed.finish(each) for each in started]
    assert [0] * 4 == [each.code for each in ran], ran
    assert 1 == sum("cloned!" in each.out for each in ran)
    assert ["start"] == [step.id for step in shared(failed)]
    failed.check()


def test_a_run_that_failed_fails_all_who_waited(failed: Workspace) -> None:
    (failed.path / "mended").unlink()
    assert 1 == resume(failed).code
    late = resume(failed)
    assert (1, "") == (late.code, late.out)
    assert "Flow_/shared is failed" in late.err


def half(workspace: Workspace) -> None:
    """Record the shared run as if its process had crashed before it took anything over."""
    metadata = SqliteMetadata(Path(workspace.path) / ".aflow" / "metadata.db")
    origin = metadata.runs("Flow_")[0]
    left: RunRecord = origin._replace(run="shared", state=RunState.RUNNING, finished_at=None)
    [parameters, *_] = metadata.all_manifests(origin.key)
    metadata.create_run(left, parameters, "coordinator/gone", 0.0)
    metadata.close()


def test_where_the_first_one_died_another_begins_anew(failed: Workspace) -> None:
    half(failed)
    ran = resume(failed)
    assert 0 == ran.code, ran.err
    assert "work runs" in ran.lines
    assert 5 == shared(failed).data.x


def test_what_has_run_before_the_first_one_died_is_not_thrown_away(failed: Workspace) -> None:
    os.mkfifo(failed.path / "gate")
    first = start(failed)
    assert first.stdout is not None
    assert any("Task is starting." in line for line in first.stdout)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    failed.expire_leases()
    refused = resume(failed)
    assert 2 == refused.code
    assert "resume it with --origin-run-id shared and another --run-id" in " ".join(
        refused.err.split()
    )
    (failed.path / "gate").unlink()
    recovered = failed.finish(failed.start_aflow("recover", "Flow_/shared"))
    assert 0 == recovered.code, recovered.err
    assert 5 == shared(failed).data.x


@pytest.mark.parametrize("args", [("--run-id", "shared"), ("--origin-run-id", "1"), ()])
def test_all_callers_have_to_mean_the_same(failed: Workspace, args: tuple[str, ...]) -> None:
    ran = failed.finish(failed.start("resume", "--reentrant", *args))
    assert 2 == ran.code
    assert "--reentrant needs --run-id and --origin-run-id" in " ".join(ran.err.split())
