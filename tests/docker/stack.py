"""The stack of docker/compose.yaml, parsed by Docker Compose itself."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

# The secrets of the stack.
NAMES = ("POSTGRES_PASSWORD", "REDIS_PASSWORD", "S3_SECRET_KEY", "SIGNING_KEY", "AFLOW_TOKEN")


def tool(name: str) -> str:
    """Return the path of a development tool."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert found is not None, f"{name} is not installed: it is one of the development tools"
    return found


def secrets() -> dict[str, str]:
    """Return a value for every secret."""
    return {name: f"{name.lower().replace('_', '-')}-of-a-test-{'0' * 24}" for name in NAMES}


def compose(repository: Path, settings: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Return the stack as Docker Compose parses it, with these settings only."""
    file = repository / "docker" / "compose.yaml"
    return subprocess.run(
        [tool("docker-compose"), "-f", file, "--profile", "*", "config", "--format", "json"],
        env={"PATH": os.environ["PATH"], "HOME": "/nowhere"} | settings,
        capture_output=True,
        text=True,
    )


def stack(repository: Path) -> dict[str, Any]:
    """The stack with a value for every secret."""
    done = compose(repository, secrets())
    assert 0 == done.returncode, done.stderr
    reported: dict[str, Any] = json.loads(done.stdout)
    return reported


def stages(repository: Path) -> dict[str, str]:
    """Return the instructions of the Dockerfile's stages, by name."""
    text = (repository / "docker" / "Dockerfile").read_text()
    return dict(
        re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM|\Z)", text, re.DOTALL | re.MULTILINE)
    )
