"""Runs whose steps are jobs of Kubernetes on a stand-in that runs them as processes, with a folder
in a volume as the datastore: their results equal those of local runs, even if pods, nodes, the API
server or coordinators fail.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from aflow import client
from tests.support.leases import expire_leases
from tests.support.waiting import PATIENCE, wait_until

if TYPE_CHECKING:
    from tests.support.kubernetes import Cluster

FLOWS = Path(__file__).parent / "flow_files"
JOBS = FLOWS / "jobs.py"
SHAPES = Path(__file__).parents[1] / "step_functions" / "flow_files" / "everything.py"
WITH = f'kubernetes:executable={sys.executable},persistent_volume_claims={{"data": "/"}}'

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("kubernetes")]


class Bench:
    """A folder in which flows are run, which holds their data and metadata."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.folder = folder
        self.cluster = cluster

    def run(self, *words: str, code: int = 0, file: Path = JOBS, **env: str) -> str:
        """Run a command of the flow, and return its output."""
        done = subprocess.run(
            [sys.executable, str(file), *words], capture_output=True, text=True, cwd=self.folder,
            env={**os.environ, **env},
        )  # fmt: skip
        assert code == done.returncode, done.stdout + done.stderr
        return done.stdout + done.stderr

    @contextmanager
    def running(
        self, *words: str, file: Path = JOBS, **env: str
    ) -> Iterator[subprocess.Popen[str]]:
        """Start a run of the flow."""
        process = subprocess.Popen(
            [sys.executable, str(file), "run", *words],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=self.folder,
            env={**os.environ, **env},
        )  # fmt: skip
        try:
            yield process
        finally:
            process.kill()
            print(process.communicate()[0])  # the output of failing tests

    def until_running(self, count: int) -> list[str]:
        """Wait until so many pods run, and have begun their tasks; their names."""

        def begun() -> bool:
            logs = [pod.log for pod in [*self.cluster.pods.values()] if not pod.is_over]
            return count == sum(b"working on" in each for each in logs)

        wait_until(begun, lambda: str(self.cluster.phases()))
        return self.cluster.running()

    def latest(self, flow: str = "Jobs") -> Any:
        client.metadata(f"local@{self.folder}/.aflow")
        return client.Flow(flow, _namespace_check=False).latest_run


def says(process: subprocess.Popen[str], words: str) -> str:
    """The line with these words, as soon as it is there."""
    assert process.stdout is not None
    for line in process.stdout:
        if words in line:
            return line
    raise AssertionError(f"it ended without {words!r}")


@pytest.fixture
def bench(kubernetes: Cluster, tmp_path: Path) -> Iterator[Bench]:
    kubernetes.make("persistentvolumeclaims", "data")
    kubernetes.make("secrets", "keys", stringData={"KEY": "of the cluster"})
    yield Bench(tmp_path, kubernetes)
    client.default_metadata()


def test_a_gang_is_one_job_whose_pods_meet_and_have_names_also_after_it_was_lost(
    bench: Bench,
) -> None:
    with bench.running("--lost", "true", file=FLOWS / "gang.py") as run:
        member, _ = bench.until_running(2)
        bench.cluster.lose_node(member)
        said = run.communicate(timeout=PATIENCE)[0]

    assert [(0, "hello"), (1, "")] == bench.latest("Gang").data.reported, said
    (_, job), (_, service) = bench.cluster.listed("jobs"), bench.cluster.listed("services")
    assert (2, 0) == (job["spec"]["completions"], job["spec"]["backoffLimit"])
    assert "None" == service["spec"]["clusterIP"]
    assert job["metadata"]["uid"] == service["metadata"]["ownerReferences"][0]["uid"]
    assert service["metadata"]["name"] == job["spec"]["template"]["spec"]["subdomain"]


def test_a_foreach_of_a_thousand_is_submitted_and_ended_in_three_calls(bench: Bench) -> None:
    wide = ["--n", "1000", "--max-workers", "1000", "--max-num-splits", "1000"]
    bench.cluster.slots = 2
    with bench.running("--what", "wait", "--gate", "/nowhere", *wide) as run:
        bench.until_running(2)
        assert 1000 == len(bench.cluster.listed("pods"))
        run.send_signal(signal.SIGINT)
        said = run.communicate(timeout=PATIENCE)[0]

    assert 130 == run.returncode, said
    calls = Counter(method for method, path in bench.cluster.calls if path.endswith("jobs"))
    assert 2 == calls["POST"], "a dry run, and the job"
    assert 1 == sum(method == "PATCH" for method, _ in bench.cluster.calls)
    assert not any(method == "DELETE" for method, _ in bench.cluster.calls)


# ------------------------------------------------------------------ what happens to pods


def test_an_eviction_and_a_lost_node_cost_no_retry(bench: Bench) -> None:
    gate = bench.folder / "gate"
    with bench.running("--what", "wait", "--gate", str(gate), AFLOW_SIGNING_KEY="k" * 32) as run:
        first, second, _ = bench.until_running(3)
        bench.cluster.evict(first)
        bench.cluster.lose_node(second)
        wait_until(lambda: not {first, second} & {*bench.cluster.running()})
        bench.until_running(3)
        gate.touch()
        said = run.communicate(timeout=PATIENCE)[0]

    assert 0 == run.returncode, said
    data = bench.latest().data
    assert ([0, 1, 4], [0, 0, 0]) == (data.squares, data.tries)
    assert ["", "1", "1"] == sorted(data.starts), "Kubernetes has started two of them again"
    assert 1 == len(data.jobs), "one name: one job"
    assert ({"of the cluster"}, {None}) == (data.secrets, data.signing_keys)


def test_a_task_that_needs_too_much_memory_and_one_that_dies_fail(bench: Bench) -> None:
    with bench.running("--what", "wait", "--gate", "/nowhere", "--n", "1") as run:
        (pod,) = bench.until_running(1)
        bench.cluster.use_up_memory(pod)
        said = run.communicate(timeout=PATIENCE)[0]
    assert 1 == run.returncode, said
    assert "needed more memory than the node has on node-a: give the step more" in said

    said = bench.run("run", "--what", "kill_the_job", "--n", "2", code=1)
    assert "ended with exit code 137 on node-b before it could report." in said
    assert [False, True] == sorted(task.successful for task in bench.latest()["work"])


def test_a_job_that_somebody_ends_fails_and_a_run_that_is_stopped_ends_its_jobs(
    bench: Bench,
) -> None:
    waiting = ["--what", "wait", "--gate", "/nowhere", "--n", "2"]
    with bench.running(*waiting) as run:
        bench.until_running(2)
        assert "2 running" in bench.run("kubernetes", "list")
        assert "no run of Jobs by bob" in bench.run("kubernetes", "kill", code=1, AFLOW_USER="bob")
        assert "Ended the job default/tester-jobs-" in bench.run("kubernetes", "kill")
        said = run.communicate(timeout=PATIENCE)[0]
    assert 1 == run.returncode, said
    assert "was ended. It was ended by tester (kubernetes kill)." in said
    assert "There are no jobs that have not ended." in bench.run("kubernetes", "list")

    with bench.running(*waiting) as run:
        bench.until_running(2)
        job = bench.cluster.listed("jobs")[-1]["metadata"]["name"]
        bench.cluster.delete("jobs", job)
        said = run.communicate(timeout=PATIENCE)[0]
    assert 1 == run.returncode, said
    assert f"The job {job} was deleted by somebody before it had ended." in said


# ------------------------------------------------------------------ what happens to others


def test_jobs_are_found_again_when_the_coordinator_was_killed(bench: Bench) -> None:
    gate = bench.folder / "gate"
    with bench.running("--what", "wait", "--gate", str(gate)) as run:
        first, *_ = bench.until_running(3)
        bench.cluster.evict(first)
        wait_until(lambda: first not in bench.cluster.running())
        bench.until_running(3)
        run.kill()
    name = bench.latest().id
    gate.touch()
    expire_leases(bench.folder)
    command = [sys.executable, "-m", "aflow", "recover", f"Jobs/{name}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=bench.folder)
    assert 0 == done.returncode, done.stdout + done.stderr
    data = bench.latest().data
    assert ([0, 1, 4], [0, 0, 0]) == (data.squares, data.tries), done.stdout + done.stderr
    assert 1 == len(data.jobs), "none was submitted again"


def test_the_jobs_of_a_run_that_nobody_drives_end_when_it_is_cancelled(bench: Bench) -> None:
    with bench.running("--what", "wait", "--gate", "/nowhere", "--n", "2") as run:
        bench.until_running(2)
        run.kill()
    expire_leases(bench.folder)
    command = [sys.executable, "-m", "aflow", "cancel", bench.latest().pathspec]
    done = subprocess.run(command, capture_output=True, text=True, cwd=bench.folder, check=False)

    assert 0 == done.returncode, done.stderr
    wait_until(lambda: bench.cluster.running() == [])


def test_a_run_goes_on_when_the_api_server_does_not_answer_for_a_while(bench: Bench) -> None:
    gate = bench.folder / "gate"
    with bench.running("--what", "wait", "--gate", str(gate), "--n", "2") as run:
        bench.until_running(2)
        bench.cluster.answer_with(500, 1000)
        line = says(run, "Waiting for Kubernetes (")
        assert "answers 500: etcdserver: request timed out." in line
        bench.cluster.answer_truly()
        gate.touch()
        said = run.communicate(timeout=PATIENCE)[0]

    assert 0 == run.returncode, said
    assert [0, 1] == bench.latest().data.squares


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("namespace=nowhere", 'in the namespace nowhere: namespaces "nowhere" not found.'),
        ("secrets=nothing", 'of Kubernetes: secrets "nothing" not found.'),
        ('tolerations=[{"effekt": "NoSchedule"}]', "effekt"),
    ],
)
def test_what_kubernetes_does_not_take_is_one_sentence_before_the_run_begins(
    options: str, words: str, bench: Bench
) -> None:
    said = bench.run("run", "--with", f"{WITH},{options}", file=SHAPES, code=2)

    assert 1 == sum(words in line for line in said.splitlines()), said
    assert "Workflow starting" not in said


def test_no_way_into_a_cluster_and_no_store_that_pods_reach_are_one_sentence(
    bench: Bench,
) -> None:
    said = bench.run("run", "--with", "kubernetes", file=SHAPES, code=2)
    assert "cannot reach the datastore" in said

    def refusal(code: int, **env: str) -> str:
        return bench.run("run", "--with", WITH, file=SHAPES, code=code, **env)

    assert "There is no way into a cluster" in refusal(2, KUBECONFIG="/nowhere")
    assert "the context 'other'" in refusal(2, AFLOW_KUBERNETES_CONTEXT="other")
    bench.cluster.write_config("expired")
    assert "does not accept the credentials" in refusal(1)
    bench.cluster.write_config()
    bench.cluster.forbidden.add(("POST", "jobs"))
    assert "jobs is forbidden" in refusal(2)


def test_a_job_that_does_not_start_is_logged_with_the_reason_of_kubernetes(bench: Bench) -> None:
    with bench.running("--n", "1", NODES="zone=c") as run:
        line = says(run, "Waiting for a machine of Kubernetes (")
        run.send_signal(signal.SIGINT)
        run.communicate(timeout=PATIENCE)
    words = "1 job has not begun: Unschedulable: 0/2 nodes are available"
    assert words in line

    bench.cluster.quota["pods"] = 0
    with bench.running("--n", "1") as run:
        line = says(run, "Waiting for a machine of Kubernetes (")
        assert "FailedCreate: Error creating" in line
        assert "exceeded quota" in line
        bench.cluster.quota.clear()
        said = run.communicate(timeout=PATIENCE)[0]
    assert 0 == run.returncode, said


def test_without_a_namespace_a_step_that_asks_for_kubernetes_runs_here(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = bench.folder / "here.py"
    flow.write_text(JOBS.read_text().replace('namespace="default",', ""))
    gone: Any = {"KEY": "of here", "AFLOW_JOB_ID": "", "AFLOW_JOB_TRIES": ""}
    said = bench.run("run", file=flow, **gone)

    assert "@kubernetes: work would run on Kubernetes; this run is local: here." in said
    assert [] == bench.cluster.listed("jobs")
