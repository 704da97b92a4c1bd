"""The client on the results of real runs."""

from __future__ import annotations

import os
import pickle
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator

import pytest

from aflow import client
from aflow.client import Run
from tests.flows.conftest import Workspace

FLOW = """
from aflow import trigger_on_finish

@trigger_on_finish(flow="Flow_")
class Flow_(FlowSpec):
    @step
    def start(self):
        self.x = 1
        print("started")
        self.next(self.end)

    @step
    def end(self):
        pass
"""


@pytest.fixture
def two_runs(workspace: Workspace) -> tuple[Run, Run]:
    """Two runs as the client reads them: the end of the first has triggered the second."""
    workspace.write(FLOW)
    assert 0 == workspace.run("--run-id-file", "first").code
    first = (workspace.path / "first").read_text()
    second = workspace.run("--trigger", f"Flow_/{first}", "--run-id-file", "second")
    assert 0 == second.code, second.err
    client.metadata(f"local@{workspace.path}")
    client.namespace(None)
    ids = (first, (workspace.path / "second").read_text())
    return Run(f"Flow_/{ids[0]}"), Run(f"Flow_/{ids[1]}")


@pytest.fixture(autouse=True)
def _choices() -> Iterator[None]:
    yield
    client.default_metadata()
    client.default_namespace()


def test_a_run_knows_the_run_that_triggered_it(two_runs: tuple[Run, Run]) -> None:
    first, second = two_runs

    assert first.trigger is None
    assert second.trigger is not None
    assert first.pathspec == second.trigger.run.pathspec
    assert "Flow_" in second.trigger


def test_every_object_can_be_pickled_and_shown(two_runs: tuple[Run, Run]) -> None:
    run = two_runs[0]
    task = run["start"].task
    for each in (run.parent, run, task.parent, task, task["x"]):
        again = pickle.loads(pickle.dumps(each))
        assert repr(each) == repr(again) == str(again)
        assert each.pathspec in again._repr_html_()
    assert 1 == pickle.loads(pickle.dumps(task.data)).x


# Drop root's privileges, if the tests have them: read-only files must be readable.
WITHOUT_RIGHTS = (
    []
    if os.getuid()
    else [
        "setpriv",
        "--bounding-set=-dac_override,-dac_read_search,-fowner,-sys_admin",
        "--inh-caps=-dac_override,-dac_read_search,-fowner",
    ]
)
READ = """
from aflow import Flow, namespace
namespace(None)
tasks = [run["start"].task for run in Flow("Flow_")]
print([(each.successful, each.data.x, each.stdout) for each in tasks])
"""


@pytest.mark.parametrize("log", ["applied", "left behind"])
def test_results_in_a_folder_that_nobody_may_write_are_read(workspace: Workspace, log: str) -> None:
    if WITHOUT_RIGHTS and shutil.which("setpriv") is None:
        pytest.skip("root may write everywhere, and setpriv is not there to take that from it")
    workspace.write(FLOW)
    assert 0 == workspace.run().code
    database = workspace.path / ".aflow" / "metadata.db"
    if log == "left behind":  # by a process that has died: SQLite cannot apply it here
        connection = sqlite3.connect(database)
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute("UPDATE runs SET user = 'somebody'")
        connection.commit()
        for end in ("", "-wal"):
            shutil.copyfile(f"{database}{end}", f"{database}{end}.copy")
        connection.close()
        for end in ("", "-wal"):
            os.replace(f"{database}{end}.copy", f"{database}{end}")
    folders = [workspace.path / ".aflow", *(workspace.path / ".aflow").rglob("*")]
    for each in folders:
        each.chmod(0o555 if each.is_dir() else 0o444)
    try:
        client = subprocess.run(
            [*WITHOUT_RIGHTS, sys.executable, "-c", READ],
            cwd=workspace.path, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        listed = subprocess.run(
            [*WITHOUT_RIGHTS, sys.executable, "-m", "aflow", "runs"],
            cwd=workspace.path, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
    finally:
        for each in folders:
            each.chmod(0o755)
    assert "[(True, 1, 'started\\n')]\n" == client.stdout, client.stderr
    assert ("somebody" if log == "left behind" else "tester") in listed.stdout, listed.stderr
