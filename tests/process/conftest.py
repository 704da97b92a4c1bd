"""Real flows in real processes, as in tests/flows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.flows.conftest import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """An empty folder to run flows in."""
    return Workspace(tmp_path)
