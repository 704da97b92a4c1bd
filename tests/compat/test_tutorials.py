"""Metaflow's tutorials run unmodified: first the flows, then the notebooks."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.compat.peer import PEER, call, needs_peer

# In this order: some read what those before them have left. 04 wants a package that conda would
# install: it is there, from the environment of the peer.
FLOWS = (
    "00-helloworld/helloworld",
    "01-playlist/playlist",
    "02-statistics/stats",
    "03-playlist-redux/playlist",
    "04-playlist-plus/playlist",
    "05-hello-cloud/hello-cloud",
)
# All but 08-autopilot, which looks at a run of Argo with plotly.
NOTEBOOKS = (
    "01-playlist/playlist",
    "02-statistics/stats",
    "05-hello-cloud/hello-cloud",
    "06-statistics-redux/stats",
    "07-worldview/worldview",
)


@needs_peer
def test_the_tutorials_of_metaflow_run_as_they_are(tmp_path: Path) -> None:
    pytest.importorskip("pandas", reason="the tutorials want pandas")
    find = "import metaflow, editdistance as e; print(metaflow.__path__[0]); print(e.__path__[0])"
    theirs, distance = call(tmp_path, PEER, "-c", find).stdout.splitlines()
    tutorials = tmp_path / "tutorials"
    shutil.copytree(Path(theirs) / "tutorials", tutorials)
    shutil.copytree(distance, tutorials / "04-playlist-plus" / "editdistance")
    for name in FLOWS:
        ran = call(
            tmp_path, sys.executable, "-m", "aflow", "run", "--compat", f"tutorials/{name}.py",
            AFLOW_DEFAULT_ENVIRONMENT="local",
        )  # fmt: skip
        assert 0 == ran.returncode, f"{name}: {ran.stdout}{ran.stderr}"
    for name in NOTEBOOKS:
        (tutorials / "cells.py").write_text(cells_of(tutorials / f"{name}.ipynb"))
        looked = call(tmp_path, sys.executable, tutorials / "cells.py", MPLBACKEND="Agg")
        assert (0, "") == (looked.returncode, looked.stderr), name
        assert "Current metadata provider: " in looked.stdout


def cells_of(notebook: Path) -> str:
    """Return the code of the notebook, after the code that lets it import Metaflow."""
    cells = json.loads(notebook.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return "\n".join(["from aflow import compat", "compat.install()", *code])
