"""Secrets are planted in every possible place; afterwards they must be nowhere else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
import zstandard

from tests.flows.conftest import Workspace
from tests.server.conftest import Daemon
from tests.support.postgres import new_schema
from tests.support.servers import Server, redis_server

SIGNING = "canary-of-the-queue-0123456789abcdef"
SERVICE = "canary-of-the-service-0123456789abcd"
PASSWORD = "canary-of-a-password"

FLOW = """
import os, subprocess
from pathlib import Path
import aflow._core.settings

class Flow_(FlowSpec):
    @step
    def start(self):
        self.mine = sorted(name for name, value in os.environ.items() if "canary-of" in value)
        self.seen, pid = [], os.getpid()
        while pid > 1:  # this process, and all that it comes of
            place = Path("/proc", str(pid))
            if b"canary-of" in (place / "environ").read_bytes() + (place / "cmdline").read_bytes():
                self.seen.append((place / "cmdline").read_text())
            pid = int((place / "stat").read_text().rpartition(")")[2].split()[1])
        said = subprocess.run(["env"], capture_output=True, text=True).stdout
        assert "canary-of" not in said, "a program that a step starts"
        self.settings = len(aflow._core.settings.Settings.load().service_auth_keys)
        print("the step sees", self.mine, self.seen, self.settings)
        self.next(self.end)

    @step
    def end(self):
        pass
"""


def kept(folder: Path) -> dict[str, bytes]:
    """Return the contents of all files in a folder, with archives unpacked."""
    files = (each for each in folder.rglob("*") if each.is_file())
    return {str(path.relative_to(folder)): unpacked(path.read_bytes()) for path in files}


def unpacked(data: bytes) -> bytes:
    """Return the data, followed by everything that is packed in it."""
    whole, at = data, data.find(zstandard.FRAME_HEADER)
    while at >= 0:
        try:
            whole += zstandard.ZstdDecompressor().decompressobj().decompress(data[at:])
        except zstandard.ZstdError:  # bytes that only look like a frame
            pass
        at = data.find(zstandard.FRAME_HEADER, at + 1)
    return whole


def tables(url: str, schema: str) -> bytes:
    """Return the contents of all tables of a schema, with archives unpacked."""
    found = []
    with psycopg.connect(url) as connection:
        names = connection.execute(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = %s", [schema]
        ).fetchall()
        for (name,) in names:
            for row in connection.execute(f'SELECT * FROM "{schema}"."{name}"'.encode()):
                found += [each if isinstance(each, bytes) else str(each).encode() for each in row]
    return b"\n".join(map(unpacked, found))


def test_keys_stay_with_those_who_need_them(workspace: Workspace) -> None:
    workspace.write(FLOW)
    queue = f"sqlite:///{workspace.path}/queue.db"
    keys = {
        "AFLOW_SIGNING_KEY": SIGNING,
        "METAFLOW_SIGNING_KEY": SIGNING,
        "AFLOW_SERVICE_AUTH_KEY": SERVICE,
        "METAFLOW_SERVICE_HEADERS": f'{{"x-other": "{SERVICE}"}}',
        "AFLOW_DEBUG": "1",
    }
    worker = subprocess.Popen(
        [sys.executable, "-m", "aflow", "worker", "--queue", queue, "--slots", "1"],
        cwd=workspace.path, env=os.environ | keys, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        ran = workspace.run("--executor", "queue", "--queue", queue, **keys)
    finally:
        worker.terminate()
        log = worker.communicate(timeout=60)[0]

    assert 0 == ran.code, ran.out + ran.err + log
    assert "the step sees [] [] 1" in ran.out
    password = {"AFLOW_QUEUE": f"redis://:{PASSWORD}@127.0.0.1:1/0"}
    here = workspace.run(**keys, **password)
    assert "the step sees [] [] 1" in here.out, here.out + here.err
    worker_like = workspace.run("--isolation", "worker", **keys, **password)
    assert "the step sees [] [] 1" in worker_like.out
    command = workspace.finish(workspace.start_aflow("run", "flow.py", "--no-pylint", **keys))
    assert "the step sees [] [] 1" in command.out, command.out + command.err
    said = [ran.out, ran.err, here.out, here.err, log]
    assert not any(key in text for key in (SIGNING, SERVICE) for text in said)
    found = kept(workspace.path)
    assert "queue.db" in found
    assert [] == [
        name for name, data in found.items() if SIGNING.encode() in data or SERVICE.encode() in data
    ]


@pytest.mark.parametrize(
    "words",
    [
        ("--executor", "queue", "--queue", f"redis://:{PASSWORD}@127.0.0.1:1/0"),
        ("--executor", "queue", f"--queue=redis://user:{PASSWORD}@127.0.0.1:1/0"),
        ("--executor", "queue", "--queue", f"postgresql://127.0.0.1:1/x?password={PASSWORD}"),
    ],
)
def test_a_password_of_a_url_is_neither_recorded_nor_shown(
    workspace: Workspace, words: tuple[str, ...]
) -> None:
    workspace.write(FLOW)
    ran = workspace.run(*words, AFLOW_DEBUG="1")
    assert 1 == ran.code
    assert PASSWORD not in ran.out
    found = kept(workspace.path)
    assert ".aflow/metadata.db" in found
    assert [] == [name for name, data in found.items() if PASSWORD.encode() in data]


# Each step is a program of everything that could take a password away with it.
SPY = """
import copy, json, pickle, subprocess
from pathlib import Path
import aflow
from aflow import Run, exit_hook
from aflow._core.settings import Settings

def after(run):
    print("the hook has read", [step.id for step in run])

@exit_hook(on_success=[after])
class Flow_(FlowSpec):
    @step
    def start(self):
        self.settings, leaks, pid = Settings.load(), [], os.getpid()  # an artifact
        while pid > 1:
            place = Path("/proc", str(pid))
            seen = (place / "environ").read_bytes() + (place / "cmdline").read_bytes()
            if b"canary-of" in seen and b"pytest" not in seen:
                leaks.append((place / "cmdline").read_text())
            pid = int((place / "stat").read_text().rpartition(")")[2].split()[1])
        print("seen in /proc:", leaks)
        urls = json.dumps([self.settings.metadata, self.settings.queue])
        print(current.get("metadata_url"), self.settings, urls)
        print(subprocess.run(["env"], capture_output=True, text=True).stdout, os.environ)
        print("read in a step:", Run(current.pathspec.rpartition("/start")[0]).id == current.run_id)
        self.copies = pickle.dumps([copy.deepcopy(self.settings), current.get("metadata_url")])
        self.next(self.end)

    @step
    def end(self):
        pass
"""


@pytest.mark.slow
def test_a_password_of_a_url_is_nowhere_but_where_it_connects(
    workspace: Workspace, postgres_server: Server
) -> None:
    odd = f"{PASSWORD}/with@slash"  # as people write them, without quoting them
    metadata = new_schema(postgres_server)
    role = f"CREATE ROLE canary LOGIN SUPERUSER PASSWORD '{odd}'"
    with psycopg.connect(metadata.partition("?")[0], autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS canary")
        connection.execute(role.encode())
    whole = metadata.replace("aflow:secret@", f"canary:{odd}@")
    broker = workspace.path / "broker"
    broker.mkdir()
    redis = redis_server(broker, "--requirepass", odd)
    queue = f"redis://:{odd}@127.0.0.1:{redis.port}/0"
    place = {"AFLOW_DEFAULT_METADATA": whole, "AFLOW_QUEUE": queue}
    workspace.write(SPY)
    worker, ran = workspace.start_aflow("worker", "--slots", "1", **place), []
    try:
        words = ("--executor", "queue", "--queue", queue)
        ran.append(workspace.run(*words, AFLOW_DEFAULT_METADATA=whole, AFLOW_DEBUG="1"))
        ran.append(workspace.run("--metadata", whole, "--isolation", "worker"))
        ran.append(workspace.finish(workspace.start_aflow("doctor", **place)))
        server = Daemon(workspace.path)
        server.begin("--queue", queue, AFLOW_DEFAULT_METADATA=whole)
        ran.insert(0, server.submit("flow.py", "--wait"))
        paths = ("/v1/server", "/v1/runs", "/openapi.json", "/metrics")
        seen = [server.ask("GET", path) for path in paths]
        server.process.terminate()
        ran.append(server.finish(server.process))
    finally:
        worker.terminate()
        ran.append(workspace.finish(worker))
        redis.kill()
    said = [str(seen), *(text for each in ran for text in (each.out, each.err))]
    assert [200] * 4 == [status for status, _ in seen]
    assert [0] * 3 == [each.code for each in ran[:3]], said
    for each in ran[:3]:
        assert "seen in /proc: []" in each.out
        assert "read in a step: True" in each.out
        assert each is ran[0] or "the hook has read ['end', 'start']" in each.out
    assert all("postgresql://canary@127.0.0.1" in each.out for each in ran[:3])  # it is known
    assert not any(PASSWORD in text for text in said)
    left = {
        **kept(workspace.path),
        "PostgreSQL": tables(metadata.partition("?")[0], metadata.rpartition("=")[2]),
    }
    assert b"Flow_" in left["PostgreSQL"]
    assert any(name.startswith("broker/") for name in left)
    assert [] == [name for name, data in left.items() if PASSWORD.encode() in data]


@pytest.mark.parametrize(
    "settings",
    [
        {"AFLOW_DEFAULT_METADATA": f"mysql://user:{PASSWORD}@host/x"},
        {"AFLOW_DEFAULT_METADATA": f"postgresql//user:{PASSWORD}@host/x"},
        {"AFLOW_DEFAULT_METADATA": f"postgresql://user:{PASSWORD}", "AFLOW_QUEUE": f"redis://:{PASSWORD}"},
        {"AFLOW_DEFAULT_METADATA": f"https://user:{PASSWORD}@host:x", "AFLOW_QUEUE": f"redis://u:{PASSWORD}@[::1/0"},
        {"AFLOW_HISTORY": f"user:{PASSWORD}@host", "AFLOW_QUEUE": f"redis:/:{PASSWORD}@host"},
        {"AFLOW_SERVICE_HEADERS": f"authorization {PASSWORD}", "AFLOW_DEFAULT_METADATA": "http://127.0.0.1:1"},
        {"AFLOW_DEFAULT_METADATA": f"postgresql://user:{PASSWORD}@127.0.0.1:1/x"},
        {"AFLOW_QUEUE": f"redis://:{PASSWORD}@127.0.0.1:1/0"},
    ],
)  # fmt: skip
def test_no_command_shows_a_password_that_it_cannot_use(
    workspace: Workspace, settings: dict[str, str]
) -> None:
    for command in ("doctor", "runs"):
        ran = workspace.finish(workspace.start_aflow(command, **settings, AFLOW_DEBUG="1"))
        assert PASSWORD not in ran.out + ran.err, command
        assert "unexpected" not in ran.out + ran.err
