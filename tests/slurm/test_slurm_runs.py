"""Runs whose steps are jobs of a real Slurm, with a shared folder as the datastore: their results
equal those of local runs, even if jobs, nodes, the controller or coordinators fail.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from aflow import client
from aflow.metadata.sqlite import SqliteMetadata
from aflow.server.jobs import jobs_of, queues
from tests.support.leases import expire_leases
from tests.support.waiting import select_nothing

if TYPE_CHECKING:
    from tests.support.slurm import Slurm

FLOWS = Path(__file__).parent / "flow_files"
JOBS = FLOWS / "jobs.py"
SHAPES = Path(__file__).parents[1] / "step_functions" / "flow_files" / "everything.py"
PATIENCE = 100.0  # seconds

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("slurm")]


class Bench:
    """A folder in which flows run, with their data and metadata."""

    def __init__(self, folder: Path, slurm: Slurm) -> None:
        self.folder = folder
        self.slurm = slurm

    def run(self, file: Path, *words: str, code: int = 0, **env: str) -> str:
        """Run a command of the flow, and return its output."""
        done = subprocess.run(
            [sys.executable, str(file), *words], capture_output=True, text=True, cwd=self.folder,
            env={**os.environ, **env},
        )  # fmt: skip
        assert code == done.returncode, done.stdout + done.stderr
        return done.stdout + done.stderr

    @contextmanager
    def running(self, *words: str) -> Iterator[Running]:
        """Start a run of the flow."""
        process = subprocess.Popen(
            [sys.executable, str(JOBS), "run", *words],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=self.folder,
        )  # fmt: skip
        try:
            yield Running(process)
        finally:
            process.kill()
            print(process.communicate()[0])  # the output of failing tests

    def queue(self, form: str = "%T") -> list[str]:
        """Return squeue's list of unfinished jobs."""
        return self.slurm.query("squeue", "-h", "--array", "-o", form).split()

    def until(self, happened: Callable[[], Any]) -> Any:
        give_up_at = time.monotonic() + PATIENCE
        while not (found := happened()):
            assert time.monotonic() < give_up_at, self.slurm.query("squeue", "--states=all")
            select_nothing(0.1)
        return found

    def until_running(self, count: int) -> None:
        self.until(lambda: self.queue() == ["RUNNING"] * count)

    def latest(self, flow: str = "Jobs") -> Any:
        client.metadata(f"local@{self.folder}/.aflow")
        return client.Flow(flow, _namespace_check=False).latest_run


class Running:
    """A process and its output."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def ended(self) -> tuple[int, str]:
        """Wait for the process, and return its exit code and output."""
        said = self.process.communicate(timeout=PATIENCE)[0]
        return self.process.returncode, said

    def says(self, words: str) -> str:
        """Wait for the line with these words, and return it."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if words in line:
                return line
        raise AssertionError(f"it ended without {words!r}")


@pytest.fixture
def bench(slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    # pytest keeps its folders from other users; jobs are root's here, as the tests are.
    yield Bench(tmp_path, slurm)
    client.default_metadata()


def test_a_foreach_is_one_array_with_its_resources_and_without_the_key_of_messages(
    bench: Bench,
) -> None:
    said = bench.run(JOBS, "run", "--n", "20", "--max-workers", "20", AFLOW_SIGNING_KEY="k" * 32)
    data = bench.latest().data

    assert [each * each for each in range(20)] == data.squares, said
    assert 1 == len(data.jobs), "one name: one sbatch"
    assert ["200"] == data.memory
    assert {None} == data.signing_keys


def test_a_foreach_of_a_thousand_is_submitted_and_ended_in_three_calls(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = bench.folder / "seen"
    shims = bench.folder / "shims"
    shims.mkdir()
    for command in ("sbatch", "scancel"):
        real = shutil.which(command)
        (shims / command).write_text(
            f'#!/bin/sh\necho {command} "$1" >> {seen}\nexec {real} "$@"\n'
        )
        (shims / command).chmod(0o755)
    monkeypatch.setenv("PATH", f"{shims}:{os.environ['PATH']}")
    wide = ["--n", "1000", "--max-workers", "1000", "--max-num-splits", "1000"]

    with bench.running("--what", "wait", "--gate", "/nowhere", *wide) as run:
        bench.until(lambda: "RUNNING" in bench.queue())
        assert 1000 == len(bench.queue())
        run.process.send_signal(signal.SIGINT)
        code, said = run.ended()

    assert 130 == code, said
    calls = seen.read_text().splitlines()
    assert ["sbatch --test-only", "sbatch --parsable", "scancel"] == [
        " ".join(each.split()[:2]) if "sbatch" in each else each.split()[0] for each in calls
    ]


# ------------------------------------------------------------------ what happens to jobs


def test_a_node_that_fails_and_a_preemption_cost_no_retry(bench: Bench) -> None:
    words = ["--what", "wait_the_first_time", "--gate", "/nowhere", "--n", "1"]
    with bench.running(*words) as run:
        bench.until_running(1)
        (node,) = bench.queue("%N")
        bench.slurm.query("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
        code, said = run.ended()
    bench.slurm.query("scontrol", "update", f"nodename={node}", "state=resume")

    assert 0 == code, said
    assert "(NODE_FAIL)" in said
    data = bench.latest().data
    assert ([0], [1], ["400"]) == (data.squares, data.tries, data.memory), "more at the next try"

    with bench.running(*words) as run:
        bench.until_running(1)
        bench.slurm.query(
            "sbatch", "-p", "urgent", "--exclusive", "-N2", "-o", "/dev/null", "--wrap", "sleep 2"
        )
        code, said = run.ended()
    assert 0 == code, said
    assert "preempted by another job (PREEMPTED)" in said
    assert [1] == bench.latest().data.tries


def test_what_a_job_cannot_report_slurm_knows(bench: Bench) -> None:
    said = bench.run(JOBS, "run", "--what", "kill_the_job", "--n", "2", code=1)
    assert "was killed by signal 9" in said
    assert [False, True] == sorted(task.successful for task in bench.latest()["work"])


def test_a_job_that_somebody_cancels_fails_and_a_run_that_is_stopped_cancels_its_jobs(
    bench: Bench,
) -> None:
    with bench.running("--what", "wait", "--gate", "/nowhere", "--n", "2") as run:
        bench.until_running(2)
        bench.slurm.query("scancel", "--user=root")
        code, said = run.ended()
    assert 1 == code, said
    assert "was cancelled, by scancel or by an administrator." in said

    with bench.running("--what", "wait", "--gate", "/nowhere", "--n", "2") as run:
        bench.until_running(2)
        run.process.send_signal(signal.SIGINT)
        code, said = run.ended()
    assert 130 == code, said
    bench.until(lambda: bench.queue() == [])


# ------------------------------------------------------------------ what happens to Slurm and to us


def test_jobs_are_found_again_when_coordinator_and_controller_were_killed(bench: Bench) -> None:
    gate = bench.folder / "gate"
    with bench.running("--what", "wait", "--gate", str(gate), "--n", "3") as run:
        bench.until_running(3)
        run.process.kill()
    # slurmctld writes what it knows every five seconds: what it has forgotten would be lost.
    select_nothing(6)
    bench.slurm.kill("slurmctld")
    bench.slurm.start_controller()
    name = bench.latest().id
    gate.touch()

    expire_leases(bench.folder)
    command = [sys.executable, "-m", "aflow", "recover", f"Jobs/{name}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=bench.folder)
    assert 0 == done.returncode, done.stdout + done.stderr
    data = bench.latest().data
    assert ([0, 1, 4], [0, 0, 0]) == (data.squares, data.tries), done.stdout + done.stderr
    assert 1 == len(data.jobs), "none was submitted again"


def test_jobs_whose_number_was_given_again_are_lost_and_not_taken_for_others(
    bench: Bench,
) -> None:
    from aflow.executors.jobs.base import JobState
    from aflow.executors.jobs.slurm import SlurmSystem

    number = bench.slurm.query(
        "sbatch", "--parsable", "-J", "of-ann", "-o", "/dev/null", "--wrap", "sleep 30"
    )
    system = SlurmSystem(bench.folder)

    status = system.describe([f"{number}@mine-abc"])[f"{number}@mine-abc"]
    assert JobState.UNKNOWN is status.state
    assert "no longer knows its job" in system.outcome_of(status).reason
    system.terminate([f"{number}@mine-abc"], "It is not wanted.")
    assert number in bench.queue("%A"), "that of Ann goes on"


def test_a_number_that_is_given_again_while_scancel_waits_ends_nobody_elses_job(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aflow.executors.jobs.slurm import SlurmSystem

    numbers = [
        bench.slurm.query(
            "sbatch", "--parsable", "-J", name, "-o", "/dev/null", "--wrap", "sleep 30"
        )
        for name in ("mine-abc", "mine-xyz")
    ]
    # As if the controller had come back between the look and scancel, and given the first again.
    scancel = shutil.which("scancel")
    folder = bench.folder / "bin"
    folder.mkdir()
    (folder / "scancel").write_text(
        f'#!/bin/sh\nscontrol update JobId={numbers[0]} JobName=of-ann\nexec {scancel} "$@"\n'
    )
    (folder / "scancel").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    SlurmSystem(bench.folder).terminate(
        [f"{numbers[0]}@mine-abc", f"{numbers[1]}@mine-xyz"], "They are not wanted."
    )

    bench.until(lambda: len(bench.queue("%A")) == 1)
    assert [numbers[0], "of-ann"] == bench.queue("%A %j")


def test_a_run_goes_on_when_the_controller_does_not_answer_for_a_while(bench: Bench) -> None:
    gate = bench.folder / "gate"
    with bench.running("--what", "wait", "--gate", str(gate), "--n", "2") as run:
        bench.until_running(2)
        bench.slurm.end_controller()
        run.says("Waiting for Slurm (")
        gate.touch()
        bench.slurm.start_controller()
        code, said = run.ended()

    assert 0 == code, said
    assert [0, 1] == bench.latest().data.squares


def test_the_jobs_of_a_run_that_nobody_drives_end_when_it_is_cancelled(bench: Bench) -> None:
    with bench.running("--what", "wait", "--gate", "/nowhere", "--n", "2") as run:
        bench.until_running(2)
        run.process.kill()
    expire_leases(bench.folder)
    name = bench.latest().pathspec
    command = [sys.executable, "-m", "aflow", "cancel", name]
    done = subprocess.run(command, capture_output=True, text=True, cwd=bench.folder, check=False)

    assert 0 == done.returncode, done.stderr
    bench.until(lambda: bench.queue() == [])


def test_workers_in_jobs_take_the_tasks_of_any_run_and_give_them_back_at_their_end(
    bench: Bench,
) -> None:
    key: Any = {"AFLOW_SIGNING_KEY": "k" * 32}
    queue = f"sqlite:///{bench.folder}/queue.db"

    def start(*words: str) -> str:
        command = [sys.executable, "-m", "aflow", "workers", "slurm", "--queue", queue, *words]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=bench.folder, env={**os.environ, **key}
        )
        return done.stdout + done.stderr

    assert "2 workers, 2 tasks at a time each" in start("--count", "2", "--slots", "2")
    words = ["--executor", "queue", "--queue", queue, "--factor", "3"]
    said = bench.run(SHAPES, "run", *words, **key)
    assert bench.latest("Everything").successful, said
    assert ["aflow-worker"] * 2 == bench.queue("%j")
    bench.slurm.query("scancel", "--user=root")
    bench.until(lambda: bench.queue() == [])
    logs = [each.read_text() for each in (bench.folder / ".aflow" / "slurm").glob("worker-*")]
    assert 2 == len(logs)
    assert all("2 at a time" in each and "k" * 32 not in each for each in logs)

    assert "Invalid partition name" in start("--", "--partition=nowhere")


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("partition=nowhere", "Invalid partition name specified"),
        ("partition=shut", "Required partition not available"),
        ("memory=900000", "Requested node configuration is not available"),
        ("options=--no-such-option", "unrecognized option"),
    ],
)
def test_what_slurm_does_not_take_is_one_sentence_before_the_run_begins(
    options: str, words: str, bench: Bench
) -> None:
    said = bench.run(SHAPES, "run", "--with", f"slurm:{options}", code=2)

    assert 1 == sum(words in line for line in said.splitlines())
    assert "Slurm does not take jobs of step" in said
    assert "Workflow starting" not in said


def test_a_job_that_never_starts_is_logged_with_the_reason_of_slurm(bench: Bench) -> None:
    words = ["--n", "1", "--with", "slurm:time=02:00:00"]
    with bench.running(*words) as run:
        line = run.says("Waiting for a machine of Slurm (")
        with closing(SqliteMetadata(bench.folder / ".aflow" / "metadata.db")) as metadata:
            bench.until(lambda: queues(metadata)["queues"])
            (queue,) = queues(metadata)["queues"]
            (step,) = queue["steps"]
            record = metadata.runs(None)[0]
            (job,) = jobs_of(metadata, record, step["step"], 0, 10)["jobs"]
        run.process.send_signal(signal.SIGINT)
        run.ended()

    assert "1 job has not begun: PartitionTimeLimit. See `squeue --start`" in line
    assert ("Slurm", 1, 0) == (queue["system"], queue["waiting"], queue["running"])
    assert ("PartitionTimeLimit", "PartitionTimeLimit") == (step["reason"], job["reason"])
    assert ("waiting", "") == (job["state"], job["host"])
    assert step["since"] == job["since"] > record.created_at
    with closing(SqliteMetadata(bench.folder / ".aflow" / "metadata.db")) as metadata:
        assert [] == metadata.documents("jobs"), "no job is left"


def test_without_slurm_a_step_that_asks_for_it_runs_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    flow = tmp_path / "here.py"
    text = SHAPES.read_text().replace("import FlowSpec", "import FlowSpec, slurm")
    flow.write_text(text.replace("    @step\n    def wide", "    @slurm\n    @step\n    def wide"))
    command = [sys.executable, str(flow), "run"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    assert 0 == done.returncode, done.stderr
    assert "@slurm: wide would run on Slurm; this run is local: here." in done.stdout + done.stderr
    command = [sys.executable, str(SHAPES), "run", "--with", "slurm"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert 2 == done.returncode
    assert "There is no sbatch here" in done.stdout + done.stderr
