"""Runs on a terminal: what the user sees, read from the screen of a terminal emulator."""

from __future__ import annotations

import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyte
import pytest

from tests.flows.conftest import Workspace

PATIENCE = 120.0  # seconds after which a test fails

FLOW = """
class Flow_(FlowSpec):
    fail = Parameter("fail", default=False)

    @step
    def start(self):
        self.xs = [0, 1, 2]
        self.next(self.work, foreach="xs")

    @step
    def work(self):
        print("item", self.input)
        while self.input and not os.path.exists("go"):
            time.sleep(0.02)
        if self.fail and self.input == 2:
            json.loads("no JSON")
        self.next(self.join)

    @step
    def join(self, inputs):
        print("all are there")
        self.next(self.end)

    @step
    def end(self):
        pass
"""


class Terminal:
    """A program on a separate terminal, and the terminal's screen including the scrollback."""

    def __init__(self, workspace: Workspace, *words: str, columns: int = 100, **env: str) -> None:
        self._ours, theirs = os.openpty()
        self.screen = pyte.HistoryScreen(columns, 30, history=10_000, ratio=0.5)
        self._stream = pyte.ByteStream(self.screen)
        self.bytes = b""
        self.resize(columns)
        # What the runner of the tests has set: COLUMNS would stand for the width of this terminal.
        ours = ("COLUMNS", "LINES", "NO_COLOR")
        keep = {name: os.environ[name] for name in os.environ if name not in ours}
        self.process = subprocess.Popen(
            [sys.executable, "flow.py", "--no-pylint", *words],
            cwd=workspace.path,
            env=keep | {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"} | env,
            stdin=theirs, stdout=theirs, stderr=theirs,
            preexec_fn=lambda: _have_terminal(theirs),
        )  # fmt: skip
        os.close(theirs)

    def resize(self, columns: int) -> None:
        """Set the width of the terminal."""
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
        self.screen.resize(30, columns)

    def type(self, keys: bytes) -> None:
        """Press these keys."""
        os.write(self._ours, keys)

    def read(self) -> bool:
        """Read the next output; False at the end."""
        assert select.select([self._ours], [], [], PATIENCE)[0], self.rows()
        try:
            data = os.read(self._ours, 1 << 16)
        except OSError:  # EIO: Linux's error if the other end of a terminal is closed
            return False
        self.bytes += data
        self._stream.feed(data)
        return bool(data)

    def until(self, is_there: Callable[[list[str]], bool]) -> list[str]:
        """Read until the rows satisfy a condition, and return them."""
        give_up_at = time.monotonic() + PATIENCE
        while not is_there(self.rows()):
            assert self.read(), self.rows()
            assert time.monotonic() < give_up_at, self.rows()
        return self.rows()

    def end(self) -> tuple[int, list[str]]:
        """Read to the end, and return the exit code and all rows."""
        while self.read():
            continue
        return self.process.wait(PATIENCE), self.rows()

    def rows(self) -> list[str]:
        """Return all non-empty rows, including the scrollback."""
        width = self.screen.columns
        above = ["".join(row[n].data for n in range(width)) for row in self.screen.history.top]
        return [row.rstrip() for row in (*above, *self.screen.display) if row.strip()]

    def lines(self) -> list[str]:
        """Return all written lines, without control sequences."""
        return re.sub(r"\x1b\[[\d;]*[A-Za-z]", "", self.bytes.decode()).splitlines()

    def close(self) -> None:
        """Stop the program if it is still running."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(PATIENCE)
        os.close(self._ours)


def _have_terminal(number: int) -> None:
    """Make this the controlling terminal, so that Ctrl-C sends a signal."""
    os.setsid()
    fcntl.ioctl(number, termios.TIOCSCTTY, 0)


@contextmanager
def on_terminal(
    workspace: Workspace, *words: str, flow: str = FLOW, columns: int = 100, **env: str
) -> Iterator[Terminal]:
    workspace.write(flow.replace("class Flow_", "import json\n\nclass Flow_"))
    terminal = Terminal(workspace, *words, columns=columns, **env)
    try:
        yield terminal
    finally:
        terminal.close()


def bar_of(step: str, rows: list[str]) -> str:
    """Return the latest progress bar of a step; empty if there is none."""
    found = [row for row in rows if re.match(rf"[●✔✘○] {step}\b", row)]
    return found[-1] if found else ""


def log_of(rows: list[str]) -> list[str]:
    """Return the log lines without their prefixes."""
    return [row.partition("] ")[2] for row in rows if "] " in row]


def test_bars_stand_below_the_log_and_leave_it_whole(workspace: Workspace) -> None:
    with on_terminal(workspace, "run") as terminal:
        rows = terminal.until(lambda rows: "1/3" in bar_of("work", rows))
        assert bar_of("start", rows).startswith("✔ start ━")
        assert "2 running" in bar_of("work", rows)
        assert "○ join" == bar_of("join", rows)
        assert rows.index(bar_of("work", rows)) > max(
            n for n, row in enumerate(rows) if "item" in row
        )

        terminal.resize(46)
        os.kill(terminal.process.pid, signal.SIGWINCH)
        terminal.until(lambda rows: 0 < len(bar_of("work", rows)) < 46)
        terminal.resize(100)
        os.kill(terminal.process.pid, signal.SIGWINCH)
        terminal.until(lambda rows: "━━━━━" in bar_of("work", rows))
        (workspace.path / "go").touch()
        code, rows = terminal.end()

    assert 0 == code
    log = log_of(terminal.lines())  # what was made narrower has lost its ends on this screen
    assert {"item 0", "item 1", "item 2", "all are there"} <= {*log}
    assert 6 == log.count("Task finished successfully.")
    assert not any(bar_of(step, rows[-5:]) for step in ("start", "work", "join", "end"))
    assert re.match(r"✔ succeeded in 0:\d\d, 6 tasks done: aflow ui Flow_/\d+$", rows[-1])
    assert b"\x1b[36m" in terminal.bytes


def test_a_failure_shows_the_users_code_first_without_colours_where_none_are_wanted(
    workspace: Workspace,
) -> None:
    (workspace.path / "go").touch()
    with on_terminal(workspace, "run", "--fail", "true", NO_COLOR="1") as terminal:
        code, rows = terminal.end()

    assert 1 == code
    at = next(n for n, row in enumerate(rows) if "Step failure:" in row)
    assert "Step work (task-id 4) failed: JSONDecodeError" in rows[at + 1]
    assert re.match(r" +flow\.py:\d+, in work$", rows[at + 2])
    assert 'json.loads("no JSON")' == rows[at + 3].strip()
    assert re.match(r" +\(\d frames of libraries left out, the last one /.*", rows[at + 4])
    assert re.match(
        r"✘ failed after .*, 3 tasks done, 1 failed \(work\): aflow logs Flow_/\d+/work/4$",
        rows[-1],
    )
    assert not re.search(rb"\x1b\[[\d;]*m", terminal.bytes)


def test_ctrl_c_takes_the_bars_away_and_says_how_to_go_on(workspace: Workspace) -> None:
    with on_terminal(workspace, "run") as terminal:
        terminal.until(lambda rows: "1/3" in bar_of("work", rows))
        terminal.type(b"\x03")
        code, rows = terminal.end()

    assert 130 == code
    assert re.match(r"✘ stopped after .*, 2 tasks done: aflow resume flow\.py$", rows[-1])
    assert "" == bar_of("work", rows)


@pytest.mark.parametrize(
    "off", [{"TERM": "dumb"}, {"AFLOW_PROGRESS": "0"}], ids=lambda off: next(iter(off))
)
def test_bars_are_left_out_where_they_cannot_be_or_are_not_wanted(
    workspace: Workspace, off: dict[str, Any]
) -> None:
    (workspace.path / "go").touch()
    with on_terminal(workspace, "run", **off) as terminal:
        code, rows = terminal.end()

    assert 0 == code
    assert "✔ succeeded in" in rows[-1]
    assert b"\x1b[J" not in terminal.bytes
    assert ("TERM" in off) == (b"\x1b" not in terminal.bytes)
    assert not any("━" in row for row in rows)


def test_a_debugged_step_has_the_terminal_for_itself(workspace: Workspace) -> None:
    (workspace.path / "go").touch()
    asks = FLOW.replace('print("all are there")', 'self.who = input("name? ")')
    with on_terminal(workspace, "run", "--debug", "join", flow=asks) as terminal:
        rows = terminal.until(lambda rows: rows[-1:] == ["name?"])
        assert not any(bar_of(step, rows) for step in ("start", "work", "join"))
        terminal.type(b"ann\r")
        code, rows = terminal.end()

    assert 0 == code
    assert "name? ann" in rows
    assert rows[-1].startswith("✔ succeeded in")
