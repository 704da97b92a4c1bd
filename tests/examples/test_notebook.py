"""The notebook shows runs with artifacts in S3 and metadata in a service."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.flows.conftest import Workspace
from tests.support.s3 import S3Bucket
from tests.support.service import InThread

KEY = "a-key"
FLOWS = """
class GoodFlow(FlowSpec):
    @step
    def start(self):
        self.rows = list(range(100))
        self.next(self.end)

    @step
    def end(self):
        self.total = sum(self.rows)

class BadFlow(FlowSpec):
    @step
    def start(self):
        self.rows = 1 // 0
        self.next(self.end)

    @step
    def end(self):
        pass
"""


@pytest.fixture
def notebook(repository: Path) -> Any:
    """The notebook of the repository."""
    return nbformat.read(repository / "examples" / "notebooks" / "runs.ipynb", as_version=4)


@pytest.fixture
def settings(
    tmp_path: Path, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, str]]:
    """The settings of a stack: a bucket, and a service that requires a key."""
    service = InThread(f"sqlite:///{tmp_path}/service.db", [KEY])
    home = tmp_path / "home"
    home.mkdir()
    values = {
        "METAFLOW_DEFAULT_DATASTORE": "s3",
        "METAFLOW_DATASTORE_SYSROOT_S3": s3_bucket.url.partition("?")[0],
        "METAFLOW_S3_ENDPOINT_URL": s3_bucket.endpoint,
        "METAFLOW_DEFAULT_METADATA": "service",
        "METAFLOW_SERVICE_URL": service.url,
        "METAFLOW_SERVICE_AUTH_KEY": KEY,
    }
    (home / "config.json").write_text(json.dumps(values))
    monkeypatch.setenv("AFLOW_HOME", str(home))
    monkeypatch.setenv("AFLOW_CLIENT_CACHE_PATH", str(tmp_path / "cache"))
    yield values
    service.stop()


def test_the_notebook_draws_how_runs_went(
    notebook: Any, settings: dict[str, str], tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path)
    file = workspace.write(FLOWS)
    file.write_text(file.read_text().rpartition("if __name__")[0])  # it calls none of them
    ran = [
        workspace.start_aflow("run", f"flow.py:{name}", "--no-pylint")
        for name in ("GoodFlow", "BadFlow")
    ]
    ended = [workspace.finish(each) for each in ran]
    assert [0, 1] == [each.code for each in ended], ended

    NotebookClient(
        notebook, timeout=60, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()

    outputs = [each for cell in notebook.cells for each in cell.get("outputs", ())]
    said = "".join(each["text"] for each in outputs if each["output_type"] == "stream")
    pictures = [each for each in outputs if "image/png" in each.get("data", {})]
    assert 1 == len(pictures)
    assert f"runs of {settings['METAFLOW_SERVICE_URL']}" in said.replace("service@", "")
    assert ["1 failed", "1 succeeded"] == sorted(
        line.split("  ")[-1].strip()
        for line in said.splitlines()
        if line.split(" ")[0][-4:] == "Flow"
    )
    assert "division" in said
    assert "total" in said
    assert "4950" in said


def test_the_notebook_is_kept_without_what_it_has_shown(notebook: Any) -> None:
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]

    assert 5 == len(cells)
    assert [] == [cell.id for cell in cells if cell.outputs or cell.execution_count]
