"""The real daemon, in a separate process, on a free port."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import sqlite3
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aflow.task import code_package
from tests.flows.conftest import Ran, Workspace

FLOW = """
class Flow_(FlowSpec):
    alpha = Parameter("alpha", default=1.0)

    @step
    def start(self):
        self.twice = self.alpha * 2
        self.next(self.end)

    @step
    def end(self):
        print("pid", os.getpid(), flush=True)
"""


class Daemon(Workspace):
    """A daemon with a separate folder."""

    def begin(self, *args: str, port: str = "0", **env: str) -> None:
        """Start the daemon, and wait until it listens."""
        self.process = self.start_aflow("server", "--port", port, *args, **env)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("Server on http"), self.process.communicate()[1]
        self.url = line.split()[-1]

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        type_: str = "application/json",
        **headers: str,
    ) -> tuple[int, Any]:
        """Send one request with the path unchanged, and return status and response, parsed if it is
        JSON. The request has the token of this user, unless another token or a Host is given."""
        if not {"Authorization", "x_api_key", "Host"} & headers.keys():
            headers["Authorization"] = f"Bearer {self.token}"
        connection = self.connection()
        try:
            connection.request(method, path, body, {"Content-Type": type_, **headers})
            answer = connection.getresponse()
            reported = answer.read()
            is_json = answer.headers["Content-Type"].startswith("application/json")
            return answer.status, json.loads(reported) if is_json else reported.decode()
        finally:
            connection.close()

    @property
    def address(self) -> tuple[str, int]:
        """The host and port of the daemon."""
        host, _, port = self.url.partition("://")[2].partition(":")
        return host, int(port)

    def connection(self) -> http.client.HTTPConnection:
        """Return a new HTTP connection to the daemon."""
        host, port = self.address
        if self.url.startswith("https:"):
            context = ssl.create_default_context(cafile=self.path / "cert.pem")
            return http.client.HTTPSConnection(host, port, timeout=60, context=context)
        return http.client.HTTPConnection(host, port, timeout=60)

    def socket(self) -> socket.socket:
        """Return a new socket to the daemon, for bytes that are not a request."""
        connection = self.connection()
        connection.connect()
        made: socket.socket = connection.sock
        return made

    @property
    def token(self) -> str:
        """The token that a server creates at its first start, for the commands of its user."""
        file = self.path / "home" / "server-token"
        return file.read_text().strip() if file.exists() else ""

    def start_aflow(self, *args: str, **env: str) -> subprocess.Popen[str]:
        """Start `aflow ARGS` with a separate home folder, without waiting."""
        return super().start_aflow(*args, **{"AFLOW_HOME": str(self.path / "home"), **env})

    def without_uvloop(self) -> dict[str, str]:
        """Return the variables of a server without uvloop, which uses asyncio's event loop."""
        folder = self.path / "no-uvloop"
        folder.mkdir(exist_ok=True)
        (folder / "uvloop.py").write_text("raise ImportError('none here')\n")
        paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {"PYTHONPATH": os.pathsep.join(paths)}

    def package(self, name: str = "flow.py") -> str:
        """Upload a package with this flow file, and return its key."""
        data = code_package.pack({name: self.path / name})
        status, reported = self.ask("POST", "/v1/packages", data, "application/x-tar")
        assert 201 == status, reported
        return str(reported["package"])

    def order(self, **fields: Any) -> tuple[int, Any]:
        """Request a run."""
        return self.ask("POST", "/v1/runs", json.dumps(fields).encode())

    def until_stopping(self) -> tuple[int, list[str]]:
        """Request runs until the response is that the daemon is stopping."""
        status = 0
        reported: dict[str, Any] = {}
        while status in (0, 400):  # 400: no such package, as long as it accepts runs
            status, reported = self.order(package="0" * 64, script="flow.py")
        return status, list(reported)

    def submit(self, *args: str, **env: str) -> Ran:
        """Run `aflow submit ARGS` with the daemon."""
        return self.call("submit", *args, **env)

    def call(self, command: str, *args: str, **env: str) -> Ran:
        """Run `aflow COMMAND ARGS` with the daemon."""
        return self.finish(self.start_aflow(command, *args, "--server", self.url, **env))

    def let_time_pass(self) -> None:
        """Advance the clock until the lease of the run has expired."""
        with sqlite3.connect(self.path / ".aflow" / "metadata.db") as database:
            assert 1 == database.execute("UPDATE leases SET until = until - 3600").rowcount
        database.close()

    def stop(self) -> int:
        """Send SIGTERM, and return the exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            pytest.fail("the daemon does not stop")
        return self.process.returncode


@pytest.fixture
def folder(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Daemon:
    """A daemon that has not started, and a flow to submit."""
    monkeypatch.setenv("PYTHONPATH", str(repository))  # for the processes of its runs, too
    daemon = Daemon(tmp_path)
    daemon.write(FLOW)
    return daemon


@pytest.fixture
def daemon(folder: Daemon) -> Iterator[Daemon]:
    """A running daemon."""
    folder.begin()
    yield folder
    folder.stop()


def make_certificate(folder: Path) -> None:
    """Create `cert.pem` for 127.0.0.1 and `key.pem` in the folder."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-keyout", "key.pem", "-out", "cert.pem", "-days", "2", "-subj", "/CN=x",
         "-addext", "subjectAltName=IP:127.0.0.1"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
