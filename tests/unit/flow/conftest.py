"""The fixture that creates flows from source text."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest

from tests.unit.flow.flows import MakeFlow, load_flow


@pytest.fixture
def make_flow(tmp_path: Path) -> MakeFlow:
    """Create flow classes from source; the imports are line 1, the source begins on line 2."""
    numbers = count(1)
    return lambda body: load_flow(tmp_path / f"flow_{next(numbers)}.py", body)
