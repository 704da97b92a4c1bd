"""`--metadata service` with Metaflow's own service: runs are stored here and registered in the
service."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aflow._core.clock import SystemClock
from aflow.metadata import http
from aflow.metadata.factory import histories_of
from aflow.metadata.metaflow.service import Registry
from tests.support.service import InThread

FLOW = """
import os
from aflow import FlowSpec, retry, step

class Sum(FlowSpec):
    @step
    def start(self):
        self.xs = [1, 2, 3]
        self.next(self.body, foreach="xs")

    @retry(times=1, minutes_between_retries=0)
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
from aflow.client import Flow, namespace
namespace(None)
print([run.data.total if run.successful else None for run in Flow("Sum")])
"""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[InThread]:
    made = InThread(f"sqlite:///{tmp_path}/service/metadata.db", ["k"], own=False)
    yield made
    made.stop()


def test_runs_are_registered_and_resumed_and_read(tmp_path: Path, service: InThread) -> None:
    (tmp_path / "flow.py").write_text(FLOW)
    settings = {
        "METAFLOW_DEFAULT_METADATA": "service",
        "METAFLOW_SERVICE_URL": service.url,
        "METAFLOW_SERVICE_AUTH_KEY": "k",
        "METAFLOW_USER": "tester",
    }

    def call(code: int, *words: str, **more: str) -> str:
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env={**os.environ, **settings, **more},
            capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        assert code == done.returncode, done.stderr
        return done.stdout

    def reported(path: str) -> Any:
        asked = urllib.request.Request(f"{service.url}{path}", headers={"x-api-key": "k"})
        with urllib.request.urlopen(asked, timeout=100) as answer:
            return json.load(answer)

    call(1, "flow.py", "run", "--tag", "first", BREAK="1")
    call(0, "flow.py", "resume")
    run_id = call(0, "-c", "from aflow.client import Flow; print(Flow('Sum').latest_run.id)")
    call(0, "flow.py", "tag", "add", "--run-id", run_id.strip(), "good")

    assert "[12, None]" == call(0, "-c", READ).strip()
    broken, resumed = reported("/flows/Sum/runs")
    assert "tester" == broken["user_name"]
    assert "first" in broken["tags"]
    assert "good" in resumed["tags"]
    assert f"aflow-{run_id.strip()}" == resumed["run_number"]
    assert resumed["last_heartbeat_ts"] is not None
    run = f"/flows/Sum/runs/{resumed['run_number']}"
    steps = {each["step_name"] for each in reported(f"{run}/steps")}
    assert {"_parameters", "start", "body", "join", "end"} == steps
    assert 3 == len(reported(f"{run}/steps/body/tasks"))
    (join,) = reported(f"{run}/steps/join/tasks")
    path = f"{run}/steps/join/tasks/{join['task_id']}"
    assert {"total"} <= {each["name"] for each in reported(f"{path}/artifacts")}
    facts = {each["field_name"]: each["value"] for each in reported(f"{path}/metadata")}
    assert {"attempt": "0", "attempt_ok": "True", "attempt-done": "0"}.items() <= facts.items()
    (failed,) = reported(f"/flows/Sum/runs/{broken['run_number']}/steps/join/tasks")
    path = f"/flows/Sum/runs/{broken['run_number']}/steps/join/tasks/{failed['task_id']}"
    facts = {each["field_name"]: each["value"] for each in reported(f"{path}/metadata")}
    assert "False" == facts["attempt_ok"]
    completed = reported("/flows/Sum/runs?status:eq=completed")
    assert [resumed["run_number"]] == [each["run_number"] for each in completed]


def test_a_heartbeat_does_not_wait_for_a_service_that_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aflow.metadata.metaflow.service._BEAT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as hanging:  # accepts, and never answers
        registry = Registry(f"http://127.0.0.1:{hanging.getsockname()[1]}", {}, SystemClock())
        beating = threading.Thread(target=registry.beat, args=("/flows/F/runs/1/heartbeat",))
        beating.start()
        taken, _ = hanging.accept()
        beating.join(http.TIMEOUT / 2)
        assert not beating.is_alive()
        taken.close()
        registry.close()


def test_a_run_that_a_service_has_kept_in_a_folder_is_not_listed_twice(tmp_path: Path) -> None:
    def keep(*place: str, **row: Any) -> None:
        folder = tmp_path.joinpath(".metaflow", *place, "_meta")
        folder.mkdir(parents=True)
        (folder / "_self.json").write_text(json.dumps({"ts_epoch": 1, "tags": [], **row}))

    keep("Sum", flow_id="Sum")
    for run, mark in {"1": "metaflow_version:2", "2": "aflow_version:0.2.0"}.items():
        keep("Sum", run, flow_id="Sum", run_number=run, user_name="ann", system_tags=[mark])

    (history,) = histories_of(f"sqlite:///{tmp_path}/.aflow/metadata.db")

    assert ["1"] == [each.run for each in history.runs("Sum")]
    history.close()
