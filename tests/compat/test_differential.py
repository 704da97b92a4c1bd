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


FAILS_ONCE = """
    @step
    def start(self):
        self.xs = [1, 2]
        self.next(self.work, foreach="xs")

    @step
    def work(self):
        self.y = self.input * 10
        self.next(self.join)

    @step
    def join(self, inputs):
        self.ys = [each.y for each in inputs]
        import os
        if not os.path.exists("mended"):
            raise ValueError("broken")
        self.next(self.end)

    @step
    def end(self):
        self.again = current.origin_run_id is not None
"""
LOOK = """
import json
from importlib import import_module
module = import_module({module!r})
module.namespace(None)
runs = [*module.Flow("TheFlow")]
told = []
for run in runs:
    tasks = {{step.id: sorted(bool(task.origin_pathspec) for task in step) for step in run}}
    made = run.data.ys if run.successful else None
    came_from = (run.origin_pathspec or "None").split("/")[-1] != "None"
    told.append([run.successful, tasks, made, came_from])
print(json.dumps(told))
"""


@pytest.mark.skipif(not PEER.exists(), reason="Metaflow is not installed: run scripts/peer")
@pytest.mark.parametrize("resumes", [[[]], [[], ["join"]]], ids=str)
def test_both_resume_alike(resumes: list[list[str]], tmp_path: Path) -> None:
    seen = []
    for each, module in (("theirs", "metaflow"), ("ours", "aflow")):
        folder = tmp_path / each
        folder.mkdir()
        (folder / "flow.py").write_text(HEAD + FAILS_ONCE + TAIL)
        begin: list[str | Path] = [PEER] if module == "metaflow" else [sys.executable, "-m"]
        command = ["flow.py", "--no-pylint"] if module == "metaflow" else ["aflow", "flow.py"]
        codes = [call(folder, *begin, *command, "run").returncode]
        (folder / "mended").touch()
        first = None
        for words in resumes:
            first = first or _latest(folder, begin[0], module)
            done = call(folder, *begin, *command, "resume", "--origin-run-id", first, *words)
            codes.append(done.returncode)
        told = call(folder, begin[0], "-c", LOOK.format(module=module))
        assert "" == told.stderr
        seen.append((codes, json.loads(told.stdout)))
    assert seen[0] == seen[1]


def _latest(folder: Path, python: str | Path, module: str) -> str:
    """The id of the latest run."""
    read = f"import {module} as m; m.namespace(None); print(m.Flow('TheFlow').latest_run.id)"
    return call(folder, python, "-c", read).stdout.strip()
