"""Flows that are defined in cells of a notebook."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aflow import NBDeployer, NBRunner
from aflow.errors import CommandFailed, FlowFileError
from aflow.flow.spec import FlowSpec
from aflow.runner.notebook import flow_file_of, without_magic
from tests.flows.conftest import Workspace
from tests.flows.test_run_inside import InsideFlow

CELL = """
%time
%matplotlib_that_is_missing?
from aflow import FlowSpec, NBRunner, Parameter, step
!echo hello
if True:
    where = %pwd
    %who

import enum

class Mode(enum.Enum):
    FAST = 1

class CellFlow(FlowSpec):
    n = Parameter("n", default=2)

    @step
    def start(self):
        self.xs = list(range(self.n
            % 100
        ))
        assert "% no" in '''
% no magic
!echo either
'''
        self.next(self.double, foreach="xs")

    @step
    def double(self):
        self.y = self.input * 2
        self.next(self.join)

    @step
    def join(self, inputs):
        self.total = sum(each.y for each in inputs)
        self.next(self.end)

    @step
    def end(self):
        self.mode = Mode.FAST

"""
NOTEBOOK = f"""
import sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
for cell in ({CELL!r} + "LAST", "import aflow; INNER"):
    shell.run_cell(cell, store_history=True).raise_error()
"""


def notebook(workspace: Workspace, last: str, inner: str = "None") -> str:
    """Return the output of a notebook whose first cell ends with `last`, and whose second is
    `inner`."""
    pytest.importorskip("IPython", reason="there is no notebook without IPython")
    script = NOTEBOOK.replace("LAST", last).replace("INNER", inner)
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=workspace.path,
        env=os.environ | {"IPYTHONDIR": str(workspace.path / "home")},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert 0 == result.returncode, result.stdout + result.stderr
    return result.stdout


def test_the_flow_of_a_cell_runs_as_a_file(workspace: Workspace) -> None:
    said = notebook(
        workspace,
        "d = NBRunner(CellFlow, pylint=False).nbrun(n=4).data; "
        "print('total', d.total, d.mode is Mode.FAST)",
    )

    assert "total 12 True\n" in said
    assert "Task is starting." in said
    assert [] == list(workspace.path.glob("*.py"))
    workspace.check()


def test_the_flow_of_an_earlier_cell_runs_too_and_can_be_resumed(workspace: Workspace) -> None:
    inner = (
        "nb = NBRunner(CellFlow, show_output=False, pylint=False, base_dir='.'); "
        "run = nb.run(n=3).run; spun = nb.spin('join').task; "
        "again = nb.resume(origin_run_id=run.id).run; nb.cleanup(); nb.cleanup(); "
        "print('totals', run.data.total, spun.data.total, again.data.total, "
        "again.origin_pathspec == run.pathspec)"
    )

    assert "totals 6 6 6 True\n" in notebook(workspace, "None", inner)


def test_the_flow_of_a_cell_runs_inside_of_the_notebook(workspace: Workspace) -> None:
    inner = "d = aflow.run(CellFlow, n=5).data; print('inside', d.total, d.mode is Mode.FAST)"

    assert "inside 20 True\n" in notebook(workspace, "None", inner)
    workspace.check()


def test_outside_of_a_notebook_the_file_of_the_class_is_taken(tmp_path: Path) -> None:
    # The module of the flow imports its neighbours, which are on the path of the tests alone.
    env = {"PYTHONPATH": str(Path(__file__).parents[2])}
    notebook = NBRunner(InsideFlow, show_output=False, env=env, pylint=False, base_dir=tmp_path)
    run = notebook.nbrun(n=2)

    assert [-5, -4] == run.data.ys
    assert [] == [*tmp_path.glob("*.py")]
    assert run.id == notebook.nbresume().origin_pathspec.rpartition("/")[2]
    assert [] == [*tmp_path.glob("*.py")]
    with pytest.raises(FlowFileError, match=r"cannot be written to a file in .*absent"):
        NBRunner(InsideFlow, base_dir=tmp_path / "absent")


def test_a_cell_below_a_magic_counts_and_statements_for_the_notebook_do_not() -> None:
    pytest.importorskip("IPython", reason="the rules are those of IPython")
    from IPython.core.inputtransformer2 import TransformerManager

    cell = """
%%time
x = 17
if x:
    %pip install \\
      something
é = !ls
get_ipython().run_line_magic("who", "")
y = (x
    % 5)
z = 1
"""
    left = without_magic(cell, TransformerManager().transform_cell)

    assert [
        "x = 17",
        "if x:",
        "    pass",
        "pass",
        "pass",
        "y = (x",
        "    % 5)",
        "z = 1",
    ] == [line for line in left.splitlines() if line]


async def test_a_notebook_resumes_and_spins_and_waits(tmp_path: Path) -> None:
    env = {"PYTHONPATH": str(Path(__file__).parents[2])}

    def runner() -> NBRunner:  # the nb... methods clean up, so that each has a runner of its own
        return NBRunner(InsideFlow, show_output=False, env=env, pylint=False, base_dir=tmp_path)

    notebook = runner()
    begun = await notebook.async_run(n=2)
    run = (await begun.wait()).run
    assert [-5, -4] == run.data.ys
    assert run.pathspec == runner().nbresume(origin_run_id=run.id).origin_pathspec
    assert [-5, -4] == runner().nbspin(f"{run.id}/end").data.ys
    resumed = await (await notebook.async_resume(origin_run_id=run.id)).wait()
    spun = await (await notebook.async_spin(f"{run.id}/end")).wait()
    assert ("successful", "successful") == (resumed.status, spun.status)
    notebook.cleanup()
    assert [] == [*tmp_path.glob("*.py")]


def test_a_class_whose_source_is_nowhere_is_named() -> None:
    made = type("MadeFlow", (FlowSpec,), {"__module__": "nowhere"})

    with pytest.raises(FlowFileError, match="MadeFlow was found in no cell and no file"):
        flow_file_of(made)


def test_the_flow_of_a_cell_is_deployed_as_a_file(tmp_path: Path) -> None:
    env = {"PYTHONPATH": str(Path(__file__).parents[2])}
    deployer = NBDeployer(InsideFlow, show_output=False, env=env, pylint=False, base_dir=tmp_path)
    assert "class InsideFlow" in Path(deployer.flow_file).read_text()
    with pytest.raises(CommandFailed, match="--name cannot be given"):  # it has @project
        deployer.step_functions(name="inside").create(only_json=True)
    deployer.cleanup()
    deployer.cleanup()
    assert [] == [*tmp_path.glob("*.py")]
