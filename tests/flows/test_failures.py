"""Failures in and around steps: one sentence, the right exit code, nothing left over."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from aflow import client
from aflow.scheduler.states import RunState
from tests.flows.conftest import Workspace
from tests.flows.test_decorators import one_step, states
from tests.support.waiting import wait_until

ISOLATIONS = ["task", "worker"]


@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("raise ValueError('bad value')", "ValueError: bad value"),
        ("sys.exit(3)", "sys.exit(3)"),
        ("sys.exit(0)", "sys.exit(0)"),
        ("os._exit(0)", "exit code 0 before the step had ended"),
        ("os._exit(7)", "exit code 7 before the step had ended"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "segmentation fault"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
        ("os.kill(os.getpid(), signal.SIGTERM)", "signal 15 (SIGTERM)"),
        ("import threading; self.lock = threading.Lock()", "lock"),
        ("self.deep = {'a': [1, (x for x in [])]}", "deep['a'][1]"),
        ("self.nothing", "nothing"),
        ("del self.nothing", "nothing"),
        ("self.next", "self.next"),
    ],
)
def test_each_failure_ends_in_one_sentence(
    workspace: Workspace, isolation: str, body: str, sentence: str
) -> None:
    source = one_step(body)
    if body == "self.next":
        source = source.replace(
            "        self.next(self.end)",
            "        if 0: pass\n        return\n        self.next(self.end)",
            1,
        )
    workspace.write(source)
    ran = workspace.run("--isolation", isolation)
    assert ran.code == 1, ran.out + ran.err
    assert sentence in ran.out + ran.err
    assert "Step failure" in ran.err
    assert "start (task-id 1) failed" in ran.err
    assert "Traceback" not in ran.err
    assert RunState.FAILED is workspace.latest()[0]
    workspace.check()


def test_a_traceback_shows_the_users_lines_alone(workspace: Workspace) -> None:
    workspace.write(one_step("raise ValueError('a * b ** c')"))
    ran = workspace.run()
    assert "ValueError: a * b ** c" in ran.lines
    assert 'File "' in ran.out
    assert "runner.py" not in ran.out
    assert "<flow Flow_ step start> failed:" in ran.lines


def test_indentation_and_odd_bytes_of_printed_lines_are_kept(workspace: Workspace) -> None:
    workspace.write(one_step(
        r'print("    indented  ")' "\n" r'sys.stdout.buffer.write(b"\xff\x00 odd\n")' "\n"
        r'print("no newline", end="")' "\n" r'print("to stderr", file=sys.stderr)'
    ))  # fmt: skip
    for isolation in ISOLATIONS:
        ran = workspace.run("--isolation", isolation)
        assert ran.code == 0, ran.out + ran.err
        assert "    indented  " in ran.lines
        assert "\udcff\x00 odd" in ran.lines
        assert "no newline" in ran.lines
        assert "to stderr" in ran.lines


def test_a_progress_bar_is_shown_now_and_then_and_kept_as_its_last_state(
    workspace: Workspace,
) -> None:
    workspace.write("""
        class Flow_(FlowSpec):
            @step
            def start(self):
                for n in range(24):
                    print(f"\\r{n}/23 rows", end="", file=sys.stderr, flush=True)
                    time.sleep(0.1)
                print(file=sys.stderr)
    """)
    ran = workspace.run()
    shown = [line for line in ran.lines if "rows" in line]
    assert "23/23 rows" == shown[-1]
    assert 2 <= len(shown) < 24, "some states on the way, and the last one"
    client.metadata(f"local@{workspace.path}")
    client.namespace(None)
    run = client.Flow("Flow_").latest_run
    assert run is not None
    assert "23/23 rows\n" == run["start"].task.stderr


def test_an_error_whose_text_is_no_text_is_shown_with_escapes(workspace: Workspace) -> None:
    workspace.write(one_step(r"raise ValueError('caf\udce9')"))
    for isolation in ISOLATIONS:
        ran = workspace.run("--isolation", isolation)
        assert ran.code == 1
        assert r"ValueError: caf\udce9" in ran.out
        assert "exit code" not in ran.out + ran.err


SIBLINGS = """
class Flow_(FlowSpec):
    @step
    def start(self):
        self.xs = [0, 1, 2, 3]
        self.next(self.work, foreach="xs")

    @step
    def work(self):
        if self.input == 0:
            raise ValueError("first one fails")
        time.sleep(1.0)
        self.y = 1
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass
"""


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_running_siblings_of_a_failed_task_finish(workspace: Workspace, isolation: str) -> None:
    workspace.write(SIBLINGS)
    ran = workspace.run("--isolation", isolation, "--max-workers", "4")
    assert ran.code == 1
    assert ["succeeded", "failed", *["succeeded"] * 3] == states(workspace.latest()[1])
    workspace.check()


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_fail_fast_stops_them_at_once(workspace: Workspace, isolation: str) -> None:
    workspace.write(SIBLINGS.replace("time.sleep(1.0)", "time.sleep(60)"))
    ran = workspace.run("--isolation", isolation, "--max-workers", "4", "--fail-fast")
    assert ran.code == 1, ran.out + ran.err
    ended = states(workspace.latest()[1])
    assert "failed" == ended[1]
    assert {"cancelled"} == set(ended[2:])
    workspace.check()


SLEEPERS = """
class Flow_(FlowSpec):
    @step
    def start(self):
        self.xs = list(range(6))
        self.next(self.work, foreach="xs")

    @step
    def work(self):
        print("asleep", flush=True)
        time.sleep(60)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass
"""


@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_run_cleanly(
    workspace: Workspace, isolation: str, signum: signal.Signals, code: int
) -> None:
    workspace.write(SLEEPERS)
    process = workspace.start("--no-pylint", "run", "--isolation", isolation, "--max-workers", "2")
    wait_for(process, "asleep")
    process.send_signal(signum)
    ran = workspace.finish(process)
    assert code == ran.code, ran.out + ran.err
    assert "Traceback" not in ran.err
    assert RunState.CANCELLED is workspace.latest()[0]
    workspace.check()


def test_two_interrupts_stop_even_a_step_that_ignores_them(workspace: Workspace) -> None:
    workspace.write(SLEEPERS.replace(
        'print("asleep"', 'signal.signal(signal.SIGTERM, signal.SIG_IGN); print("asleep"'
    ))  # fmt: skip
    process = workspace.start("--no-pylint", "run", "--max-workers", "2")
    wait_for(process, "asleep")
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    assert 130 == workspace.finish(process).code
    workspace.check()


def test_interrupts_end_a_run_whose_file_never_gets_to_its_flow_in_the_zygote(
    workspace: Workspace,
) -> None:
    workspace.write(
        """
import time
from pathlib import Path

if Path("seen").exists():
    Path("again").touch()
    time.sleep(600)
Path("seen").touch()
"""
        + one_step("pass")
    )
    process = workspace.start("--no-pylint", "run", "--process", "fork")
    wait_until((workspace.path / "again").exists)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    ran = workspace.finish(process)
    assert 130 == ran.code, ran.out + ran.err
    assert RunState.CANCELLED is workspace.latest()[0]
    workspace.check()


def test_a_killed_coordinator_leaves_no_process_behind(workspace: Workspace) -> None:
    workspace.write(SLEEPERS)
    process = workspace.start("--no-pylint", "run", "--max-workers", "2")
    wait_for(process, "asleep")
    process.kill()
    workspace.finish(process)  # its pipes are closed only when the last task has release them
    workspace.check()


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    """Read the output of a run until it contains the text."""
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return
    pytest.fail(f"{text!r} never came: {process.communicate()}")


def test_stdin_is_empty_for_a_step(workspace: Workspace) -> None:
    workspace.write(one_step("print('read', repr(sys.stdin.read()))"))
    assert "read ''" in workspace.run().lines


def test_python_is_the_one_that_ran_the_command(workspace: Workspace) -> None:
    workspace.write(one_step("print(sys.executable)"))
    assert sys.executable in workspace.run().lines
