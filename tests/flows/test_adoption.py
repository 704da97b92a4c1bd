"""Runs whose coordinator was killed, and that another one continues."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from aflow import client
from aflow.metadata.sqlite import SqliteMetadata
from aflow.scheduler.states import AttemptState, RunState
from tests.flows.conftest import Ran, Workspace, processes_in
from tests.support.waiting import wait_until

ITEMS = 6
FLOW = f"""
from pathlib import Path

PLACE = Path({{place!r}})

def note(what):
    with open(PLACE / "ran", "a") as file:
        file.write(what + "\\n")

class Flow_(FlowSpec):
    factor = Parameter("factor", default=1)

    @step
    def start(self):
        self.xs = list(range({ITEMS}))
        self.next(self.work, foreach="xs")

    @step
    def work(self):
        note(f"work {{{{self.input}}}}")
        print("at work on", self.input)
        while self.input >= 2 and not (PLACE / "go").exists():
            time.sleep(0.01)
        self.y = self.factor * self.input ** 2
        self.next(self.join)

    @step
    def join(self, inputs):
        note("join")
        self.total = sum(each.y for each in inputs)
        self.next(self.end)

    @step
    def end(self):
        pass
"""
TOTAL = 2 * sum(x * x for x in range(ITEMS))


class Left:
    """A run whose coordinator is killed in the middle."""

    def __init__(self, workspace: Workspace, place: Path) -> None:
        self.workspace = workspace
        self.place = place
        place.mkdir()
        workspace.write(FLOW.format(place=str(place)))

    def begin_and_kill(self, *words: str, started: int) -> None:
        """Run until this many tasks of `work` have started and two of them are committed, then
        kill."""
        run = self.workspace.start("--no-pylint", "run", "--factor", "2", *words)
        wait_until(lambda: len(self.ran()) >= started and self.finished() >= 2)
        run.kill()
        run.communicate()

    def ran(self) -> list[str]:
        """Return the tasks that have started, in order."""
        file = self.place / "ran"
        return file.read_text().splitlines() if file.exists() else []

    def finished(self) -> int:
        """Return the number of committed tasks of `work`."""
        if not (self.workspace.path / ".aflow" / "metadata.db").exists():
            return 0
        metadata = self.workspace.metadata
        runs = metadata.runs("Flow_")
        states = [each.state for run in runs for each in metadata.tasks(run.key, step="work")]
        metadata.close()
        return sum(state.value == "succeeded" for state in states)

    @property
    def run(self) -> str:
        """The run's pathspec."""
        metadata = self.workspace.metadata
        found = metadata.runs("Flow_")[0]
        metadata.close()
        return f"{found.flow}/{found.run}"

    def keep_the_lease(self) -> None:
        """Extend the lease by an hour, so that a slow start of the next command does not matter."""
        self._move_lease(3600)

    def let_time_pass(self) -> None:
        """Advance the clock until the lease of the run has expired."""
        self._move_lease(-7200)

    def _move_lease(self, seconds: int) -> None:
        with sqlite3.connect(self.workspace.path / ".aflow" / "metadata.db") as database:
            moved = database.execute("UPDATE leases SET until = until + ?", [seconds])
            assert 1 == moved.rowcount
        database.close()

    def recover(self) -> Ran:
        """Continue the run."""
        return self.workspace.finish(self.workspace.start_aflow("recover", self.run))

    def call(self, *words: str) -> str:
        """Return the output of `aflow WORDS`."""
        ran = self.workspace.finish(self.workspace.start_aflow(*words))
        assert 0 == ran.code, ran.err
        return ran.out

    def check(self, ran: Ran) -> None:
        """Check that the run has finished as if nothing had happened."""
        assert 0 == ran.code, ran.out + ran.err
        client.metadata(f"local@{self.workspace.path}")
        client.namespace(None)
        run = client.Run(self.run)
        assert (TOTAL, True) == (run.data.total, run.successful)
        assert 1 == len(list(client.Flow("Flow_").runs()))
        self.workspace.check()


@pytest.fixture
def left(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Left:
    return Left(workspace, tmp_path_factory.mktemp("elsewhere") / "notes")


def attempts_of(left: Left) -> Counter[AttemptState]:
    """Return the states of all attempts of the step `work`."""
    metadata = left.workspace.metadata
    run = metadata.runs("Flow_")[0]
    tasks = [each.task.task for each in metadata.tasks(run.key, step="work")]
    states = Counter(each.state for task in tasks for each in metadata.attempts(run.key, task))
    metadata.close()
    return states


def test_a_run_goes_on_where_its_coordinator_was_killed(left: Left) -> None:
    left.begin_and_kill("--max-workers", "2", started=4)
    wait_until(lambda: [] == processes_in(left.workspace.path))  # its tasks exit with it
    left.keep_the_lease()
    early = left.recover()
    assert 2 == early.code
    assert "has a coordinator that drives it" in early.err
    left.let_time_pass()
    follower = left.workspace.start_aflow("logs", "--follow", left.run)
    assert follower.stderr is not None
    assert "no coordinator drives it" in follower.stderr.readline()
    heir = left.workspace.start_aflow("recover", left.run)
    wait_until(lambda: len(left.ran()) >= 6)
    assert " running " in left.call("runs")  # it is driven, though not by what began it
    assert "  for " in left.call("status")
    assert "0 runs " in left.call("gc", "--failed", "--grace", "0s")
    (left.place / "go").touch()

    ran = left.workspace.finish(heir)
    assert 0 == left.workspace.finish(follower).code

    left.check(ran)
    assert "Recovering the run from another coordinator" in ran.out
    begun = Counter(left.ran())
    assert {
        "work 0": 1,
        "work 1": 1,
        "work 2": 2,
        "work 3": 2,
        "work 4": 1,
        "work 5": 1,
        "join": 1,
    } == begun
    assert {AttemptState.SUCCEEDED: ITEMS, AttemptState.INTERRUPTED: 2} == attempts_of(left)
    again = left.recover()
    assert 2 == again.code
    assert "has ended: it is succeeded" in again.err


RERUN = """
from pathlib import Path

PLACE = Path({place!r})

def note(what):
    with open(PLACE / "ran", "a") as file:
        file.write(what + "\\n")

class Flow_(FlowSpec):
    @step
    def start(self):
        self.next(self.train)

    @step
    def train(self):
        note("train")
        while (PLACE / "wait").exists() and not (PLACE / "go").exists():
            time.sleep(0.01)
        self.next(self.end)

    @step
    def end(self):
        note("end")
"""


def test_what_follows_a_step_that_was_to_run_again_runs_after_a_recovery_too(left: Left) -> None:
    left.workspace.write(RERUN.format(place=str(left.place)))
    assert 0 == left.workspace.run().code
    (left.place / "wait").touch()
    resumed = left.workspace.start("--no-pylint", "resume", "train")
    wait_until(lambda: ["train", "end", "train"] == left.ran())
    resumed.kill()
    resumed.communicate()
    wait_until(lambda: [] == processes_in(left.workspace.path))
    left.let_time_pass()
    (left.place / "go").touch()

    ran = left.recover()

    assert 0 == ran.code, ran.err
    assert ["train", "end", "train", "train", "end"] == left.ran()


def test_tasks_of_workers_are_awaited_by_the_next_coordinator(left: Left) -> None:
    url = f"sqlite:///{left.place}/queue.db"
    worker = subprocess.Popen(
        [sys.executable, "-m", "aflow", "worker", "--queue", url, "--slots", "3"],
        cwd=left.place,
        env=os.environ | {"AFLOW_CLIENT_CACHE_PATH": str(left.place / "cache")},
        stderr=subprocess.DEVNULL,
    )
    try:
        left.begin_and_kill("--executor", "queue", "--queue", url, started=5)
        left.let_time_pass()
        (left.place / "go").touch()

        ran = left.recover()

        left.check(ran)
        assert {1} == set(Counter(left.ran()).values())  # each task has run once
        assert {AttemptState.SUCCEEDED: ITEMS} == attempts_of(left)
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.wait(60)


def test_a_cancel_is_honoured_that_nobody_was_there_to_hear(left: Left) -> None:
    left.begin_and_kill("--max-workers", "2", started=4)
    left.let_time_pass()
    store = SqliteMetadata(left.workspace.path / ".aflow" / "metadata.db")
    assert store.request_cancel(store.runs("Flow_")[0].key, "Nobody needs it any more.")
    store.close()

    ran = left.recover()

    assert 1 == ran.code, ran.out + ran.err
    assert "Nobody needs it any more." in ran.out + ran.err
    state, _ = left.workspace.latest()
    assert RunState.CANCELLED is state


def test_only_a_run_that_is_there_with_its_code_can_be_taken_up(left: Left) -> None:
    (left.place / "go").touch()
    assert 0 == left.workspace.run().code
    absent = left.workspace.finish(left.workspace.start_aflow("recover", "Flow_/17"))
    assert (1, True) == (absent.code, "There is no run Flow_/17" in absent.err)
    wrong = left.workspace.finish(left.workspace.start_aflow("recover", "../Flow_"))
    assert 2 == wrong.code
    assert "Traceback" not in absent.err + wrong.err
