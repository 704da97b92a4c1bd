"""`aflow completion`: the scripts for shells, and the completions that they get."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def answers(*words: str, at: int | None = None) -> list[str]:
    """Return bash's completions for the last word."""
    place = len(words) - 1 if at is None else at
    done = subprocess.run(
        [sys.executable, "-m", "aflow"],
        env={
            **os.environ,
            "_AFLOW_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(words),
            "COMP_CWORD": str(place),
        },
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


def test_commands_of_flows_and_the_others_are_completed() -> None:
    assert {"recover", "resume", "run", "runs"} >= {*answers("aflow", "r")} >= {"run", "runs"}
    assert ["doctor"] == answers("aflow", "doc")


def test_options_of_a_command_are_completed() -> None:
    assert ["--max-workers"] == answers("aflow", "run", "--max-w")
    assert "--older-than" in answers("aflow", "gc", "--o")


def test_commands_below_a_command_are_completed() -> None:
    assert {"list", "drain"} <= {*answers("aflow", "workers", "")}
    assert ["create"] == answers("aflow", "token", "cr")


def test_the_place_of_a_flow_file_is_left_to_the_shell() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "aflow"],
        env={
            **os.environ,
            "_AFLOW_COMPLETE": "bash_complete",
            "COMP_WORDS": "aflow run fl",
            "COMP_CWORD": "2",
        },
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "file,fl" == done.stdout.strip()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_is_given_a_script(shell: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "aflow", "completion", shell],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert f"_AFLOW_COMPLETE={shell}_complete" in done.stdout
    if shutil.which(shell) is not None:
        script = tmp_path / "script"
        script.write_text(done.stdout)
        assert 0 == subprocess.run([shell, "-n", str(script)], check=False).returncode


def test_an_unknown_shell_is_refused_with_those_there_are() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "aflow", "completion", "tcsh"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert 2 == done.returncode
    assert "'tcsh' is not one of 'bash', 'zsh', 'fish'" in done.stderr
