"""The third-party metadata service for Metaflow (metaflow-local-service), if it is installed in the
environment of Metaflow (.peer). It assigns the ids of runs and tasks, and stores requests
unchanged."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_SERVE = """
import sys, uvicorn
from metaflow_local_service.server import create_app
uvicorn.run(create_app(sys.argv[1]), fd=int(sys.argv[2]), log_level="warning")
"""


@contextmanager
def local_service(peer: Path, folder: Path) -> Iterator[str]:
    """Run the service with its data in this folder, and yield its URL."""
    looked = subprocess.run([peer, "-c", "import metaflow_local_service"], capture_output=True)
    if looked.returncode != 0:
        pytest.skip("metaflow-local-service is not installed beside Metaflow: run scripts/peer")
    folder.mkdir()
    # The service inherits a listening socket, so that requests wait until it has started.
    with socket.create_server(("127.0.0.1", 0)) as door, (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [peer, "-c", _SERVE, str(folder), str(door.fileno())],
            pass_fds=[door.fileno()], stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            cwd=folder, env={**os.environ, "METAFLOW_USER": "service"},
        )  # fmt: skip
        url = f"http://127.0.0.1:{door.getsockname()[1]}"
    try:
        yield url
    finally:
        process.kill()
        process.wait()
