"""Upper layers import lower ones; the language and the scheduler are pure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_the_import_contracts_of_pyproject_hold(repository: Path) -> None:
    command = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run(
        [command, "--no-logo", "--no-cache"], cwd=repository, capture_output=True, text=True
    )

    assert result.returncode == 0, result.stdout + result.stderr
