"""The unmodified Metaflow: it runs a flow against the service, resumes, tags, and reads it back.

`scripts/peer` installs Metaflow into .peer; without it these tests are skipped.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PEER = Path(os.environ.get("AFLOW_PEER_PYTHON", ROOT / ".peer" / "bin" / "python"))
FLOW = """
import os
from metaflow import FlowSpec, Parameter, current, retry, step

class Sum(FlowSpec):
    n = Parameter("n", default=3)

    @step
    def start(self):
        self.xs = list(range(self.n))
        self.next(self.body, foreach="xs")

    @retry(times=1, minutes_between_retries=0)
    @step
    def body(self):
        if self.input == 1 and current.retry_count == 0:
            raise ValueError("once")
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
from metaflow import Flow, Run, namespace
namespace(None)
run = Flow("Sum").latest_run
run.add_tag("good")
run.remove_tag("first")
again = Run(run.pathspec)
print(json.dumps({
    "runs": len(list(Flow("Sum"))),
    "successful": [each.successful for each in Flow("Sum")],
    "total": again.data.total,
    "ys": sorted(task.data.y for task in again["body"]),
    "origin": again.origin_pathspec if hasattr(again, "origin_pathspec") else None,
    "user_tags": sorted(again.user_tags),
    "parents": len(list(again["join"].task.parent_tasks)),
    "retried": sorted(task.current_attempt for task in again["body"]),
}))
"""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[str]:
    """The URL of `aflow metadata-service`, which wants a key."""
    process = subprocess.Popen(
        [sys.executable, "-m", "aflow", "metadata-service", "--port", "0",
         "--metadata", f"sqlite:///{tmp_path}/metadata.db"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), "AFLOW_SERVICE_AUTH_KEY": "k"},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    said = process.stdout.readline()
    try:
        assert "http" in said
        yield said.split()[-1]
    finally:
        process.send_signal(signal.SIGTERM)
        assert 0 == process.wait(20)
        process.stdout.close()


@pytest.mark.timeout(300)
def test_metaflow_runs_resumes_tags_and_reads(service: str, tmp_path: Path) -> None:
    if not PEER.exists():
        pytest.skip(f"Metaflow is not installed: there is no {PEER} (scripts/peer makes it)")
    (tmp_path / "flow.py").write_text(FLOW)

    def metaflow(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
        settings = {
            "METAFLOW_DEFAULT_METADATA": "service",
            "METAFLOW_SERVICE_URL": service,
            "METAFLOW_SERVICE_AUTH_KEY": "k",
            "METAFLOW_USER": "tester",
        }
        return subprocess.run(
            [PEER, *words], cwd=tmp_path, env={**os.environ, **settings, **more},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    good = metaflow("flow.py", "run", "--tag", "first")
    broken = metaflow("flow.py", "run", BREAK="1")
    resumed = metaflow("flow.py", "resume", "--tag", "first")
    read = metaflow("-c", READ)

    assert (0, 1, 0) == (good.returncode, broken.returncode, resumed.returncode), resumed.stderr
    assert 0 == read.returncode, read.stderr
    told = json.loads(read.stdout)
    assert told.pop("origin") is None or told
    assert {
        "runs": 3,
        "successful": [True, False, True],
        "total": 6,
        "ys": [0, 2, 4],
        "user_tags": ["good"],
        "parents": 3,
        "retried": [0, 0, 0],
    } == told
