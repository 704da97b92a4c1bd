"""Debugging a step: `--debug STEP` gives it the terminal; otherwise breakpoint() is an error."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from aflow import client
from tests.flows.conftest import Ran, Workspace
from tests.support.waiting import PATIENCE

FLOW = """
class Flow_(FlowSpec):
    @step
    def start(self):
        self.xs = [1, 2]
        self.next(self.work, foreach="xs")

    @timeout(seconds=1)
    @step
    def work(self):
        x = 17 * self.input
        breakpoint()
        self.y = x
        self.next(self.join)

    @step
    def join(self, inputs):
        self.ys = [each.y for each in inputs]
        self.next(self.end)

    @step
    async def end(self):
        self.who = input("name? ")
"""


def run_with_keys(workspace: Workspace, keys: str, *words: str) -> Ran:
    """Run `python flow.py WORDS`, with these keys as its stdin."""
    done = subprocess.run(
        [sys.executable, "flow.py", "--no-pylint", *words],
        cwd=workspace.path,
        input=keys,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def data(workspace: Workspace, step: str) -> list[client.Task]:
    client.metadata(f"local@{workspace.path}")
    client.namespace(None)
    run = client.Flow("Flow_").latest_run
    assert run is not None
    return sorted(run[step], key=lambda task: int(task.id))


def test_the_tasks_of_a_debugged_step_ask_one_after_the_other(workspace: Workspace) -> None:
    workspace.write(FLOW.replace('input("name? ")', "'none'"))
    ran = run_with_keys(workspace, "x = x + 25\np x\nc\np x\nc\n", "run", "--debug", "work")
    assert 0 == ran.code, ran.out + ran.err
    assert [42, 34] == [task.data.y for task in data(workspace, "work")]
    assert "(Pdb) 42" in data(workspace, "work")[0].stdout
    workspace.check()


@pytest.mark.parametrize("isolation", ["task", "worker"])
def test_a_coroutine_step_asks_too_and_so_does_a_step_that_is_spun(
    workspace: Workspace, isolation: str
) -> None:
    workspace.write(FLOW.replace("breakpoint()", "pass"))
    words = ("run", "--isolation", isolation, "--debug", "end")
    assert 0 == run_with_keys(workspace, "ada\n", *words).code
    assert "ada" == data(workspace, "end")[0].data.who
    spun = run_with_keys(workspace, "bob\n", "spin", "end", "--debug")
    assert "name? " in spun.out
    assert 0 == spun.code, spun.err


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("breakpoint()", "breakpoint() cannot stop: a step has no terminal"),
        ("import pdb; pdb.set_trace(); x = 1", "BdbQuit: pdb cannot stop: a step has no terminal"),
        ("input('name? ')", "EOFError: input() has nobody to ask: a step has no terminal"),
        (
            "import getpass; getpass.getpass()",
            "EOFError: input() has nobody to ask: a step has no terminal",
        ),
    ],
)
@pytest.mark.parametrize("isolation", ["task", "worker"])
def test_without_a_terminal_one_sentence_says_what_to_do(
    workspace: Workspace, source: str, said: str, isolation: str
) -> None:
    workspace.write(f"""
        class Flow_(FlowSpec):
            @step
            def only(self):
                {source}
    """)
    ran = run_with_keys(workspace, "c\n", "run", "--isolation", isolation)
    assert 1 == ran.code
    assert said in ran.err
    assert "`--debug only`" in ran.err
    assert "docs/debugging.md" in ran.err


def test_a_debugger_of_the_users_own_is_left_alone(workspace: Workspace) -> None:
    workspace.write("""
        def chosen(*args):
            print("chosen debugger")

        class Flow_(FlowSpec):
            @step
            def only(self):
                breakpoint()
    """)
    ran = workspace.run(PYTHONBREAKPOINT="__main__.chosen")
    assert "chosen debugger" in ran.lines, ran.out + ran.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--debug", "wrok"), "has no step 'wrok'. Did you mean 'work'?"),
        (("--debug", "work", "--executor", "queue", "--queue", "sqlite:///q.db"), "not run here"),
    ],
)
def test_a_step_that_cannot_be_debugged_is_named(
    workspace: Workspace, words: tuple[str, ...], said: str
) -> None:
    workspace.write(FLOW)
    ran = run_with_keys(workspace, "", "run", *words)
    assert 2 == ran.code
    assert said in ran.err


class AtTerminal:
    """A program on a terminal, with methods to type."""

    def __init__(self, workspace: Workspace, *words: str) -> None:
        self.fd, side = pty.openpty()
        self.modes = termios.tcgetattr(side)
        self.process = subprocess.Popen(
            [sys.executable, "flow.py", "--no-pylint", *words],
            cwd=workspace.path,
            stdin=side,
            stdout=side,
            stderr=side,
            start_new_session=True,
        )
        self.side = side
        self.shown = ""
        self._come = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")()
        while True:
            try:
                text = decoder.decode(os.read(self.fd, 4096))
            except OSError:
                return
            with self._come:
                self.shown += text
                self._come.notify_all()

    def wait_for(self, text: str) -> None:
        """Wait until this is displayed, and drop the output before it."""
        with self._come:
            assert self._come.wait_for(lambda: text in self.shown, PATIENCE), self.shown
            self.shown = self.shown.partition(text)[2]

    def type(self, keys: str) -> None:
        os.write(self.fd, keys.encode())


@contextmanager
def terminal(workspace: Workspace, *words: str) -> Iterator[AtTerminal]:
    made = AtTerminal(workspace, *words)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.wait()
        os.close(made.side)
        os.close(made.fd)


def test_at_a_terminal_keys_and_ctrl_c_are_for_the_step(workspace: Workspace) -> None:
    workspace.write("""
        class Flow_(FlowSpec):
            @step
            def start(self):
                self.next(self.asks, self.prints)

            @step
            def asks(self):
                import getpass

                self.tty = [os.isatty(number) for number in (0, 1, 2)]
                self.who = input("name? ")
                self.secret = getpass.getpass("secret? ")
                try:
                    print("waits")
                    while True:  # a signal just before a long sleep would be seen after it
                        time.sleep(0.05)
                except KeyboardInterrupt:
                    print("interrupted")
                breakpoint()
                self.next(self.join)

            @step
            def prints(self):
                print("of another task")
                self.next(self.join)

            @step
            def join(self, inputs):
                self.merge_artifacts(inputs)
                self.next(self.end)

            @step
            def end(self):
                print("end of all")
    """)
    with terminal(workspace, "run", "--debug", "asks") as person:
        person.wait_for("name? ")
        person.type("adx\x7fa\r")
        person.wait_for("secret? ")
        person.type("hidden\r")
        person.wait_for("waits")
        assert "hidden" not in person.shown
        person.type("\x03")
        person.wait_for("interrupted")
        person.wait_for("(Pdb) ")
        person.type("p self.who * 2\r")
        person.wait_for("'adaada'")
        person.type("c\r")
        person.wait_for("Task finished successfully.")
        person.wait_for("end of all")
        assert 0 == person.process.wait(PATIENCE)
        assert person.modes == termios.tcgetattr(person.side), "the terminal is as it was"
    asked = data(workspace, "asks")[0]
    assert [True] * 3 == asked.data.tty
    assert "hidden" == asked.data.secret
    assert "name? " in asked.stdout
    workspace.check()


ASKS = """
    class Flow_(FlowSpec):
        @step
        def start(self):
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            try:
                self.who = input("name? ")
            except EOFError:
                self.who = "nobody"
            self.next(self.end)

        @step
        def end(self):
            pass
"""


def debugged(workspace: Workspace, side: int, **streams: Any) -> subprocess.Popen[bytes]:
    """Start `run --debug start` in a session whose terminal is `side`, which is closed here."""
    workspace.write(ASKS)
    started = subprocess.Popen(
        [sys.executable, "flow.py", "--no-pylint", "run", "--debug", "start"],
        cwd=workspace.path,
        stdin=side,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: (
            signal.signal(signal.SIGHUP, signal.SIG_IGN) and fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        ),
        **streams,
    )
    os.close(side)
    return started


def test_a_step_whose_terminal_is_closed_is_at_the_end_of_its_input(workspace: Workspace) -> None:
    fd, side = pty.openpty()
    process = debugged(workspace, side, stdout=side)
    shown = b""
    while b"name? " not in shown:
        shown += os.read(fd, 4096)
    os.close(fd)
    assert 0 == process.wait(PATIENCE)
    assert ["nobody"] == [task.data.who for task in data(workspace, "start")]
    workspace.check()


def test_a_step_asks_at_a_terminal_whose_output_is_redirected(workspace: Workspace) -> None:
    fd, side = pty.openpty()
    os.write(fd, b"ada\n")
    process = debugged(workspace, side, stdout=subprocess.PIPE)
    shown = process.communicate(timeout=PATIENCE)[0]
    os.close(fd)
    assert 0 == process.returncode, shown
    assert ["ada"] == [task.data.who for task in data(workspace, "start")]
    workspace.check()
