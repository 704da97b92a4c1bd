"""Runs whose steps are real jobs on a stand-in for AWS Batch: their results equal those of local
runs, even if jobs, AWS or the datastore fail in between."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from aflow import client
from aflow.client import Run
from tests.support import packages
from tests.support.faulty import Fault, FaultyProxy
from tests.support.leases import expire_leases
from tests.support.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from tests.support.aws.furnished import Account

FLOWS = Path(__file__).parent / "flow_files"
TROUBLE = FLOWS / "trouble.py"
SHAPES = Path(__file__).parents[1] / "step_functions" / "flow_files" / "everything.py"
PAIR = SHAPES.with_name("pair.py")
ENDED = ("SUCCEEDED", "FAILED")

pytestmark = [pytest.mark.timeout(400), pytest.mark.xdist_group("batch")]


class Bench:
    """A folder in which flows run, with their metadata; everything else is in the account."""

    def __init__(self, folder: Path, aws: Account) -> None:
        self.folder = folder
        self.aws = aws

    def run(
        self,
        file: Path,
        *words: str,
        code: int = 0,
        env: Mapping[str, str | None] | None = None,
    ) -> str:
        """Run a command of the flow, and return its output."""
        command = [sys.executable, str(file), *words]
        variables = {**os.environ, **(env or {})}
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=self.folder,
            env={name: value for name, value in variables.items() if value is not None},
        )
        assert code == done.returncode, done.stdout + done.stderr
        return done.stdout + done.stderr

    @contextmanager
    def running(self, *words: str, **env: str) -> Iterator[subprocess.Popen[str]]:
        """Start a run of the flow with faults."""
        process = subprocess.Popen(
            [sys.executable, str(TROUBLE), "run", *words],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=self.folder,
            env={**os.environ, **env},
        )  # fmt: skip
        try:
            yield process
        finally:
            process.kill()
            print(process.communicate()[0])  # the output of failing tests

    def until_listed(self, *, flow: bool = True, **count: int) -> str:
        """Wait until the unfinished jobs are in these states, and return the list."""
        wanted = {state.upper(): number for state, number in count.items()}
        wait_until(lambda: self.unfinished() == wanted, self.unfinished, interval=0.1)
        command = [str(TROUBLE), "batch", "list"] if flow else ["-m", "aflow", "batch", "list"]
        done = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, cwd=self.folder
        )
        said = done.stdout + done.stderr
        words = ", ".join(f"{number} {state}" for state, number in count.items())
        assert (words or "There are no jobs that have not ended.") in said
        return said

    def unfinished(self) -> dict[str, int]:
        """Return the number of attempts in each state, for unfinished jobs."""
        found = Counter[str]()
        for job in self.aws.jobs("tester-Trouble-"):
            found.update(job.get("arrayProperties", {}).get("statusSummary") or [job["status"]])
        return {state: n for state, n in found.items() if n and state not in ENDED}

    def recover(self, run: str) -> str:
        """Continue a run whose coordinator was killed, after its lease has expired."""
        expire_leases(self.folder)
        command = [sys.executable, "-m", "aflow", "recover", f"Trouble/{run}"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.folder)
        assert 0 == done.returncode, done.stdout + done.stderr
        return done.stdout + done.stderr

    def jobs(self, flow: str, run: str) -> list[dict[str, Any]]:
        """Return AWS Batch's descriptions of all jobs of a run, in the order of submission."""
        return self.aws.jobs(f"tester-{flow}-{run}-")

    def sizes_of_jobs(self, flow: str, run: str) -> list[int]:
        """Return the number of attempts in each job of a run, in the order of submission."""
        jobs = self.jobs(flow, run)
        return [each.get("arrayProperties", {}).get("size", 1) for each in jobs]

    def latest(self, flow: str) -> Run:
        """Return the latest run of a flow."""
        client.metadata(f"local@{self.folder}/.aflow")
        run: Any = client.Flow(flow, _namespace_check=False).latest_run
        return run  # type: ignore[no-any-return]


@pytest.fixture
def bench(aws: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A separate bench, with metadata in its folder."""
    monkeypatch.setenv("AFLOW_DEFAULT_METADATA", "local")
    yield Bench(tmp_path, aws)
    client.default_metadata()


def test_steps_find_in_a_job_what_they_find_here(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFLOW_DEFAULT_METADATA", "service")
    command = [sys.executable, "-m", "aflow", "run", str(FLOWS / "surroundings.py")]
    done = subprocess.run(
        [*command, "--executor", "batch"], capture_output=True, text=True, cwd=bench.folder
    )
    assert 0 == done.returncode, done.stdout + done.stderr

    client.metadata(bench.aws.metadata.url)
    run: Any = client.Flow("Surroundings", _namespace_check=False).latest_run
    assert [(item, "red", 6, "/tmp", True) for item in (0, 10)] == run.data.found
    assert not (bench.folder / ".aflow" / "metadata.db").exists()
    sizes = [
        {each["type"]: each["value"] for each in job["container"]["resourceRequirements"]}
        for job in bench.jobs("Surroundings", run.id)
    ]
    assert {"VCPU": "2", "MEMORY": "3000"} in sizes


# ------------------------------------------------------------------ what happens to jobs


def test_a_machine_that_goes_away_costs_no_retry(bench: Bench) -> None:
    said = bench.run(TROUBLE, "run", "--what", "lose_the_machine")
    run = bench.latest("Trouble")

    assert ([0, 1, 4], [0, 1, 0], True) == (
        run.data.squares,
        run.data.tries,
        run.data.elsewhere,
    )
    assert "The task was lost: the machine of its job went away (Host EC2" in said
    assert [3, 1] == bench.sizes_of_jobs("Trouble", run.id), "an array, and one that was lost"


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("use_up_memory", "needed more memory than the limit of 4096 MB: give the step more"),
        (
            "kill_the_job",
            "ended with exit code 137 before it reported how its task ended (it was killed",
        ),
    ],
)
def test_what_a_job_cannot_tell_aws_tells(what: str, words: str, bench: Bench) -> None:
    said = bench.run(TROUBLE, "run", "--what", what, "--n", "2", code=1)

    assert words in said
    if what == "kill_the_job":
        assert "which ends with:" in said
    assert [True, False] == sorted(
        (t.successful for t in bench.latest("Trouble")["work"]), reverse=True
    )


def test_an_image_that_is_not_there_is_named_and_catch_settles_the_step(bench: Bench) -> None:
    said = bench.run(TROUBLE, "run", "--n", "1", env={"WHICH": "settled"})

    assert "could not be started (CannotPullContainerError: pull access denied" in said
    assert "see that the image no-such-image is there" in said
    (problem,) = bench.latest("Settled").data.problems
    assert "@catch settled the step" in problem


def test_a_job_that_somebody_ends_fails_and_a_run_that_is_stopped_ends_its_jobs(
    bench: Bench,
) -> None:
    with bench.running("--what", "wait", "--gate", "/nowhere", "--n", "2") as run:
        listed = bench.until_listed(running=2)
        assert "Trouble/" in listed
        other = {"AFLOW_USER": "bob"}
        assert "no run of Trouble by bob" in bench.run(TROUBLE, "batch", "kill", code=1, env=other)
        assert "Ended the job" in bench.run(TROUBLE, "batch", "kill")
        said = run.communicate(timeout=PATIENCE)[0]
    assert 1 == run.returncode, said
    assert "was terminated: It was ended by tester (batch kill)." in said

    with bench.running("--what", "wait", "--gate", "/nowhere", "--n", "2") as run:
        bench.until_listed(running=2, flow=False)
        gpus = {"AFLOW_BATCH_JOB_QUEUE": None, "AFLOW_BATCH_GPU_JOB_QUEUE": "queue"}
        assert "2 running" in bench.run(TROUBLE, "batch", "list", env=gpus)
        run.send_signal(signal.SIGINT)
        said = run.communicate(timeout=PATIENCE)[0]
    assert 130 == run.returncode, said
    bench.until_listed()
    assert "--user" in bench.run(TROUBLE, "batch", "list", "--my-runs", "--user", "x", code=2)


# ------------------------------------------------------------------ what happens to AWS and to us


def test_what_a_killed_coordinator_has_submitted_its_successor_finds(bench: Bench) -> None:
    gate = bench.folder / "gate"
    words = ["--what", "wait", "--gate", str(gate), "--n", "3"]
    with bench.running(*words) as run:
        bench.until_listed(running=3)
        run.kill()
    name = bench.latest("Trouble").id
    gate.touch()
    said = bench.recover(name)

    found = bench.latest("Trouble")
    assert name == found.id
    assert found.successful, said
    assert ([0, 1, 4], [0, 0, 0]) == (found.data.squares, found.data.tries)
    assert [3] == bench.sizes_of_jobs("Trouble", name), "none was submitted again"


def test_the_jobs_of_a_run_that_nobody_drives_end_when_it_is_cancelled(bench: Bench) -> None:
    words = ["--what", "wait", "--gate", str(bench.folder / "never"), "--n", "3"]
    with bench.running(*words) as run:
        bench.until_listed(running=3)
        run.kill()
    name = bench.latest("Trouble").pathspec
    expire_leases(bench.folder)
    cancel = [sys.executable, "-m", "aflow", "cancel", name]
    done = subprocess.run(
        cancel, capture_output=True, text=True, cwd=bench.folder, timeout=60, check=False
    )

    assert (0, f"{name} is cancelled: no coordinator drove it.\n") == (
        done.returncode,
        done.stdout,
    ), done.stderr
    assert "cancelled" == bench.latest("Trouble").status
    bench.until_listed()


def test_bad_weather_in_aws_changes_nothing(bench: Bench) -> None:
    with FaultyProxy(bench.aws.endpoint, seed=7) as proxy:
        proxy.faults += [
            Fault("answer", target="describejobqueues", times=1, status=500, code="Internal"),
            Fault("answer", target="submitjob", times=2, status=403, code="ExpiredTokenException"),
            Fault("lost", target="submitjob", times=1),
            Fault("answer", chance=0.5, target="submitjob", status=429, code="TooManyRequests"),
            Fault("lost", target="describejobs", times=1),
            Fault("answer", target="describejobs", times=1, status=500, code="InternalError"),
            Fault("answer", chance=0.1, target="/flows", status=503),
            Fault("reset", chance=0.05, target="/flows"),
            Fault("lost", chance=0.05, method="PUT", target="reports"),
        ]
        env = {
            "AWS_ENDPOINT_URL": proxy.url,
            "AFLOW_DATASTORE_SYSROOT_S3": f"s3://flows/prefix?endpoint={proxy.url}",
        }
        said = bench.run(TROUBLE, "run", "--what", "lose_the_machine", env=env)
        spoilt = {seen.kind for seen in proxy.seen if "/v1/" in seen.target}

    run = bench.latest("Trouble")
    assert ([0, 1, 4], [0, 1, 0]) == (run.data.squares, run.data.tries), said
    assert {"lost", "answer"} <= spoilt
    assert "Task is starting." in said
    assert [3, 1] == bench.sizes_of_jobs("Trouble", run.id), "each was submitted once"


def test_a_foreach_of_a_thousand_is_submitted_and_ended_in_a_few_calls(bench: Bench) -> None:
    with FaultyProxy(bench.aws.endpoint, seed=1) as proxy:
        wide = ["--n", "1000", "--max-workers", "1000", "--max-num-splits", "1000"]
        words = ["--what", "wait", "--gate", "/nowhere", *wide]
        with bench.running(*words, AWS_ENDPOINT_URL_BATCH=proxy.url) as run:
            bench.until_listed(runnable=996, running=4)
            submitting = _calls(proxy)
            assert run.stdout is not None
            line = next(line for line in run.stdout if "Waiting for a machine of AWS Batch" in line)
            run.send_signal(signal.SIGINT)
            said = run.communicate(timeout=PATIENCE)[0]
        calls = _calls(proxy)

    assert 130 == run.returncode, said
    assert "996 jobs have not begun: CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY" in line
    assert [1000] == bench.sizes_of_jobs("Trouble", bench.latest("Trouble").id)
    assert 1 == submitting["submitjob"]
    assert sum(submitting.values()) - submitting["describejobs"] <= 12, submitting
    assert 1 == calls["terminatejob"], "the array as a whole"


def _calls(proxy: FaultyProxy) -> Counter[str]:
    """Return the number of calls of each operation of AWS Batch."""
    return Counter(seen.target.rpartition("/")[2] for seen in proxy.seen)


def test_a_gang_is_one_job_of_several_nodes_whose_members_meet(bench: Bench) -> None:
    said = bench.run(FLOWS / "gang.py", "run")
    run = bench.latest("Ganged")

    assert ([1, 2], [0, 1, 2]) == (run.data.heard, run.data.places), said
    jobs = bench.jobs("Ganged", run.id)
    sizes = [job["nodeProperties"]["numNodes"] for job in jobs]
    assert [3, 1] == sizes, "the gang, and the member that began again"


# Without `site` and the working folder a Python has the standard library alone.
BARE = f"batch:executable={sys.executable} -S -P"


def test_jobs_of_an_image_without_aflow_run_the_one_that_was_shipped(bench: Bench) -> None:
    said = bench.run(PAIR, "run", "--with", BARE, "--factor", "3")

    assert bench.latest("Pair").successful, said
    assert "found [3, 6]" in said
    assert bench.latest("Pair").data.all_collect, "the garbage collector is off in steps"


def test_what_a_job_says_that_could_not_begin_stands_in_the_error_of_its_run(bench: Bench) -> None:
    env = {"AFLOW_SKIP_INSTALL_DEPENDENCIES": "1"}
    said = bench.run(SHAPES, "run", "--with", BARE, code=1, env=env)

    assert "The image of this job does not have aflow: install aflow-runtime[aws" in said
    assert "which ends with:" in said


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with wheels of four versions of a package that is in no index."""
    folder = tmp_path_factory.mktemp("index")
    for version in ("1.0", "2.0", "3.0", "4.0"):
        packages.make_wheel(folder, "tiny", version)
    return folder


@packages.needs_another
@pytest.mark.timeout(900)  # two consecutive runs, whose jobs start without packages
def test_four_steps_have_four_versions_of_a_package_and_two_pythons_in_jobs_without_an_index(
    bench: Bench, tiny: Path
) -> None:
    own = "{}.{}".format(*sys.version_info[:2])
    env = {
        "ANOTHER_PYTHON": packages.ANOTHER,
        "AFLOW_ENVIRONMENTS_FOLDER": str(bench.folder / "environments"),
        "UV_FIND_LINKS": str(tiny),
    }
    # Any glibc of the last years will do, which is another platform than that of this machine.
    bare = f"{BARE},platform={platform.machine()}-manylinux_2_17"
    flow = FLOWS / "packages.py"
    said = bench.run(flow, "run", "--with", bare, "--cache", env=env)
    wanted = [("1.0", own), ("2.0", packages.ANOTHER), ("3.0", packages.ANOTHER), ("4.0", own)]
    assert wanted == bench.latest("Packages").data.seen, said

    # What was solved and shipped once needs neither the index nor the files; another package makes
    # its step run again.
    shutil.rmtree(bench.folder / "environments" / "wheels")
    offline = {**env, "UV_FIND_LINKS": "/nowhere", "UV_OFFLINE": "1", "SECOND": "3.0"}
    again = bench.run(flow, "run", "--with", bare, "--cache", env=offline)
    run = bench.latest("Packages").id
    explained = bench.run(flow, "explain", f"Packages/{run}", env=offline)
    assert [("3.0", packages.ANOTHER)] == bench.latest("Packages").data.seen[1:2], again
    assert 3 == len(bench.jobs("Packages", run)), "the first step was taken from the cache"
    assert "second/2 ran: package tiny changed 2.0 -> 3.0" in explained
