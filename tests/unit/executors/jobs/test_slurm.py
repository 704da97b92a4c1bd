"""Jobs of Slurm: the logic that needs no commands of Slurm."""

from __future__ import annotations

from typing import Any

import pytest

from aflow import FlowSpec, resources, slurm, step, timeout
from aflow._core.settings import environment_of_jobs
from aflow.errors import InvalidDecorator, InvalidInput
from aflow.executors.jobs.slurm import fields_of, outcome_of, step_job
from aflow.flow.spec import define
from aflow.scheduler.states import AttemptState


def arguments_of(*decorators: Any, attempt: int = 0) -> list[str]:
    """Return the arguments of sbatch for a step with these decorators."""

    def start(self):
        pass

    for each in decorators:
        start = each(start)
    flow = type("Sized", (FlowSpec,), {"start": step(start), "__module__": __name__})
    return [*step_job(define(flow).steps["start"], "python", attempt).arguments]


def test_resources_and_options_become_arguments_of_sbatch() -> None:
    assert [] == arguments_of()
    assert [
        "--partition=long", "--account=ads", "--time=1-00:00:00", "--nodelist=n[1-3]",
        "--cpus-per-task=4", "--mem=9000M", "--tmp=100M", "--gres=gpu:2", "--licenses=matlab:1",
        "--exclusive", "--mail-type=END", "--wait-all-nodes=1",
    ] == arguments_of(
        slurm(
            partition="long", account="ads", time="1-00:00:00", nodelist="n[1-3]", cpu=4,
            memory=9000, exclusive=True, options="--mail-type=END --wait-all-nodes=1",
        ),
        resources(cpu=2, memory=1000, disk=100, gpu=2, matlab=1),
    )  # fmt: skip
    assert ["--gres=gpu:a100:1"] == arguments_of(slurm(gres="gpu:a100:1"), resources(gpu=1))


def test_the_time_limit_is_that_of_the_step_unless_slurm_has_its_own() -> None:
    assert ["--time=4"] == arguments_of(timeout(minutes=3), slurm())
    assert ["--time=30"] == arguments_of(timeout(minutes=3), slurm(time=30))


def test_defaults_of_the_cluster_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFLOW_SLURM_PARTITION", "main")
    monkeypatch.setenv("AFLOW_SLURM_ACCOUNT", "ads")

    assert ["--partition=main", "--account=own"] == arguments_of(slurm(account="own"))


def test_more_memory_at_the_next_try() -> None:
    grows = resources(memory=lambda attempt: 1000 * 2**attempt)

    assert ["--mem=1000M"] == arguments_of(grows)
    assert ["--mem=4000M"] == arguments_of(grows, attempt=2)


def test_what_is_no_option_of_sbatch_is_refused() -> None:
    with pytest.raises(InvalidInput, match="options of @slurm are arguments of sbatch"):
        arguments_of(slurm(options="rm -rf /"))
    with pytest.raises(InvalidDecorator, match="memory must be a number of 0 or more"):
        slurm(memory="much")


@pytest.mark.parametrize(
    ("details", "state", "words"),
    [
        ({"JobState": "NODE_FAIL", "NodeList": "n1"}, AttemptState.LOST, "with its node on n1"),
        ({"JobState": "PREEMPTED"}, AttemptState.LOST, "preempted by another job"),
        ({"JobState": "BOOT_FAIL"}, AttemptState.LOST, "(BOOT_FAIL)"),
        (
            {"JobState": "PENDING", "Reason": "launch_failed_requeued_held"},
            AttemptState.LOST,
            "could not be started (launch_failed_requeued_held)",
        ),
        (
            {"JobState": "FAILED", "Reason": "JobLaunchFailure", "ExitCode": "1:0"},
            AttemptState.LOST,
            "could not be started",
        ),
        (
            {"JobState": "FAILED", "Reason": "JobLaunchFailure", "ExitCode": "0:9"},
            AttemptState.FAILED,
            "was killed by signal 9 before it could report",
        ),
        (
            {"JobState": "FAILED", "Reason": "NonZeroExitCode", "ExitCode": "127:0"},
            AttemptState.FAILED,
            "ended with exit code 127 before it could report.",
        ),
        (
            {"JobState": "TIMEOUT", "TimeLimit": "01:00:00"},
            AttemptState.TIMED_OUT,
            "ran for longer than its limit of 01:00:00",
        ),
        (
            {"JobState": "OUT_OF_MEMORY", "MinMemoryNode": "2000M"},
            AttemptState.FAILED,
            "needed more memory than the limit of 2000M",
        ),
        ({"JobState": "COMPLETED"}, AttemptState.LOST, "the same folder on all nodes"),
    ],
)
def test_what_slurm_says_of_a_job_is_its_end(
    details: dict[str, str], state: AttemptState, words: str
) -> None:
    outcome = outcome_of("17", details)

    assert state is outcome.state
    assert words in outcome.reason
    assert outcome.retryable


def test_a_job_that_was_cancelled_or_can_never_run_is_not_tried_again() -> None:
    assert not outcome_of("17", {"JobState": "CANCELLED"}).retryable
    assert not outcome_of("17", {"JobState": "FAILED", "ExitCode": "202:0"}).retryable


def test_a_job_that_submits_jobs_does_not_pass_on_which_one_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = {"SLURM_JOB_ID", "SLURM_ARRAY_TASK_ID", "AFLOW_JOB_GANG"}
    for name in (*own, "SLURM_CONF", "SBATCH_ACCOUNT"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AFLOW_SIGNING_KEY", "secret")
    found = environment_of_jobs({"MORE": "1"})

    assert {"SLURM_CONF", "SBATCH_ACCOUNT", "MORE"} <= found.keys()
    assert not found.keys() & {*own, "AFLOW_SIGNING_KEY"}


def test_fields_of_a_job_have_spaces_and_signs_of_equality_as_slurm_prints_them() -> None:
    printed = (
        "JobId=7 ArrayJobId=5 JobName=a-b-1 Reason=None ExitCode=0:9 CPUs/Task=1 "
        "Comment=x=1, y z StdErr=/home/a b/.aflow/slurm/run=1.out StdOut=/dev/null Power=\n"
    )

    fields = fields_of(printed)
    assert "/home/a b/.aflow/slurm/run=1.out" == fields["StdErr"]
    assert ("a-b-1", "x=1, y z", "1", "") == tuple(
        fields[name] for name in ("JobName", "Comment", "CPUs/Task", "Power")
    )
