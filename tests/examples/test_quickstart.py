"""The instructions of docs/quickstart.md work exactly as written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.examples.test_examples import PYTHON_IN_TEXT

RUN = "1795402495097141"  # the id of a run in the document


class Newcomer:
    """A user who follows the document, in a separate folder."""

    def __init__(self, document: str, folder: Path) -> None:
        self.document = document
        self.folder = folder

    def block(self, holds: str) -> str:
        """Return the Python block in the document that contains this."""
        found: str
        (found,) = [each for each in PYTHON_IN_TEXT.findall(self.document) if holds in each]
        return found

    def save(self, name: str, text: str) -> None:
        """Save a file."""
        (self.folder / name).write_text(text)

    def reported(self, command: str, said: str | None = None, **env: str) -> str:
        """What a command of the document (`said` is how it stands there) prints; it succeeds."""
        assert (said or command) in self.document
        program, *words = command.split()
        begin = [sys.executable] if program == "python" else [sys.executable, "-m", "aflow"]
        done = subprocess.run(
            [*begin, *words],
            cwd=self.folder,
            env=os.environ | env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert 0 == done.returncode, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture
def newcomer(repository: Path, tmp_path: Path) -> Newcomer:
    """A user with the document, and nothing else."""
    return Newcomer((repository / "docs" / "quickstart.md").read_text(), tmp_path)


def test_the_first_flow_is_run_checked_and_shown(newcomer: Newcomer) -> None:
    newcomer.save("hello.py", newcomer.block("HelloFlow"))
    assert "hello world" in newcomer.reported("python hello.py run")
    newcomer.reported("python hello.py check")
    assert "start" in newcomer.reported("python hello.py show")
    assert "hello world" in newcomer.reported("aflow run hello.py")


def test_parameters_come_from_the_line_and_the_environment(newcomer: Newcomer) -> None:
    newcomer.save("train.py", newcomer.block("TrainFlow"))
    line = "python train.py run --alpha 0.1 --data measurements.csv"
    assert "0.1 measurements.csv [64, 64]" in newcomer.reported(line)
    assert "AFLOW_RUN_ALPHA=0.1" in newcomer.document
    short = "python train.py run --data measurements.csv"
    assert "0.1 m" in newcomer.reported(short, "measurements.csv", AFLOW_RUN_ALPHA="0.1")


def test_results_are_read_dumped_and_tagged(newcomer: Newcomer) -> None:
    newcomer.save("stats.py", newcomer.block("StatisticsFlow(FlowSpec)"))
    log = newcomer.reported("aflow run stats.py")
    assert "15 True" in log
    run = log.partition("run-id ")[2].partition(")")[0]
    read = newcomer.block("latest_successful_run").replace(RUN, run)
    newcomer.save("read.py", f"{read}\nprint(run.data.total, run.user_tags)\n")
    assert "15 frozenset({'good'})\n" == newcomer.reported(
        "python read.py", "latest_successful_run"
    )
    for command in (f"python stats.py dump {RUN}/add", f"python stats.py logs {RUN}/count_one"):
        newcomer.reported(command.replace(RUN, run), command)


def test_what_goes_wrong_is_caught(newcomer: Newcomer) -> None:
    newcomer.save("careful.py", newcomer.block("CarefulFlow").replace("seconds=10", "seconds=0"))
    log = newcomer.reported("aflow run careful.py", "aflow run")
    assert "it failed: Traceback" in log
    assert "ZeroDivisionError: division by zero" in log
    assert 3 == log.count("Task is starting (retry).")


def test_settings_are_shown_and_tutorials_copied(newcomer: Newcomer) -> None:
    assert "Nothing is set" in newcomer.reported("aflow configure show", "aflow configure")
    newcomer.reported("aflow tutorials pull")
    assert 6 == len([*(newcomer.folder / "aflow-tutorials").iterdir()])
