"""The unmodified Metaflow runs a flow with the service, resumes, tags, and reads it.

`scripts/peer` installs Metaflow into .peer; without it these tests are skipped.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.compat.peer import ROOT, Forks, call, needs_peer

pytestmark = [needs_peer, pytest.mark.slow, pytest.mark.timeout(300)]

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


SHAPES = """
import sys
from metaflow import FlowSpec, Parameter, card, catch, current, step

class Shapes(FlowSpec):
    n = Parameter("n", default=3)
    constant = 7

    @step
    def start(self):
        self.xs = list(range(self.n))
        self.large = "x" * 300_000
        self.next(self.left, self.right)

    @card(type="blank")
    @step
    def left(self):
        from metaflow.cards import Markdown
        current.card.append(Markdown("# Left"))
        print("  indented", flush=True)
        print("second line")
        print("to stderr", file=sys.stderr)
        self.side = {"left": (1, 2.5, None)}
        self.next(self.body, foreach="xs")

    @step
    def body(self):
        self.y = [self.input, self.index]
        self.next(self.join)

    @step
    def join(self, inputs):
        self.ys = [each.y for each in inputs]
        self.merge_artifacts(inputs, include=["side", "large"])
        self.next(self.both)

    @catch(var="problem")
    @step
    def right(self):
        self.side = "right"
        self.next(self.broken)

    @catch(var="problem")
    @step
    def broken(self):
        if self.n:
            raise ValueError("of a step that is settled")
        self.next(self.both)

    @step
    def both(self, inputs):
        self.total = sum(y for y, _ in inputs.join.ys)
        self.side = inputs.join.side
        self.next(self.end)

    @step
    def end(self):
        if self.n == 5:
            raise KeyError("at the end")

if __name__ == "__main__":
    Shapes()
"""
READ_ALL = """
import json, sys
from metaflow import Run, namespace
from metaflow.cards import get_cards
namespace(None)
run = Run(sys.argv[1])

def place(pathspec):
    from metaflow import Task
    task = Task(pathspec)
    return f"{task.parent.id}[{task.index}]"

def described(task):
    values = {each.id: repr(each.data)[:200] for each in task if each.id != "problem"}
    return {
        "values": values,
        "sizes": all(each.size > 0 for each in task),
        "successful": task.successful,
        "finished": task.finished,
        "finished_at": task.finished_at is not None,
        "stdout": [line for line in task.stdout.splitlines() if line[0] != ">"],
        "stderr": [line for line in task.stderr.splitlines() if line == "to stderr"],
        "exception": task.exception and [task.exception.type, task.exception.exception],
        "parents": sorted(map(place, task.parent_task_pathspecs)),
        "children": sorted(map(place, task.child_task_pathspecs)),
        "cards": [each.type for each in get_cards(task)] if task.parent.id == "left" else [],
        "heading": "Left" in get_cards(task)[0].get() if task.parent.id == "left" else None,
        "metadata": sorted(
            {"attempt", "attempt_ok", "ds-type", "ds-root", "foreach-execution-path"}
            & task.metadata_dict.keys()
        ),
        "path": task.metadata_dict.get("foreach-execution-path"),
    }

print(json.dumps({
    "steps": sorted(step.id for step in run),
    "parents": {step.id: sorted(each.id for each in step.parent_steps) for step in run},
    "successful": run.successful,
    "finished": run.finished,
    "finished_at": run.finished_at is not None,
    "tasks": {f"{step.id}[{task.index}]": described(task) for step in run for task in step},
}))
"""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[str]:
    """The URL of `aflow metadata-service`, which requires a key."""
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


def test_metaflow_runs_resumes_tags_and_reads(service: str, tmp_path: Path) -> None:
    (tmp_path / "flow.py").write_text(FLOW)
    (tmp_path / "read.py").write_text(READ)
    settings = {
        "METAFLOW_DEFAULT_METADATA": "service",
        "METAFLOW_SERVICE_URL": service,
        "METAFLOW_SERVICE_AUTH_KEY": "k",
    }
    with closing(Forks(**settings)) as metaflow:
        good = metaflow.run(tmp_path, "flow.py", "run", "--tag", "first")
        broken = metaflow.run(tmp_path, "flow.py", "run", BREAK="1")
        resumed = metaflow.run(tmp_path, "flow.py", "resume", "--tag", "first")
        read = metaflow.run(tmp_path, "read.py")

    assert (0, 1, 0) == (good.returncode, broken.returncode, resumed.returncode), resumed.stderr
    assert 0 == read.returncode, read.stderr
    reported = json.loads(read.stdout)
    assert reported.pop("origin") is None or reported
    assert {
        "runs": 3,
        "successful": [True, False, True],
        "total": 6,
        "ys": [0, 2, 4],
        "user_tags": ["good"],
        "parents": 3,
        "retried": [0, 0, 0],
    } == reported


def test_metaflow_reads_what_aflow_has_run_as_it_reads_its_own(
    service: str, tmp_path: Path
) -> None:
    (tmp_path / "flow.py").write_text(SHAPES)
    (tmp_path / "read.py").write_text(READ_ALL)

    settings = {
        f"{prefix}_{name}": value
        for prefix in ("METAFLOW", "AFLOW")
        for name, value in {
            "DEFAULT_METADATA": "service", "SERVICE_URL": service, "SERVICE_AUTH_KEY": "k",
            "USER": "tester", "CLIENT_CACHE_PATH": str(tmp_path / "cache"),
        }.items()
    }  # fmt: skip

    def read(run: str) -> dict[str, Any]:
        done = metaflow.run(tmp_path, "read.py", f"Shapes/{run}")
        assert 0 == done.returncode, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    with closing(Forks(**settings)) as metaflow:
        for words in ((), ("--n", "5")):
            # aflow first: the flow is known to the service when Metaflow comes to it.
            run = ("run", "flow.py", "--run-id-file", "a", *words)
            ours = call(tmp_path, sys.executable, "-m", "aflow", *run, **settings)
            theirs = metaflow.run(
                tmp_path, "flow.py", "--no-pylint", "run", "--run-id-file", "m", *words
            )
            assert bool(words) == bool(ours.returncode), ours.stderr
            assert ours.returncode == theirs.returncode, ours.stderr + theirs.stderr
            found, expected = (read((tmp_path / name).read_text()) for name in "am")
            for name, task in expected.pop("tasks").items():
                assert task == found["tasks"].pop(name), name
            assert {} == found.pop("tasks")
            assert expected == found
