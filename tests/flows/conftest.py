"""Real flows, run by the real command line in real processes, and the checks after each test."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

from aflow.metadata.base import TaskView
from aflow.metadata.sqlite import SqliteMetadata
from aflow.scheduler.states import RunState
from tests.support.leases import expire_leases

TIMEOUT = 90  # seconds after which a hanging run fails its test


@dataclass(frozen=True)
class Ran:
    """The result of a command."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """The lines that the tasks printed, without timestamps and prefixes."""
        return [line.split("] ", 1)[1] for line in self.out.splitlines() if "] " in line]


class Workspace:
    """A folder with flow files and the results of their runs."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, source: str, name: str = "flow.py") -> Path:
        """Write a flow file with imports of aflow's names."""
        file = self.path / name
        file.write_text(PREAMBLE + textwrap.dedent(source) + POSTAMBLE.format(name="Flow_"))
        return file

    def start(self, *args: str, **env: str) -> subprocess.Popen[str]:
        """Start `python flow.py ARGS` without waiting."""
        return self._start(["flow.py", *args], env)

    def start_aflow(self, *args: str, **env: str) -> subprocess.Popen[str]:
        """Start `aflow ARGS` without waiting."""
        return self._start(["-m", "aflow", *args], env)

    def _start(self, args: list[str], env: dict[str, str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *args],
            cwd=self.path,
            env=os.environ | env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="surrogateescape",
        )

    def finish(self, process: subprocess.Popen[str]) -> Ran:
        """Wait for a command that `start` started."""
        try:
            out, err = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            out, err = process.communicate()
            pytest.fail(f"the run hangs:\n{out}\n{err}")
        return Ran(process.returncode, out, err)

    def run(self, *args: str, **env: str) -> Ran:
        """Run `python flow.py --no-pylint run ARGS`."""
        return self.finish(self.start("--no-pylint", "run", *args, **env))

    @property
    def metadata(self) -> SqliteMetadata:
        """Return the metadata store of the folder."""
        return SqliteMetadata(self.path / ".aflow" / "metadata.db", read_only=True)

    def expire_leases(self, ago: float = 0.0) -> None:
        """Set the leases of all runs in this folder to have expired `ago` seconds ago."""
        expire_leases(self.path, ago)

    def latest(self) -> tuple[RunState, list[TaskView]]:
        """Return the state of the latest run, and its tasks without `_parameters`, by number."""
        metadata = self.metadata
        try:
            run = metadata.runs("Flow_")[0]
            return run.state, [each for each in metadata.tasks(run.key) if each.task.task]
        finally:
            metadata.close()

    def check(self) -> None:
        """Check the invariants after any run: no damage, no remaining process, no attempt that is
        still recorded as running, and no committed task with two successes."""
        with sqlite3.connect(self.path / ".aflow" / "metadata.db") as connection:
            assert ("ok",) == connection.execute("PRAGMA integrity_check").fetchone()
        assert [] == processes_in(self.path)
        assert [] == [path.name for path in self.path.glob(".aflow/.tmp/*")]


PREAMBLE = """\
import os, signal, sys, time
from aflow import FlowSpec, JSONType, Parameter, catch, current, environment, resources, retry
from aflow import step, timeout

"""

POSTAMBLE = """

if __name__ == "__main__":
    {name}()
"""


def processes_in(folder: Path) -> list[int]:
    """Return the processes whose working directory is the folder."""
    found, wanted = [], os.fspath(folder.resolve())
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if os.readlink(f"/proc/{entry}/cwd") == wanted:
                    found.append(int(entry))
            except OSError:  # it has ended while we looked
                continue
    return found


def children_of(pid: int) -> list[int]:
    """Return the child processes of a process that still exist."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(child) for child in task.read_text().split()]
        except OSError:  # it has ended while we looked
            continue
    return found


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """An empty folder to run flows in."""
    return Workspace(tmp_path)
