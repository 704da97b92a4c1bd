"""Metaflow itself, in an environment of its own: `scripts/peer` installs it into .peer."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PEER = Path(os.environ.get("AFLOW_PEER_PYTHON", ROOT / ".peer" / "bin" / "python"))
ENVIRONMENT = {"METAFLOW_USER": "tester", "AFLOW_USER": "tester", "USER": "tester"}

needs_peer = pytest.mark.skipif(
    not PEER.exists(), reason="Metaflow is not installed: run scripts/peer"
)


def call(folder: Path, *command: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the folder, without settings from outside."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("METAFLOW_", "AFLOW_"))
    }
    return subprocess.run(
        [*map(str, command)],
        cwd=folder,
        env={**kept, **ENVIRONMENT, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
