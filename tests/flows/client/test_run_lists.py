"""`aflow runs` and `aflow status`: lists of recorded runs, as text and as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aflow.metadata.base import AttemptRecord, Batch, RunRecord, TaskRecord
from aflow.metadata.sqlite import SqliteMetadata
from aflow.scheduler.states import AttemptState, RunState
from tests.flows.conftest import TIMEOUT, Ran, Workspace

FLOW = """
class Flow_(FlowSpec):
    fail = Parameter("fail", default=False)

    @step
    def start(self):
        self.next(self.work)

    @step
    def work(self):
        if self.fail:
            raise ValueError("not <today>")
        self.next(self.end)

    @step
    def end(self):
        pass
"""
OVER = ["Other cancelled"]


def record(run: str, at: float, **more: Any) -> RunRecord:
    """Record a run of another flow that was never driven here."""
    made = RunRecord(
        0, "Other", run, RunState.RUNNING, "bob", at, None, 0, (), ("user:bob",), {}, {}
    )
    return made._replace(**more)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Two runs of Flow_, of which the later one failed, and three of Other: one is over, one was
    orphaned, one goes on."""
    workspace = Workspace(Path(tmp_path_factory.mktemp("runs")))
    workspace.write(FLOW)
    assert 0 == workspace.run("--tag", "good", AFLOW_USER="ann").code
    assert 1 == workspace.run("--fail", "True", AFLOW_USER="ann").code
    metadata = SqliteMetadata(workspace.path / ".aflow" / "metadata.db")
    metadata.create_run(record("1", 100.0, state=RunState.CANCELLED, finished_at=175.0), b"")
    metadata.create_run(record("2", 200.0), b"", "coordinator/gone", 0.0)
    alive = metadata.create_run(record("3", 300.0), b"", "coordinator/elsewhere", 600.0)
    batch = Batch(tasks=[TaskRecord(number, "train", 301.0) for number in (1, 2, 3)])
    batch.attempts = [
        AttemptRecord(1, 0, AttemptState.SUCCEEDED, 301.0, 302.0, manifest=b""),
        AttemptRecord(2, 0, AttemptState.RUNNING, 301.0),
    ]
    metadata.commit(alive.key, 0, batch)
    metadata.close()
    return workspace


def aflow(workspace: Workspace, *words: str) -> Ran:
    return workspace.finish(workspace.start_aflow(*words))


def listed(workspace: Workspace, *words: str) -> list[str]:
    """Return the pathspecs that `aflow runs` lists, with the states."""
    ran = aflow(workspace, "runs", *words)
    assert 0 == ran.code, ran.err
    return [f"{run['flow']} {run['status']}" for run in json.loads(ran.out)]


def test_runs_of_all_flows_are_listed_newest_first(recorded: Workspace) -> None:
    lines = aflow(recorded, "runs").out.splitlines()

    assert ["RUN", "STATE", "STARTED", "TOOK", "USER", "TAGS"] == lines[0].split()
    states = [line.split()[1] for line in lines[1:]]
    assert ["failed", "succeeded", "running", "orphaned", "cancelled"] == states
    assert lines[2].endswith("  ann   good")
    assert ["1m", "15s", "bob"] == lines[5].split()[-3:]
    assert "  ?  " in lines[4]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["Flow_"], ["Flow_ failed", "Flow_ succeeded"]),
        (["--status", "failed", "--status", "cancelled"], ["Flow_ failed", "Other cancelled"]),
        (["--tag", "good"], ["Flow_ succeeded"]),
        (["--tag", "user:bob", "--limit", "1"], ["Other running"]),
        (["--since", "1d", "--limit", "0"], ["Flow_ failed", "Flow_ succeeded"]),
        (["--until", "1970-01-02T00:00:00+00:00", "Other"], ["Other running"] * 2 + OVER),
        (["Other", "--since", "2w"], []),
    ],
)  # fmt: skip
def test_runs_are_chosen_and_given_to_programs(
    recorded: Workspace, words: list[str], expected: list[str]
) -> None:
    assert expected == listed(recorded, *words, "--json")


def test_a_run_is_whole_for_programs(recorded: Workspace) -> None:
    [_, left, over] = json.loads(aflow(recorded, "runs", "Other", "--json").out)

    assert left["orphaned"]
    assert {
        "pathspec": "Other/1",
        "flow": "Other",
        "run": "1",
        "status": "cancelled",
        "orphaned": False,
        "user": "bob",
        "created_at": "1970-01-01T00:01:40+00:00",
        "finished_at": "1970-01-01T00:02:55+00:00",
        "reason": "",
        "origin_run": None,
        "tags": [],
        "system_tags": ["user:bob"],
    } == over


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["Flow"], 1, "Flow 'Flow' has never run here. Did you mean 'Flow_'? These have: "),
        (["--since", "yesterday"], 2, "--since 'yesterday' is not a time: write a time such as"),
        (["--status", "odd"], 2, "'odd' is not one of 'pending', 'running', 'succeeded'"),
        (["--limit", "-1"], 2, "-1 is not in the range"),
        (["--tag", ""], 2, "a tag is a text that is not empty"),
    ],
)
def test_what_cannot_be_listed_is_said_in_a_sentence(
    recorded: Workspace, words: list[str], code: int, sentence: str
) -> None:
    ran = aflow(recorded, "runs", *words)

    assert code == ran.code
    assert sentence in ran.err
    assert "Traceback" not in ran.err


def test_nothing_is_listed_where_nothing_has_run(workspace: Workspace) -> None:
    ran = aflow(workspace, "runs")

    assert 1 == ran.code
    assert "Nothing has run here yet" in ran.err
    assert [] == list(workspace.path.iterdir())


def test_a_terminal_is_shown_colours_and_whole_ids(recorded: Workspace) -> None:
    ours, theirs = os.openpty()
    ran = subprocess.run(
        [sys.executable, "-m", "aflow", "runs"],
        cwd=recorded.path,
        env=os.environ | {"COLUMNS": "90", "TERM": "xterm"},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        check=False,
        timeout=TIMEOUT,
    )
    os.close(theirs)
    with open(ours, "rb") as terminal:
        shown = os.read(terminal.fileno(), 1 << 16).decode()
    [latest, *_] = json.loads(aflow(recorded, "runs", "--limit", "1", "--json").out)

    assert 0 == ran.returncode
    assert latest["pathspec"] in shown
    assert "\x1b[31mfailed" in shown
    assert "\x1b[32msucceeded" in shown


def test_status_tells_what_runs_and_what_has_failed_where(recorded: Workspace) -> None:
    ran = aflow(recorded, "status")
    _, running, failed = ran.out.split("\n\n", 3)[1:]

    first, second = running.splitlines()[1:]
    assert "  Other/3  for " in first
    assert first.endswith("train 1 ready, 1 running, 1 succeeded")
    assert "  Other/2  orphaned: no coordinator drives it; " in second
    assert "`aflow recover Other/2` recovers it, `aflow cancel Other/2` ends it" in second
    assert "Failed:" == failed.splitlines()[0]
    assert failed.splitlines()[1].endswith("  work/2: ValueError: not <today>")
