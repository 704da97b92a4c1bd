"""The same flows on Metaflow and on aflow: exit codes, artifacts and what the client says agree.

`scripts/peer` installs Metaflow into .peer; without it these tests are skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.compat.flows import FLOWS

ROOT = Path(__file__).resolve().parents[2]
PEER = Path(os.environ.get("AFLOW_PEER_PYTHON", ROOT / ".peer" / "bin" / "python"))
READ = Path(__file__).with_name("read.py")
HEAD = """
from metaflow import (
    FlowSpec, JSONType, Parameter, catch, current, environment, retry, step, timeout,
)


class TheFlow(FlowSpec):
"""
TAIL = """

if __name__ == "__main__":
    TheFlow()
"""
# All but 04-playlist-plus, which needs a package that conda would install.
TUTORIALS = (
    "00-helloworld/helloworld",
    "01-playlist/playlist",
    "02-statistics/stats",
    "03-playlist-redux/playlist",
    "05-hello-cloud/hello-cloud",
)
ENVIRONMENT = {"METAFLOW_USER": "tester", "AFLOW_USER": "tester", "USER": "tester"}


def call(folder: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command in the folder, without settings from outside."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("METAFLOW_", "AFLOW_"))
    }
    return subprocess.run(
        [*map(str, command)],
        cwd=folder,
        env={**kept, **ENVIRONMENT, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def outcome(folder: Path, run: list[str | Path], read: list[str | Path]) -> dict[str, Any]:
    """Exit code and the client's view of the run."""
    done = call(folder, *run)
    seen = call(folder, *read)
    told = json.loads(seen.stdout) if seen.returncode == 0 else None
    return {"failed": done.returncode != 0, "run": told}


@pytest.mark.skipif(not PEER.exists(), reason="Metaflow is not installed: run scripts/peer")
@pytest.mark.parametrize("name", FLOWS)
def test_both_agree(name: str, tmp_path: Path) -> None:
    body, args = FLOWS[name]
    for each in ("theirs", "ours"):
        (tmp_path / each).mkdir()
        (tmp_path / each / "flow.py").write_text(HEAD + body + TAIL)
    theirs = outcome(
        tmp_path / "theirs",
        [PEER, "flow.py", "--no-pylint", "run", *args],
        [PEER, READ, "TheFlow"],
    )
    ours = outcome(
        tmp_path / "ours",
        [sys.executable, "-m", "aflow", "run", "--compat", "flow.py", "--no-pylint", *args],
        [sys.executable, READ, "TheFlow", "ours"],
    )
    assert theirs["failed"] == ours["failed"]
    if theirs["run"] is not None and theirs["run"]["successful"]:
        assert theirs["run"] == ours["run"]


@pytest.mark.skipif(not PEER.exists(), reason="Metaflow is not installed: run scripts/peer")
def test_the_tutorials_of_metaflow_run_as_they_are(tmp_path: Path) -> None:
    found = call(tmp_path, PEER, "-c", "import metaflow; print(metaflow.__path__[0])")
    shutil.copytree(Path(found.stdout.strip()) / "tutorials", tmp_path / "tutorials")
    for tutorial in TUTORIALS:  # in this order: some read what those before them have left
        file = f"tutorials/{tutorial}.py"
        ran = call(tmp_path, sys.executable, "-m", "aflow", "run", "--compat", file)
        assert 0 == ran.returncode, ran.stderr
