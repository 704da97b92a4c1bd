"""Functions that are called after the end of a run."""

from __future__ import annotations

import os
import signal

import pytest

from aflow.runs import exit_hooks
from tests.flows.conftest import Workspace, children_of

HOOKS = """
from aflow import exit_hook
import helpers

def well(run):
    print("well", run.successful, run.data.x, current.is_running_flow)

def badly(run=None):
    print("badly", run.pathspec.split("/")[0], run.status)

def quiet():
    print("no argument")

def any_name(the_run):
    print("by place", the_run.finished)

def breaks(**all):
    raise ValueError("hook " + all["run"].id)

@exit_hook(on_success=[well, "quiet", breaks], on_error=["badly"])
@exit_hook(on_success=[any_name, lambda run: print("lambda", run.id), "helpers.far"])
class Flow_(FlowSpec):
    fail = Parameter("fail", default=False)

    @step
    def start(self):
        self.x = 5
        if self.fail:
            raise RuntimeError("no")
        print("started")
        if os.path.exists("wait"):
            time.sleep(60)
        self.next(self.end)

    @step
    def end(self):
        pass
"""
HELPERS = """
def far(run):
    print("far", run.successful)
"""


@pytest.fixture
def hooked(workspace: Workspace) -> Workspace:
    """A flow with hooks of all kinds."""
    workspace.write(HOOKS)
    (workspace.path / "helpers.py").write_text(HELPERS)
    return workspace


@pytest.mark.parametrize("command", ["python", "aflow"])
def test_hooks_are_called_with_the_run_that_has_ended(hooked: Workspace, command: str) -> None:
    words = ("--no-pylint", "run", "--run-id-file", "id")
    ran = hooked.finish(
        hooked.start(*words) if command == "python" else hooked.start_aflow(*words, "flow.py")
    )
    run = (hooked.path / "id").read_text()

    after = ran.out[ran.out.index("Done!") :].splitlines()[1:]
    assert [
        "well True 5 False",
        "no argument",
        "by place True",
        f"lambda {run}",
        "far True",
    ] == after
    assert f"ValueError: hook {run}" in ran.err
    assert "The exit hook breaks has failed (exit code 1).\n" in ran.err
    assert 0 == ran.code
    hooked.check()


def test_the_hooks_of_a_failed_run_are_those_on_error(hooked: Workspace) -> None:
    ran = hooked.run("--fail", "true")

    assert "badly Flow_ failed\n" in ran.out
    assert "well" not in ran.out
    assert 1 == ran.code


def test_a_run_that_was_stopped_has_its_hooks_on_error(hooked: Workspace) -> None:
    (hooked.path / "wait").touch()
    process = hooked.start("--no-pylint", "run")
    assert process.stdout is not None
    for line in process.stdout:
        if "started" in line:
            process.send_signal(signal.SIGTERM)
            break

    ran = hooked.finish(process)

    assert "badly Flow_ cancelled\n" in ran.out
    assert 143 == ran.code


def test_a_resumed_run_has_its_hooks(hooked: Workspace) -> None:
    assert 1 == hooked.run("--fail", "true").code

    ran = hooked.finish(hooked.start("--no-pylint", "resume"))

    assert "badly Flow_ failed\n" in ran.out


def test_a_hook_that_is_nowhere_is_reported(workspace: Workspace) -> None:
    workspace.write(
        HOOKS.replace('"quiet", breaks', '"nowhere", "no.where"')
        .replace("import helpers", "")
        .replace('"helpers.far"', "quiet")
    )

    ran = workspace.run()

    assert "The exit hook nowhere could not be called: " in ran.err
    assert "has no function 'nowhere'" in ran.err
    assert "The exit hook no.where has failed (exit code 1)." in ran.err
    assert 0 == ran.code
    assert "no argument\n" in ran.out


def test_what_a_hook_leaves_running_is_not_waited_for(workspace: Workspace) -> None:
    workspace.write(
        """
import subprocess
from aflow import exit_hook

def leaves():
    left = subprocess.Popen(["sleep", "600"], stderr=subprocess.DEVNULL)
    open("pid", "w").write(str(left.pid))
    print("hook is done")

@exit_hook(on_success=[leaves])
class Flow_(FlowSpec):
    @step
    def start(self):
        self.next(self.end)

    @step
    def end(self):
        pass
"""
    )
    try:
        ran = workspace.run()
        assert "hook is done\n" in ran.out
    finally:
        os.kill(int((workspace.path / "pid").read_text()), signal.SIGKILL)


def test_an_interrupt_while_a_hook_is_asked_for_leaves_no_process() -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    others = children_of(os.getpid())
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    try:
        with pytest.raises(KeyboardInterrupt):
            # More than a pipe holds: it is written as soon as the new interpreter reads it.
            exit_hooks._in_a_process("x" * (1 << 20), "Flow_/1", "memory:")
    finally:
        signal.signal(signal.SIGALRM, before)
    assert others == children_of(os.getpid())
