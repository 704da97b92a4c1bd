"""The real Metaflow in a separate environment: `scripts/peer` installs it into .peer."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PEER = Path(os.environ.get("AFLOW_PEER_PYTHON", ROOT / ".peer" / "bin" / "python"))
ENVIRONMENT = {"METAFLOW_USER": "tester", "AFLOW_USER": "tester", "USER": "tester"}

needs_peer = pytest.mark.skipif(
    not PEER.exists(), reason="Metaflow is not installed: run scripts/peer"
)


def environment() -> dict[str, str]:
    """Return the environment of a command, without the user's settings."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("METAFLOW_", "AFLOW_"))
    }
    # Metaflow starts the members of a gang as `python`.
    path = f"{PEER.parent}:{kept.get('PATH', os.defpath)}"
    return {**kept, **ENVIRONMENT, "PYTHONPATH": str(ROOT), "PATH": path}


def call(folder: Path, *command: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the folder, without the user's settings."""
    return subprocess.run(
        [*map(str, command)],
        cwd=folder,
        env={**environment(), **env},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


class Forks:
    """A process that has imported Metaflow and forks runs and tasks, see forked.py. Metaflow reads
    its settings at import: they are those of this process."""

    def __init__(self, **settings: str) -> None:
        self._environment = {**environment(), **settings}
        self._asked, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            self._process = subprocess.Popen(
                [PEER, Path(__file__).with_name("forked.py"), str(other.fileno())],
                pass_fds=[other.fileno()],
                env=self._environment,
            )

    def run(
        self, folder: Path, *arguments: str | Path, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a Python program, usually the flow file of the folder, with these arguments, as
        `call` does."""
        request = {
            "arguments": [*map(str, arguments)],
            "folder": str(folder),
            "environment": {**self._environment, **env},
            "run": True,
        }
        reading, status = os.pipe()
        with (
            open(os.devnull) as nothing,
            tempfile.TemporaryFile("w+") as out,
            tempfile.TemporaryFile("w+") as err,
            open(reading) as ended,
        ):
            given = [nothing.fileno(), out.fileno(), err.fileno(), status]
            socket.send_fds(self._asked, [json.dumps(request).encode()], given)
            os.close(status)
            pid = int(ended.readline())
            if not select.select([ended], [], [], 110)[0]:
                os.kill(pid, signal.SIGKILL)
                pytest.fail(f"Metaflow has not ended: {arguments}")
            code = int(ended.readline())
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(arguments, code, out.read(), err.read())

    def close(self) -> None:
        """Stop the process."""
        self._asked.close()
        self._process.wait()


class Reader:
    """A process that reads runs of the flow TheFlow with the client: see read.py."""

    def __init__(self, python: str | Path, *words: str) -> None:
        self._process = subprocess.Popen(
            [str(python), str(Path(__file__).with_name("read.py")), "TheFlow", *words],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def read(self, folder: Path) -> Any:
        """Return the client's data of the latest run in a folder; None if there is none."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(folder, file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """Stop the process."""
        self._process.communicate()
