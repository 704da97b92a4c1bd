"""The code packages of runs: stored with each run, shown, compared and downloaded."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from aflow import client
from aflow.client import Run
from tests.flows.conftest import Ran, Workspace

FLOW = """
import helpers
from aflow import FlowMutator

class WithNotes(FlowMutator):
    def add_to_package(self):
        yield "notes.txt", "docs/notes.txt"

@WithNotes
class Flow_(FlowSpec):
    @step
    def start(self):
        self.x = helpers.x
        self.next(self.end)

    @step
    def end(self):
        pass
"""


@pytest.fixture
def flow(workspace: Workspace) -> Workspace:
    """A workspace with a flow of two files, and a third that a mutator adds."""
    workspace.write(FLOW)
    (workspace.path / "helpers.py").write_text("x = 1\n")
    (workspace.path / "notes.txt").write_text("a note\n")
    return workspace


def aflow(workspace: Workspace, *words: str) -> Ran:
    """Run a command, which must succeed."""
    ran = workspace.finish(workspace.start_aflow(*words))
    assert 0 == ran.code, ran.err
    return ran


def latest(workspace: Workspace) -> Run:
    """The latest run."""
    client.metadata(f"local@{workspace.path}")
    client.namespace(None)
    run = client.Flow("Flow_").latest_run
    assert run is not None
    return run


def test_a_run_keeps_its_code_whatever_becomes_of_the_files(flow: Workspace) -> None:
    source = (flow.path / "flow.py").read_text()
    assert 0 == flow.run().code
    (flow.path / "helpers.py").write_text("x = 2\n")

    code = latest(flow).code

    assert code is not None
    assert source == code.flowspec
    assert "flow.py" == code.script_name == code.info["script"]
    assert ["docs/notes.txt", "flow.py", "helpers.py"] == code.tarball.getnames()
    with code.extract() as folder:
        assert "x = 1\n" == Path(folder, "helpers.py").read_text()
    task = latest(flow)["start"].task
    assert task.code is not None
    assert code.path == task.code.path


def test_the_same_code_is_kept_once_and_gc_leaves_it_while_a_run_needs_it(flow: Workspace) -> None:
    assert 0 == flow.run().code
    first = latest(flow)
    assert 0 == flow.run().code
    second = latest(flow)
    assert first.code is not None
    assert second.code is not None
    assert first.code.path == second.code.path

    aflow(flow, "gc", "--keep", "1", "--flow", "Flow_", "--grace", "0s")

    assert ["docs/notes.txt", "flow.py", "helpers.py"] == second.code.tarball.getnames()
    aflow(flow, "gc", "--flow", "Flow_", "--grace", "0s")
    assert [] == list(flow.path.glob(".aflow/blobs/*/*"))


def test_other_suffixes_make_another_package(flow: Workspace) -> None:
    assert 0 == flow.run("--package-suffixes", ".txt").code
    code = latest(flow).code
    assert code is not None
    assert ["docs/notes.txt", "flow.py", "notes.txt"] == code.tarball.getnames()


def test_package_shows_lists_and_saves_what_would_travel(flow: Workspace) -> None:
    info = aflow(flow, "package", "info", "flow.py")
    listed = aflow(flow, "package", "list", "--archive", "flow.py")
    paths = aflow(flow, "package", "list", "flow.py")
    aflow(flow, "package", "save", "flow.py", "code.tgz")

    assert "Number of files: 3\n" in info.out
    assert "docs/notes.txt\nflow.py\nhelpers.py\n" == listed.out
    assert f"notes.txt\n{flow.path / 'flow.py'}\n{flow.path / 'helpers.py'}\n" == paths.out
    with tarfile.open(flow.path / "code.tgz") as archive:
        assert ["docs/notes.txt", "flow.py", "helpers.py"] == archive.getnames()


def test_a_package_that_cannot_be_written_is_one_sentence(flow: Workspace) -> None:
    ran = flow.finish(flow.start("package", "save", "no/such/folder.tar"))

    assert 1 == ran.code
    assert "no/such/folder.tar cannot be written: No such file or directory." in ran.err
    assert "Traceback" not in ran.err


needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


@needs_git
def test_the_difference_between_a_run_and_the_files_here_is_shown_and_applied(
    flow: Workspace,
) -> None:
    assert 0 == flow.run().code
    path = latest(flow).pathspec
    (flow.path / "helpers.py").write_text("x = 2\n")
    (flow.path / "flow.py").unlink()

    shown = aflow(flow, "code", "diff", path).out
    aflow(flow, "code", "patch", path, "--file-path", "back.patch")
    subprocess.run(["git", "apply", "back.patch"], cwd=flow.path, check=True, timeout=100)

    assert "-x = 2\n+x = 1\n" in shown
    assert "x = 1\n" == (flow.path / "helpers.py").read_text()
    assert (flow.path / "flow.py").exists()


@needs_git
def test_two_runs_are_compared(flow: Workspace) -> None:
    assert 0 == flow.run().code
    first = latest(flow).pathspec
    (flow.path / "helpers.py").write_text("x = 2\n")
    assert 0 == flow.run().code

    shown = aflow(flow, "code", "diff-runs", first, latest(flow).pathspec).out

    assert "-x = 1\n+x = 2\n" in shown
    assert "flow.py" not in shown


def test_the_code_of_a_run_is_pulled_into_a_new_folder(flow: Workspace) -> None:
    assert 0 == flow.run().code
    path = latest(flow).pathspec

    aflow(flow, "code", "pull", path, "--dir", "there")
    again = flow.finish(flow.start_aflow("code", "pull", path, "--dir", "there"))

    assert "x = 1\n" == (flow.path / "there" / "helpers.py").read_text()
    assert 2 == again.code
    assert "there exists already: name another folder with --dir." in again.err


def test_the_code_of_a_run_that_is_not_there_is_one_sentence(flow: Workspace) -> None:
    assert 0 == flow.run().code
    ran = flow.finish(flow.start_aflow("code", "pull", "Flow_/99"))

    assert 1 == ran.code
    assert "has no run '99'" in ran.err
    assert "Traceback" not in ran.err


def test_a_mutator_that_gives_nonsense_does_not_hold_a_local_run_up(workspace: Workspace) -> None:
    workspace.write(FLOW.replace('yield "notes.txt", "docs/notes.txt"', "yield 5"))
    (workspace.path / "helpers.py").write_text("x = 1\n")

    assert 0 == workspace.run().code
    assert latest(workspace).code is None
    ran = workspace.finish(workspace.start("package", "list"))
    assert 1 == ran.code
    assert "add_to_package of WithNotes gave 5" in ran.err
