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
    """A daemon with a folder of its own."""

    def begin(self, *args: str, port: str = "0", **env: str) -> None:
        """Start it, and wait until it listens."""
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
        """One request, with the path as it is: status and answer, read if it is JSON. It carries
        the token of this user, unless it has another one, or names its Host."""
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
        """Host and port."""
        host, _, port = self.url.partition("://")[2].partition(":")
        return host, int(port)

    def connection(self) -> http.client.HTTPConnection:
        """A new connection to it."""
        host, port = self.address
        if self.url.startswith("https:"):
            context = ssl.create_default_context(cafile=self.path / "cert.pem")
            return http.client.HTTPSConnection(host, port, timeout=60, context=context)
        return http.client.HTTPConnection(host, port, timeout=60)

    def socket(self) -> socket.socket:
        """A new connection to it, for bytes that are not a request."""
        connection = self.connection()
        connection.connect()
        made: socket.socket = connection.sock
        return made

    @property
    def token(self) -> str:
        """That which a server makes at its first start, for the commands of its user."""
        file = self.path / "home" / "server-token"
        return file.read_text().strip() if file.exists() else ""

    def start_aflow(self, *args: str, **env: str) -> subprocess.Popen[str]:
        """Start `aflow ARGS` with settings of its own, and do not wait."""
        return super().start_aflow(*args, **{"AFLOW_HOME": str(self.path / "home"), **env})

    def without_uvloop(self) -> dict[str, str]:
        """Variables of a server that finds no uvloop, and uses asyncio's own event loop."""
        folder = self.path / "no-uvloop"
        folder.mkdir(exist_ok=True)
        (folder / "uvloop.py").write_text("raise ImportError('none here')\n")
        paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {"PYTHONPATH": os.pathsep.join(paths)}

    def package(self, name: str = "flow.py") -> str:
        """The key of a package of this flow file, which is sent."""
        data = code_package.pack({name: self.path / name})
        status, reported = self.ask("POST", "/v1/packages", data, "application/x-tar")
        assert 201 == status, reported
        return str(reported["package"])

    def order(self, **fields: Any) -> tuple[int, Any]:
        """Ask for a run."""
        return self.ask("POST", "/v1/runs", json.dumps(fields).encode())

    def until_stopping(self) -> tuple[int, list[str]]:
        """Ask for a run until the answer is that the daemon is being stopped."""
        status = 0
        reported: dict[str, Any] = {}
        while status in (0, 400):  # no such package, as long as it takes orders
            status, reported = self.order(package="0" * 64, script="flow.py")
        return status, list(reported)

    def submit(self, *args: str, **env: str) -> Ran:
        """`aflow submit ARGS` to it."""
        return self.call("submit", *args, **env)

    def call(self, command: str, *args: str, **env: str) -> Ran:
        """`aflow COMMAND ARGS` to it."""
        return self.finish(self.start_aflow(command, *args, "--server", self.url, **env))

    def let_time_pass(self) -> None:
        """Advance the clock until the lease of the run has expired."""
        with sqlite3.connect(self.path / ".aflow" / "metadata.db") as database:
            assert 1 == database.execute("UPDATE leases SET until = until - 3600").rowcount
        database.close()

    def stop(self) -> int:
        """SIGTERM, and how it ended."""
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
    """A daemon that has not begun, and a flow to send."""
    monkeypatch.setenv("PYTHONPATH", str(repository))  # for the processes of its runs, too
    daemon = Daemon(tmp_path)
    daemon.write(FLOW)
    return daemon


@pytest.fixture
def daemon(folder: Daemon) -> Iterator[Daemon]:
    """A daemon that listens."""
    folder.begin()
    yield folder
    folder.stop()


def make_certificate(folder: Path) -> None:
    """`cert.pem` for 127.0.0.1 and `key.pem`, in the folder."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-keyout", "key.pem", "-out", "cert.pem", "-days", "2", "-subj", "/CN=x",
         "-addext", "subjectAltName=IP:127.0.0.1"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
