"""Workers, logs and `aflow gc` with metadata in a service that requires a key."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.service import InThread

FLOW = """
from aflow import FlowSpec, Run, current, step

class Seen(FlowSpec):
    @step
    def start(self):
        print("seen by a worker:", Run(f"Seen/{current.run_id}").id == current.run_id)
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Seen()
"""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[InThread]:
    made = InThread(f"sqlite:///{tmp_path}/service/metadata.db", ["k"])
    yield made
    made.stop()


def test_workers_logs_and_gc_ask_the_service(tmp_path: Path, service: InThread) -> None:
    (tmp_path / "flow.py").write_text(FLOW)
    settings = {
        "AFLOW_DEFAULT_METADATA": "service",
        "METAFLOW_SERVICE_URL": service.url,
        "METAFLOW_SERVICE_AUTH_KEY": "k",
        "METAFLOW_SERVICE_HEADERS": '{"X-Team": "blue"}',
        "AFLOW_QUEUE": f"sqlite:///{tmp_path}/queue.db",
    }

    def call(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env={**os.environ, **settings},
            capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        assert 0 == done.returncode, done.stderr
        return done.stdout

    with subprocess.Popen(
        [sys.executable, "-m", "aflow", "worker"], cwd=tmp_path, text=True,
        env={**os.environ, **settings}, stderr=subprocess.DEVNULL,
    ) as worker:  # fmt: skip
        try:
            ran = call("flow.py", "run", "--executor", "queue")
        finally:
            worker.send_signal(signal.SIGTERM)

    assert "seen by a worker: True" in ran
    run = call("-c", "from aflow.client import Flow; print(Flow('Seen').latest_run.id)").strip()
    assert "seen by a worker: True" in call("flow.py", "logs", f"{run}/start")
    assert "1 run" in call("-m", "aflow", "gc", "--older-than", "0s", "--grace", "0s")
    assert "[]" in call("-c", "from aflow.client import Metaflow; print(list(Metaflow()))")
    assert not (tmp_path / ".aflow" / "metadata.db").exists()
