"""The same flows on Metaflow and on aflow: exit codes, artifacts and client data are equal.

`scripts/peer` installs Metaflow into .peer; without it these tests are skipped.
"""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.compat.flows import FILES, FLOWS
from tests.compat.peer import PEER, Forks, Reader, call, needs_peer

# A run of each takes a second or two on a machine that does nothing else, and may take minutes.
pytestmark = pytest.mark.timeout(300)

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


def outcome(folder: Path, done: subprocess.CompletedProcess[str], reader: Reader) -> dict[str, Any]:
    """Return the exit code and the client's view of the run."""
    return {"failed": done.returncode != 0, "run": reader.read(folder)}


@needs_peer
@pytest.mark.parametrize("name", [*FLOWS, *FILES])
def test_both_agree(name: str, forks: Forks, readers: dict[str, Reader], tmp_path: Path) -> None:
    if name in FLOWS:
        body, args = FLOWS[name]
        files = {"flow.py": HEAD + body + TAIL}
    else:
        files, args = FILES[name]
    for each in ("theirs", "ours"):
        (tmp_path / each).mkdir()
        for file, text in files.items():
            (tmp_path / each / file).write_text(text)
    folder = tmp_path / "theirs"
    theirs = outcome(
        folder, forks.run(folder, "flow.py", "--no-pylint", "run", *args), readers["theirs"]
    )
    folder = tmp_path / "ours"
    command = [sys.executable, "-m", "aflow", "run", "--compat", "flow.py", "--no-pylint", *args]
    ours = outcome(folder, call(folder, *command), readers["ours"])
    assert theirs["failed"] == ours["failed"]
    assert name in FLOWS or not theirs["failed"]
    if theirs["run"] is not None and theirs["run"]["successful"]:
        assert theirs["run"] == ours["run"]


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
reported = []
for run in runs:
    tasks = {{step.id: sorted(bool(task.origin_pathspec) for task in step) for step in run}}
    made = run.data.ys if run.successful else None
    came_from = (run.origin_pathspec or "None").split("/")[-1] != "None"
    reported.append([run.successful, tasks, made, came_from])
print(json.dumps(reported))
"""


@pytest.mark.slow
@needs_peer
@pytest.mark.parametrize("resumes", [[[]], [[], ["join"]]], ids=str)
def test_both_resume_alike(resumes: list[list[str]], forks: Forks, tmp_path: Path) -> None:
    seen = []
    for each, module in (("theirs", "metaflow"), ("ours", "aflow")):
        folder = tmp_path / each
        folder.mkdir()
        (folder / "flow.py").write_text(HEAD + FAILS_ONCE + TAIL)
        python = PEER if module == "metaflow" else sys.executable
        aflow = partial(call, folder, python, "-m", "aflow", "flow.py")
        command = partial(forks.run, folder, "flow.py", "--no-pylint")
        run = command if module == "metaflow" else aflow
        codes = [run("run").returncode]
        (folder / "mended").touch()
        first = None
        for words in resumes:
            first = first or _latest(folder, python, module)
            codes.append(run("resume", "--origin-run-id", first, *words).returncode)
        reported = call(folder, python, "-c", LOOK.format(module=module))
        assert "" == reported.stderr
        seen.append((codes, json.loads(reported.stdout)))
    assert seen[0] == seen[1]


def _latest(folder: Path, python: str | Path, module: str) -> str:
    """Return the id of the latest run."""
    read = f"import {module} as m; m.namespace(None); print(m.Flow('TheFlow').latest_run.id)"
    return call(folder, python, "-c", read).stdout.strip()
