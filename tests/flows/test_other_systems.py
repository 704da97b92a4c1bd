"""Runs without Linux-only features: /proc, pidfd, prctl, memfd, waitid, SOCK_SEQPACKET. All
processes of a run lack them (tests/support/without_linux): their replacements are for macOS."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.flows.conftest import Workspace, children_of, processes_in
from tests.support.waiting import wait_until

WITHOUT_LINUX = {"PYTHONPATH": str(Path(__file__).parents[1] / "support" / "without_linux")}

FLOW = """
class Flow_(FlowSpec):
    @step
    def start(self):
        try:
            open("/proc/self/stat")
        except FileNotFoundError:
            self.xs = list(range(12))
        self.next(self.work, foreach="xs")

    @step
    def work(self):
        print("x" * 1000)
        os.write(2, b"past Python\\n")
        self.y = self.input ** 2
        self.next(self.join)

    @step
    def join(self, inputs):
        self.total = sum(each.y for each in inputs)
        kept = bytearray(150 << 20)
        self.next(self.killed)

    @retry(times=1, minutes_between_retries=0)
    @step
    def killed(self):
        if current.retry_count == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.next(self.slow)

    @catch(var="late")
    @timeout(seconds=1)
    @step
    def slow(self):
        time.sleep(600)
        self.next(self.big)

    @catch(var="over")
    @resources(memory=100)
    @step
    def big(self):
        kept = bytearray(200 << 20)
        time.sleep(600)
        self.next(self.end)

    @step
    def end(self):
        print("total", self.total, bool(self.late), self.over is not None)
"""

HANGS = """
class Flow_(FlowSpec):
    @step
    def start(self):
        open("began", "w").close()
        time.sleep(600)
        self.next(self.end)

    @step
    def end(self):
        pass
"""


@pytest.mark.parametrize("isolation", ["task", "worker"])
def test_a_run_needs_nothing_that_linux_alone_has(workspace: Workspace, isolation: str) -> None:
    workspace.write(FLOW)
    ran = workspace.run("--isolation", isolation, "--max-workers", "3", **WITHOUT_LINUX)

    assert 0 == ran.code, ran.err
    assert f"total {sum(x * x for x in range(12))} True True" in ran.out
    assert 12 == ran.err.count("past Python") + ran.out.count("past Python")
    assert "that it asked for, and had " in ran.out + ran.err, "memory is measured by ps"
    join = next(each.attempt for each in workspace.latest()[1] if each.task.step == "join")
    if isolation == "task":
        assert join.max_rss is not None
        assert 150 < join.max_rss >> 20 < 1500
    workspace.check()


@pytest.mark.parametrize("isolation", ["task", "worker"])
def test_a_run_that_is_stopped_or_killed_leaves_no_process(
    workspace: Workspace, isolation: str
) -> None:
    workspace.write(HANGS)
    began = workspace.path / "began"

    stopped = workspace.start("--no-pylint", "run", "--isolation", isolation, **WITHOUT_LINUX)
    wait_until(began.exists)
    stopped.send_signal(signal.SIGINT)
    assert 0 != workspace.finish(stopped).code
    workspace.check()

    began.unlink()
    killed = workspace.start("--no-pylint", "run", "--isolation", isolation, **WITHOUT_LINUX)
    wait_until(began.exists)
    # The coordinator cannot see that the process that tasks come of has ended, nor that process
    # that the coordinator has.
    killed.send_signal(signal.SIGSTOP)
    for zygote in children_of(killed.pid):
        os.kill(zygote, signal.SIGKILL)
    killed.send_signal(signal.SIGKILL)
    workspace.finish(killed)
    wait_until(lambda: [] == processes_in(workspace.path), lambda: processes_in(workspace.path))


def test_a_command_that_a_program_runs_is_waited_for(workspace: Workspace) -> None:
    workspace.write(HANGS.replace("time.sleep(600)", "print('there')"))
    program = """\
from aflow import Runner
with Runner("flow.py").run() as running:
    print(running.status, running.returncode)
"""
    (workspace.path / "program.py").write_text(program)
    ran = workspace.finish(workspace._start(["program.py"], WITHOUT_LINUX))

    assert "successful 0" in ran.out, ran.err
