"""`aflow.run` and `aflow.arun`: a flow within the calling program."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import aflow
from aflow import FlowSpec, Parameter, current, exit_hook, project, step
from aflow.errors import InvalidFlow, InvalidInput, InvalidName, InvalidParameter, RunFailed
from aflow.runs.events import RunEnded
from tests.flows.conftest import Workspace, processes_in


def leave_a_note(run: Any) -> None:
    """A hook."""
    Path("note").write_text(run.pathspec)


@exit_hook(on_success=[leave_a_note], on_error=["leave_a_note"])
@project(name="inside")
class InsideFlow(FlowSpec):
    """Divides."""

    n = Parameter("n", default=3)

    @step
    def start(self) -> None:
        """The numbers."""
        self.xs = list(range(self.n))
        self.branch = current.branch_name
        self.next(self.divide, foreach="xs")

    @step
    def divide(self) -> None:
        """One of them."""
        self.y = 10 // (self.n - 4 - self.input)
        self.next(self.join)

    @step
    def join(self, inputs: Any) -> None:
        """All of them."""
        self.merge_artifacts(inputs, include=["branch"])
        self.ys = [each.y for each in inputs]
        self.next(self.end)

    @step
    def end(self) -> None:
        """The end."""


class LostFlow(FlowSpec):
    """Leads nowhere."""

    @step
    def start(self) -> None:
        """The start."""
        self.next(self.nowhere)

    @step
    def end(self) -> None:
        """The end."""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "workspace" not in request.fixturenames:  # whose processes run elsewhere
        monkeypatch.chdir(tmp_path)


def test_a_flow_runs_and_its_run_is_given() -> None:
    heard: list[Any] = []

    run = aflow.run(
        InsideFlow,
        n=2,
        tags=["a"],
        max_workers=2,
        branch="x",
        decorators=["retry:times=0"],
        watch=heard.extend,
    )

    assert run.successful
    assert [-5, -4] == run.data.ys
    assert "test.x" == run.data.branch
    assert {"a"} == run.user_tags
    assert isinstance(heard[-1], RunEnded)
    assert run.pathspec == Path("note").read_text()
    assert [os.getpid()] == processes_in(Path.cwd())


def test_a_run_that_fails_raises_what_failed() -> None:
    with pytest.raises(
        RunFailed, match=r"in step 'divide' \(task \d+\): ZeroDivisionError"
    ) as seen:
        aflow.run(InsideFlow, n=4, max_workers=1)

    assert isinstance(seen.value.run, aflow.Run)
    assert not seen.value.run.successful
    assert "divide" == seen.value.step
    assert "ZeroDivisionError" in seen.value.reason
    assert seen.value.run.pathspec == Path("note").read_text()


async def test_a_flow_runs_where_an_event_loop_is_running(tmp_path: Path) -> None:
    storage = tmp_path / "else"

    run = aflow.run(
        InsideFlow, n=1, storage=storage.as_uri(), metadata=f"sqlite:///{storage}/metadata.db"
    )

    assert [-4] == run.data.ys
    assert (storage / "metadata.db").exists()
    assert not (tmp_path / ".aflow").exists()
    with pytest.raises(RunFailed):
        aflow.run(InsideFlow, n=4)


async def test_several_flows_run_side_by_side() -> None:
    runs = await asyncio.gather(*(aflow.arun(InsideFlow, n=n) for n in (1, 2, 3)))

    assert [1, 2, 3] == [len(run.data.ys) for run in runs]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"m": 1}, InvalidParameter),
        ({"n": "many"}, InvalidParameter),
        ({"tags": "a"}, InvalidName),
        ({"tags": [""]}, InvalidName),
        ({"tags": [str(n) for n in range(60)]}, InvalidName),
        ({"max_workers": 0}, InvalidInput),
        ({"branch": "No!"}, InvalidInput),
        ({"decorators": ["retri"]}, InvalidInput),
    ],
)
def test_what_cannot_be_given_is_refused_before_anything_runs(
    options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        aflow.run(InsideFlow, **options)

    assert not Path("note").exists()


def test_a_flow_is_run_as_the_settings_say_as_by_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AFLOW_EXECUTOR", "queue")
    with pytest.raises(InvalidInput, match="AFLOW_QUEUE"):
        aflow.run(InsideFlow)

    monkeypatch.setenv("AFLOW_EXECUTOR", "local")
    monkeypatch.setenv("AFLOW_DEFAULT_DECOSPECS", "retri")
    with pytest.raises(InvalidInput, match="retri"):
        aflow.run(InsideFlow)


def test_what_is_no_flow_or_no_good_one_is_refused() -> None:
    with pytest.raises(InvalidInput, match="run takes the class of a flow"):
        aflow.run(InsideFlow(use_cli=False))  # type: ignore[arg-type]
    with pytest.raises(InvalidFlow, match="nowhere"):
        aflow.run(LostFlow)


SCRIPT = """
import asyncio, signal, sys, time
import aflow
from aflow import FlowSpec, step

class WaitFlow(FlowSpec):
    @step
    def start(self):
        print("started")
        time.sleep(60)
        self.next(self.end)

    @step
    def end(self):
        pass

def watch(events):
    if any("started" in str(getattr(each, "text", "")) for each in events):
        print("started", flush=True)

async def in_a_loop():
    aflow.run(WaitFlow, watch=watch)

if __name__ == "__main__":
    try:
        if sys.argv[1] == "loop":  # as a notebook has it: Ctrl-C is not asyncio's
            asyncio.new_event_loop().run_until_complete(in_a_loop())
        else:
            aflow.run(WaitFlow, watch=watch)
    except KeyboardInterrupt:
        print(aflow.Flow("WaitFlow").latest_run.status)
"""


@pytest.mark.parametrize("mode", ["plain", "loop"])
def test_a_program_that_is_interrupted_stops_its_run(workspace: Workspace, mode: str) -> None:
    (workspace.path / "script.py").write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, "script.py", mode],
        cwd=workspace.path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert "started\n" == process.stdout.readline()

    process.send_signal(signal.SIGINT)

    ran = workspace.finish(process)
    assert "cancelled\n" == ran.out
    workspace.check()
