"""The contract of every job system (aflow/executors/jobs/base.py), tested with jobs that run: those
of AWS Batch and Kubernetes as processes of stand-ins, those of Slurm with its real daemons.
"""

from __future__ import annotations

import json
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from aflow.errors import JobRefused
from aflow.executors.jobs.base import JobState, JobStatus, Submission
from aflow.flow.spec import define
from aflow.scheduler.states import AttemptState
from aflow.task.spec import RunContext
from tests.contracts.executing import context_in
from tests.contracts.flow_of_actions import ActionFlow
from tests.support.waiting import select_nothing

pytestmark = pytest.mark.timeout(240)
PATIENCE = 100.0  # seconds
PROGRAM = ("tests.support.job_program",)
REPOSITORY = str(Path(__file__).parents[2])


class Bench:
    """A job system, with methods to submit jobs of one step and of a gang."""

    def __init__(self, system: Any, job: Any, gang: Any, folder: Path) -> None:
        self.system = system
        self.job = job
        self.gang = gang
        self.folder = folder
        self.context: RunContext = context_in(folder)

    def submit(self, action: str, size: int = 1, *, gang: bool = False) -> str:
        """Submit jobs with this action, and return their id. They write their place to a folder."""
        return self.system.submit(self.submission(action, size, gang=gang))  # type: ignore[no-any-return]

    def submission(self, action: str, size: int = 1, *, gang: bool = False) -> Submission:
        self.out = self.folder / uuid.uuid4().hex
        self.out.mkdir()
        job = self.gang if gang else self.job
        self.name = self.system.name_of(self.context, "train", uuid.uuid4().hex[:16])
        environment = {"OUT": str(self.out), "ACTION": action, "PYTHONPATH": REPOSITORY}
        return Submission(self.context, job, self.name, size, environment)

    def until(self, happened: Callable[[], Any]) -> Any:
        give_up_at = time.monotonic() + PATIENCE
        while not (found := happened()):
            assert time.monotonic() < give_up_at
            select_nothing(0.1)
        return found

    def until_written(self, size: int) -> Mapping[int, Any]:
        """Wait until this many jobs have written their place."""
        self.until(lambda: len([*self.out.glob("*.json")]) == size)
        return {int(each.stem): json.loads(each.read_text()) for each in self.out.glob("*.json")}

    def status(self, id: str) -> JobStatus:
        return self.system.describe([id])[id]  # type: ignore[no-any-return]

    def until_over(self, id: str) -> JobStatus:
        self.until(lambda: self.status(id).is_over)
        return self.status(id)


def batch_bench(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    from aflow.aws.client import ONCE, AwsClient
    from aflow.aws.settings import AwsSettings
    from aflow.executors.jobs.batch import definitions as batch
    from aflow.executors.jobs.batch.job_system import BatchSystem

    monkeypatch.setattr(batch, "PROGRAM", PROGRAM)
    step, settings = define(ActionFlow).steps["act"], AwsSettings.load()
    job, gang = (batch.step_job(step, settings, {}, is_gang=each) for each in (False, True))
    return Bench(BatchSystem(AwsClient(manner=ONCE)), job, gang, folder)


def slurm_bench(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    from aflow.executors.jobs import slurm

    monkeypatch.setattr(slurm, "PROGRAM", PROGRAM)
    step = define(ActionFlow).steps["act"]
    job, gang = (slurm.step_job(step, sys.executable, is_gang=each) for each in (False, True))
    return Bench(slurm.SlurmSystem(folder / "output"), job, gang, folder)


def kubernetes_bench(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    from aflow.executors.jobs.kubernetes import access, manifest
    from aflow.executors.jobs.kubernetes.job_system import KubernetesSystem
    from aflow.executors.jobs.kubernetes.settings import KubernetesSettings

    monkeypatch.setattr(manifest, "PROGRAM", PROGRAM)
    step, settings = define(ActionFlow).steps["act"], KubernetesSettings.load()
    variables = {"PATH": str(Path(sys.executable).parent)}
    job, gang = (
        manifest.step_job(step, settings, "default", variables, is_gang=each)
        for each in (False, True)
    )
    return Bench(KubernetesSystem(access.KubernetesCluster()), job, gang, folder)


BENCHES = {"batch": batch_bench, "slurm": slurm_bench, "kubernetes": kubernetes_bench}
SERVERS = {"batch": "aws", "slurm": "slurm", "kubernetes": "kubernetes"}
SYSTEMS = [pytest.param(each, marks=pytest.mark.xdist_group(each)) for each in BENCHES]


@pytest.fixture(params=SYSTEMS)
def bench(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Bench]:
    request.getfixturevalue(SERVERS[request.param])
    made = BENCHES[request.param](tmp_path, monkeypatch)
    assert made.system.scope
    yield made
    made.system.close()


def test_each_job_of_an_array_learns_its_own_index(bench: Bench) -> None:
    id = bench.submit("end", 5)

    places = bench.until_written(5)
    status = bench.until_over(id)
    assert [0, 1, 2, 3, 4] == sorted(places)
    workers, indexes, tries, nodes, *_ = zip(*places.values(), strict=True)
    assert 5 == len(set(workers)), "each reports under a name of its own"
    assert {1} == {*tries} == {*nodes}
    assert sorted(places) == sorted(indexes)
    assert (JobState.ENDED, 5, 5, 0) == (status.state, status.size, status.ended, status.waiting)


def test_a_single_job_has_index_0_and_ends_as_its_program_does(bench: Bench) -> None:
    well, failed = bench.submit("end"), bench.submit("fail")

    assert JobState.ENDED is bench.until_over(well).state
    outcome = bench.system.outcome_of(bench.until_over(failed))
    assert AttemptState.FAILED is outcome.state
    assert outcome.retryable
    assert "exit code 3" in outcome.reason
    assert [0] == [*bench.until_written(1)]


def test_the_jobs_of_a_gang_are_nodes_of_one_job(bench: Bench) -> None:
    id = bench.submit("wait", 2, gang=True)

    places = bench.until_written(2)
    assert {0: 2, 1: 2} == {index: place[3] for index, place in places.items()}
    whole = {place[0].partition("#")[0] for place in places.values()}
    assert 1 == len(whole)
    bench.system.terminate([id], "It is no longer needed.")
    assert JobState.ENDED is bench.until_over(id).state


def test_a_job_is_found_by_its_name_and_what_has_none_is_not_found(bench: Bench) -> None:
    id = bench.submit("wait", 2)
    name = bench.name

    assert id == bench.until(lambda: bench.system.find(name, bench.job))
    assert bench.system.find(f"{name}x", bench.job) is None
    bench.until_written(2)
    bench.system.terminate([id], "It is no longer needed.")
    bench.until_over(id)


def test_a_member_is_terminated_alone_and_then_the_rest(bench: Bench) -> None:
    id = bench.submit("wait", 3)
    bench.until_written(3)
    members = [bench.system.member(id, index) for index in range(3)]
    bench.system.terminate([members[1]], "It is no longer needed.")

    ended = bench.until_over(members[1])
    statuses = bench.system.describe(members)
    assert [JobState.RUNNING, JobState.RUNNING] == [statuses[members[i]].state for i in (0, 2)]
    assert JobState.ENDED is ended.state
    bench.system.terminate([id], "It is no longer needed.")
    assert JobState.ENDED is bench.until_over(id).state
    bench.system.terminate([id], "A second time.")
    assert {*members} >= {*bench.system.suspects(id, members, is_over=True)}


def test_a_job_that_somebody_ends_is_not_tried_again(bench: Bench) -> None:
    id = bench.submit("wait")
    bench.until_written(1)
    bench.system.terminate([id], "Ann has ended it.")

    outcome = bench.system.outcome_of(bench.until_over(id))
    assert (AttemptState.FAILED, False) == (outcome.state, outcome.retryable)


def test_a_job_that_the_system_does_not_know_is_lost(bench: Bench) -> None:
    known = bench.submit("end")
    unknown = bench.system.member(f"4000{known}", 0)

    statuses = bench.system.describe([known, unknown])
    assert [known, unknown] == [*statuses]
    assert JobState.UNKNOWN is statuses[unknown].state
    assert AttemptState.LOST is bench.system.outcome_of(statuses[unknown]).state
    bench.until_over(known)


# By the title of a system: changes of a job that it never accepts.
REFUSED: dict[str, dict[str, Any]] = {
    "AWS Batch": {"definition": {"jobDefinitionName": "nothing", "type": "container"}},
    "Slurm": {"arguments": ("--partition=absent",)},
    "Kubernetes": {"namespace": "No Namespace"},
}


def test_a_job_that_the_system_never_accepts_is_refused(bench: Bench) -> None:
    given = bench.submission("fail")
    wrong = given.job._replace(**REFUSED[bench.system.title])
    with pytest.raises(JobRefused):
        bench.system.submit(given._replace(job=wrong))
