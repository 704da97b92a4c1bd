"""aflow's own runs with `--metadata service`: run, resume, read; a service that is unavailable."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from aflow._core.clock import SystemClock
from aflow._core.waiting import Waiting
from aflow.errors import InvalidSetting, MetadataUnavailable, VersionConflict
from aflow.metadata import wire
from aflow.metadata.base import Batch, RunRecord
from aflow.metadata.http import ServiceMetadata
from tests.contracts.metadata_stores import a_run, tasks_of
from tests.support.servers import free_port
from tests.support.service import InThread

ROOT = Path(__file__).resolve().parents[2]
FLOW = """
import os
from aflow import FlowSpec, step

class Sum(FlowSpec):
    @step
    def start(self):
        self.xs = list(range(20))
        self.next(self.body, foreach="xs")

    @step
    def body(self):
        self.y = self.input * 2
        self.next(self.join)

    @step
    def join(self, inputs):
        if os.environ.get("BREAK"):
            raise ValueError("broken")
        self.total = sum(each.y for each in inputs)
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Sum()
"""
READ = """
import json
from aflow.client import Flow, namespace
namespace(None)
print(json.dumps([
    [run.successful, run.data.total if run.successful else None, len(list(run["body"]))]
    for run in Flow("Sum")
]))
"""


def call(
    folder: Path, url: str, *words: str, key: str = "k", **more: str
) -> subprocess.CompletedProcess[str]:
    settings = {
        "PYTHONPATH": str(ROOT),
        "AFLOW_DEFAULT_METADATA": "service",
        "AFLOW_SERVICE_URL": url,
        "AFLOW_SERVICE_AUTH_KEY": key,
    }
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env={**os.environ, **settings, **more},
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip


@contextmanager
def running(path: Path, port: int = 0, keys: Sequence[str] = ("k",)) -> Iterator[InThread]:
    service = InThread(f"sqlite:///{path}", keys, port)
    try:
        yield service
    finally:
        service.stop()


def test_flows_run_resume_and_are_read(tmp_path: Path) -> None:
    (tmp_path / "flow.py").write_text(FLOW)
    with running(tmp_path / "service" / "metadata.db") as service:
        good = call(tmp_path, service.url, "flow.py", "run")
        broken = call(tmp_path, service.url, "flow.py", "run", BREAK="1")
        resumed = call(tmp_path, service.url, "flow.py", "resume")
        read = call(tmp_path, service.url, "-c", READ)

    assert (0, 1, 0) == (good.returncode, broken.returncode, resumed.returncode), good.stderr
    assert 0 == read.returncode, read.stderr
    assert [[True, 380, 20], [False, None, 20], [True, 380, 20]] == json.loads(read.stdout)
    assert not (tmp_path / ".aflow" / "metadata.db").exists()


def test_a_key_that_is_wrong_ends_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "flow.py").write_text(FLOW)
    with running(tmp_path / "service" / "metadata.db") as service:
        done = call(tmp_path, service.url, "flow.py", "run", key="wrong")

    assert 1 == done.returncode
    assert "AFLOW_SERVICE_AUTH_KEY is missing or wrong" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_address_that_is_missing_ends_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "flow.py").write_text(FLOW)

    done = call(tmp_path, "", "flow.py", "run")

    assert 2 == done.returncode
    assert "set AFLOW_SERVICE_URL" in done.stderr


def test_a_call_waits_for_a_service_that_is_away(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    with running(path, keys=()) as service:
        port, url = service.port, service.url
        store = ServiceMetadata(url, {}, SystemClock(), patience=60)
        run = store.create_run(a_run(), b"parameters")
    done: list[int] = []
    writer = threading.Thread(
        target=lambda: done.append(
            store.commit(run.key, 0, Batch(b"events", tasks_of("start", [1])))
        )
    )
    writer.start()
    with running(path, port, keys=()):
        writer.join(60)
        found = store.run("Flow", "1")
        store.close()

    assert [1] == done
    assert found is not None
    assert 1 == found.version


def test_a_restart_of_the_service_costs_one_try_for_all_idle_connections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, path, count = free_port(), tmp_path / "metadata.db", 6
    store = ServiceMetadata(f"http://127.0.0.1:{port}", {}, SystemClock())
    caller = store._caller
    with socket.create_server(("127.0.0.1", port), backlog=count):  # closes them at its end
        caller._idle = [caller._connection() for _ in range(count)]
    tried: list[str] = []
    post = caller._post

    def counted(path: str, body: bytes, waiting: Waiting) -> Iterator[list[Any]]:
        tried.append(path)
        return post(path, body, waiting)

    monkeypatch.setattr(caller, "_post", counted)
    with running(path, port, keys=()):
        store.flows()

    assert len(tried) <= 2
    store.close()


def test_patience_ends_in_one_sentence() -> None:
    port = free_port()
    store = ServiceMetadata(f"http://127.0.0.1:{port}", {}, SystemClock(), patience=0.2)

    with pytest.raises(MetadataUnavailable, match=f"127.0.0.1:{port} cannot be used: .*refused"):
        store.flows()


class Deaf(ServiceMetadata):
    """Does not hear the first answer to each write, and asks again."""

    def _answer(self, name, *values, **named):
        frames, again = super()._answer(name, *values, **named)
        if name in ("create_run", "commit"):
            assert list(frames)
            return super()._answer(name, *values, **named)[0], True
        return frames, again


def test_a_write_whose_answer_was_lost_is_done_once(tmp_path: Path) -> None:
    with running(tmp_path / "metadata.db", keys=()) as service:
        store = Deaf(service.url, {}, SystemClock())
        run = store.create_run(a_run(), b"parameters")

        version = store.commit(run.key, 0, Batch(b"events", tasks_of("start", [1])))

        assert 1 == version
        assert [b"events"] == list(store.journal(run.key))
        other = ServiceMetadata(service.url, {}, SystemClock())
        with pytest.raises(VersionConflict):
            other.create_run(a_run(created_at=7.0), b"parameters")
        with pytest.raises(VersionConflict):
            other.commit(run.key, 0, Batch(b"events"))
        store.close()
        other.close()


def test_a_run_with_a_coordinator_whose_answer_was_lost_is_created_once(tmp_path: Path) -> None:
    with running(tmp_path / "metadata.db", keys=()) as service:
        store = Deaf(service.url, {}, SystemClock())
        sent = a_run(tags=("b", "a"), system_tags=("y:1", "x:2"), graph={"steps": ("a", "b")})

        made = store.create_run(sent, b"parameters", "a coordinator", 30.0)

        assert sent == made._replace(key=sent.key, version=sent.version)
        assert made.key == store.run(sent.flow, sent.run).key
        with pytest.raises(VersionConflict):
            store.create_run(sent, b"parameters", "another coordinator", 30.0)
        store.close()


def test_what_is_no_call_is_refused(tmp_path: Path) -> None:
    import urllib.error
    import urllib.request

    strange: RunRecord = a_run(flow="x'; DROP TABLE runs; --")
    bad = [
        ("close", wire.pack([[], {}])),
        ("flows", b"\xc1"),
        ("flows", wire.pack([[1, 2], {}])),
        ("flows", wire.pack(7)),
        ("run", wire.pack([[{"a": 1}, []], {}])),
        ("create_run", wire.pack([[strange, b""], {}])),
        ("create_run", wire.pack([[], {"run": strange, "parameters": b""}])),
        ("create_run", wire.pack([[a_run(user=7), b""], {}])),
    ]
    with running(tmp_path / "metadata.db", keys=()) as service:
        for name, body in bad:
            url = f"{service.url}/aflow/v1/metadata/{name}"
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(url, body, timeout=100)
            assert 400 == caught.value.code, (name, caught.value.read())
            assert "message" in json.loads(caught.value.read())


@pytest.mark.parametrize("url", ["http://", "http://a..b", f"http://{'x' * 64}.org", "http://[::1"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InvalidSetting, match="not an address of a metadata service"):
        ServiceMetadata(url, {}, SystemClock())


def test_the_path_of_an_address_may_have_any_characters(tmp_path: Path) -> None:
    with running(tmp_path / "metadata.db", keys=()) as service:
        store = ServiceMetadata(f"{service.url}/flöws of%20ours", {}, SystemClock())
        with pytest.raises(MetadataUnavailable, match="answers 404"):
            store.flows()
        assert store.url == f"{service.url}/fl%C3%B6ws%20of%20ours"
        store.close()


@contextmanager
def program(folder: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    """`aflow metadata-service`, until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "aflow", "metadata-service", "--port", str(port),
         "--metadata", f"sqlite:///{folder}/service/metadata.db"],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        try:
            assert process.stdout is not None
            assert "http" in process.stdout.readline()
            yield process
        finally:
            process.kill()


def test_a_run_outlives_a_service_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "flow.py").write_text(FLOW.replace("range(20))", "range(20)); open('go').read()"))
    os.mkfifo(tmp_path / "go")
    port = free_port()
    done: list[subprocess.CompletedProcess[str]] = []
    url = f"http://127.0.0.1:{port}"
    runner = threading.Thread(
        target=lambda: done.append(call(tmp_path, url, "flow.py", "run")), daemon=True
    )
    with program(tmp_path, port):
        runner.start()
        step = (tmp_path / "go").open("w")  # opens once the step has opened it
    with step, program(tmp_path, port):
        step.close()
        runner.join(100)

    assert [0] == [each.returncode for each in done], done
