"""Runs whose steps are jobs of AWS Batch, which really run: what they leave is what local runs
leave, whatever happens to their jobs, to AWS and to the store meanwhile."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from aflow import client
from aflow.client import Run

if TYPE_CHECKING:
    from tests.support.aws.furnished import Account

FLOWS = Path(__file__).parent / "flow_files"
SHAPES = Path(__file__).parents[1] / "deploy" / "flow_files" / "everything.py"

pytestmark = [pytest.mark.timeout(400), pytest.mark.xdist_group("batch")]


class Bench:
    """A folder in which flows are run; their metadata is there, everything else in the account."""

    def __init__(self, folder: Path, aws: Account) -> None:
        self.folder = folder
        self.aws = aws

    def run(
        self,
        file: Path,
        *words: str,
        code: int = 0,
        env: Mapping[str, str | None] | None = None,
    ) -> str:
        """What a command of the flow says."""
        command = [sys.executable, str(file), *words]
        variables = {**os.environ, **(env or {})}
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=self.folder,
            env={name: value for name, value in variables.items() if value is not None},
        )
        assert code == done.returncode, done.stdout + done.stderr
        return done.stdout + done.stderr

    def latest(self, flow: str) -> Run:
        """The latest run of a flow."""
        client.metadata(f"local@{self.folder}/.aflow")
        run: Any = client.Flow(flow, _namespace_check=False).latest_run
        return run  # type: ignore[no-any-return]


@pytest.fixture
def bench(aws: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A bench of the test's own, with metadata in its folder."""
    monkeypatch.setenv("AFLOW_DEFAULT_METADATA", "local")
    yield Bench(tmp_path, aws)
    client.default_metadata()


def test_a_flow_of_all_shapes_leaves_what_a_local_run_leaves(bench: Bench) -> None:
    local = ["--datastore", "local", "run", "--factor", "3"]
    bench.run(SHAPES, *local)
    expected = {step.id: _artifacts(step) for step in bench.latest("Everything")}

    said = bench.run(SHAPES, "run", "--with", "batch", "--factor", "3")
    run = bench.latest("Everything")

    assert run.successful, said
    assert expected == {step.id: _artifacts(step) for step in run}
    assert "factor 3" in said
    assert "factor 3\n" == run["start"].task.stdout
    assert "Task failed. ValueError: not yet" in said
    assert "Task is starting (retry)." in said


def _artifacts(step: Any) -> list[dict[str, str]]:
    """What the tasks of a step have left, in the order of their places. (The code stands in another
    folder in each job.)"""
    found = [
        {each.id: re.sub(r'File ".*?/(\w+\.py)', r'File "\1', str(each.data)) for each in task}
        for task in step
    ]
    return sorted(found, key=str)
