"""Jobs of AWS Batch: the logic that needs no requests to AWS."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aflow import FlowSpec, batch, catch, queue, resources, step, timeout
from aflow._core.settings import RunOptions
from aflow.aws.settings import AwsSettings
from aflow.errors import AflowError, CorruptBlob, InvalidInput, InvalidSetting
from aflow.executors.factory import in_jobs, locations, needs_processes, travelling
from aflow.executors.jobs.batch.definitions import (
    MOST,
    Mark,
    job_name,
    name_prefix,
    step_job,
    submit_values,
)
from aflow.executors.jobs.batch.status import end_of
from aflow.executors.jobs.polling import QUIET, REFUSED, next_wait
from aflow.executors.protocol import ArraySpec
from aflow.flow.decorators.attach import attach
from aflow.flow.spec import define
from aflow.runs.warnings import notes
from aflow.scheduler.states import AttemptState
from aflow.step_functions.plan import job_of
from aflow.storage.local import LocalStore
from aflow.storage.memory import MemoryStore
from aflow.storage.s3 import S3Store
from aflow.task.remote import Payloads
from aflow.task.spec import AttemptSpec

SETTINGS = AwsSettings(queue="queue", image="image:1", job_role="arn:role")
MARK = Mark("ann@example", "Marked", "17")


class Marked(FlowSpec):
    @step
    def start(self):
        self.next(self.work)

    @catch
    @batch(cpu=2, memory=1000, use_tmpfs=True, aws_batch_tags={"team": "ads"}, queue="own")
    @resources(memory=3000)
    @timeout(minutes=3)
    @step
    def work(self):
        self.next(self.end)

    @queue
    @step
    def end(self):
        pass


# ------------------------------------------------------------------ where steps run


def test_steps_run_on_batch_where_they_or_the_command_line_say_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    marked = define(Marked)
    plain = replace(marked.steps["work"], decorators=())
    unmarked = replace(marked, steps={**marked.steps, "work": plain})
    everywhere = dict.fromkeys(marked.steps, "batch")

    assert {"work": "batch"} == in_jobs(marked, "local"), "its own queue is enough"
    assert {} == in_jobs(unmarked, "local")
    assert everywhere == in_jobs(unmarked, "batch")
    for system in ("batch", "slurm", "kubernetes"):
        assert dict.fromkeys(marked.steps, system) == in_jobs(marked, system, ["batch"])
    assert everywhere == in_jobs(attach(unmarked, ["batch"]), "local", ["batch:cpu=4"])
    assert {} == in_jobs(attach(unmarked, ["batch"]), "local"), "no queue is known"
    monkeypatch.setenv("METAFLOW_BATCH_JOB_QUEUE", "queue")
    assert everywhere == in_jobs(attach(unmarked, ["batch"]), "local")


def test_each_step_has_its_place_and_catch_needs_processes_here() -> None:
    marked = define(Marked)
    options = RunOptions(queue="sqlite:///queue.db")

    assert {"start": "local", "work": "batch", "end": "queue"} == locations(marked, options)
    assert {"batch"} == {*locations(marked, RunOptions(executor="batch", queue="x")).values()}
    assert needs_processes(marked, dict.fromkeys(marked.steps, "batch"))
    assert not needs_processes(marked, {"start": "batch", "end": "queue"})


def test_what_runs_here_though_it_was_to_run_on_batch_is_noted() -> None:
    marked = define(Marked)

    assert [] == [*notes(marked, {"work"})]
    assert ["@batch: work would run on AWS Batch; this run is local: here."] == [*notes(marked, ())]


@pytest.mark.parametrize(
    ("settings", "store", "words"),
    [
        ({"BATCH_JOB_QUEUE": None}, "s3://bucket/x", "set AFLOW_BATCH_JOB_QUEUE"),
        ({"BATCH_CONTAINER_IMAGE": None}, "s3://bucket/x", "set AFLOW_BATCH_CONTAINER_IMAGE"),
        ({"ECS_S3_ACCESS_IAM_ROLE": None}, "s3://bucket/x", "set AFLOW_ECS_S3_ACCESS_IAM_ROLE"),
        (
            {"BATCH_DEFAULT_TAGS": "team"},
            "s3://bucket/x",
            "DEFAULT_TAGS must be a JSON object",
        ),
        ({"DEFAULT_RUNTIME_LIMIT": "long"}, "s3://bucket/x", "must be a whole number, not 'long'"),
        ({}, "folder", "use --datastore s3, or set AFLOW_DEFAULT_DATASTORE=s3"),
        ({}, "memory", "cannot reach a datastore in memory"),
    ],
)
def test_what_is_missing_is_named_before_anything_begins(
    settings: dict[str, str | None],
    store: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    known: dict[str, str | None] = {
        "BATCH_JOB_QUEUE": "queue",
        "BATCH_CONTAINER_IMAGE": "image",
        "ECS_S3_ACCESS_IAM_ROLE": "role",
    }
    for name, value in {**known, **settings}.items():
        if value is not None:
            monkeypatch.setenv(f"AFLOW_{name}", value)
    made: Any = {"folder": LocalStore(tmp_path), "memory": MemoryStore()}
    place = made[store] if store in made else S3Store(store)
    options = RunOptions(executor="batch")

    with pytest.raises(InvalidSetting, match=re.escape(words)):
        travelling(define(Marked), options, place)


# ------------------------------------------------------------------ how jobs are submitted


@pytest.mark.parametrize("image", ["without aflow", "with another package of that name"])
def test_a_job_whose_image_lacks_aflow_says_so_and_installs_nothing(
    tmp_path: Path, image: str
) -> None:
    if image != "without aflow":
        (tmp_path / "aflow").mkdir()
        (tmp_path / "aflow" / "__init__.py").touch()
    # A pip that shows that it was called.
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__main__.py").write_text("print('INSTALLED')")
    job = step_job(define(Marked).steps["work"], SETTINGS, {})
    _, *words = job.definition["containerProperties"]["command"]

    # Without `site` the interpreter has the standard library and nothing that is installed.
    ran = subprocess.run(
        [sys.executable, "-S", *words],
        cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip

    assert (202, "") == (ran.returncode, ran.stdout), "another try would end in the same way"
    assert ran.stderr.startswith("aflow: The image of this job does not have aflow: install aflow-")
    assert 1 == ran.stderr.count("\n")


def test_a_job_says_whose_it_is_and_what_its_step_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(SETTINGS, default_tags='{"cost": 7}')
    monkeypatch.setenv("METAFLOW_BATCH_EMIT_TAGS", "maybe")
    with pytest.raises(InvalidSetting, match="BATCH_EMIT_TAGS"):
        step_job(define(Marked).steps["work"], settings, {})
    monkeypatch.setenv("METAFLOW_BATCH_EMIT_TAGS", "True")
    job = step_job(define(Marked).steps["work"], settings, {"A": "1"})
    values = submit_values(job, MARK, "name", 1, {"B": "2"})

    needs = job.definition["containerProperties"]["resourceRequirements"]
    assert {"VCPU": "2", "MEMORY": "3000"} == {each["type"]: each["value"] for each in needs}
    assert ["aflow", "_task"] == job.definition["containerProperties"]["command"][-2:]
    variables = {e["name"]: e["value"] for e in values["containerOverrides"]["environment"]}
    assert {"A": "1", "AFLOW_TEMPDIR": "/aflow_temp", "B": "2"} == variables
    assert ("own", 240) == (values["jobQueue"], values["timeout"]["attemptDurationSeconds"])
    assert {"attempts": 1} == values["retryStrategy"], "the run counts attempts"
    assert "arrayProperties" not in values
    tags = values["tags"]
    assert ("7", "ads", "17") == (tags["cost"], tags["team"], tags["aflow.run_id"])
    assert {"aflow.user": "ann@example", "aflow.step_name": "work"}.items() <= (
        values["parameters"].items()
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cpu": "much"}, "cpu of @batch must be a number of 0 or more, not 'much'"),
        ({"swappiness": "low"}, "swappiness of @batch must be a whole number, not 'low'"),
        ({"ephemeral_storage": "big"}, "ephemeral_storage of @batch must be a whole number"),
        ({"log_driver": "awslogs", "log_options": ["group"]}, "or a list of NAME:VALUE"),
        ({"log_driver": "awslogs", "log_options": 7}, "log_options of @batch must be a list"),
        ({"host_volumes": 7}, "host_volumes of @batch must be a list of names, not 7"),
        ({"efs_volumes": {"fs-1": "/data"}}, "efs_volumes of @batch must be ids of file systems"),
        ({"aws_batch_tags": "team"}, "a mapping, or pairs such as a=b,c=d, not 'team'"),
    ],
)
def test_an_option_that_cannot_be_meant_is_named(options: dict[str, Any], words: str) -> None:
    settings = replace(SETTINGS, fargate_role="role")
    with pytest.raises(InvalidInput, match=r"^Step start: ") as raised:
        step_job(step_with(**options), settings, {}, fargate="ephemeral_storage" in options)
    assert words in str(raised.value)


def test_options_of_the_command_line_are_read_as_those_of_the_decorator() -> None:
    texts = step_with(
        host_volumes="/data,/more", efs_volumes="fs-1", log_driver="awslogs",
        log_options="awslogs-group:own", aws_batch_tags="team=ads", shared_memory="64",
    )  # fmt: skip
    job = step_job(texts, SETTINGS, {})

    properties = job.definition["containerProperties"]
    mounts = [each["containerPath"] for each in properties["mountPoints"]]
    assert ["/data", "/more", "/mnt/fs-1"] == mounts
    assert {"awslogs-group": "own"} == properties["logConfiguration"]["options"]
    assert ({"team": "ads"}, 64) == (job.tags, properties["linuxParameters"]["sharedMemorySize"])


def step_with(**options: Any) -> Any:
    """Return a step with these options of @batch."""

    def start(self):
        pass

    flow = type("Sized", (FlowSpec,), {"start": step(batch(**options)(start)), "__module__": "x"})
    return define(flow).steps["start"]


def test_jobs_on_fargate_have_public_addresses_unless_their_subnets_are_private() -> None:
    def network(public_ip: str | None) -> Any:
        settings = replace(SETTINGS, fargate_role="role", public_ip=public_ip)
        job = step_job(define(Marked).steps["start"], settings, {}, fargate=True)
        return job.definition["containerProperties"]["networkConfiguration"]["assignPublicIp"]

    assert ["ENABLED", "DISABLED"] == [network(None), network("disabled")]
    with pytest.raises(InvalidSetting, match="must be ENABLED or DISABLED, not 'no'"):
        network("no")


def test_jobs_on_fargate_get_machines_of_the_platform_of_their_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Placed(FlowSpec):
        @batch(platform="linux/arm64")
        @step
        def start(self) -> None:
            self.next(self.end)

        @batch
        @step
        def end(self) -> None:
            """Nothing."""

    def machine(step: str) -> Any:
        settings = replace(SETTINGS, fargate_role="role")
        job = step_job(define(Placed).steps[step], settings, {}, fargate=True)
        found = job.definition["containerProperties"].get("runtimePlatform")
        return found and (found["operatingSystemFamily"], found["cpuArchitecture"])

    assert [("LINUX", "ARM64"), None] == [machine("start"), machine("end")]
    monkeypatch.setenv("AFLOW_JOB_PLATFORM", "x86_64-manylinux_2_34")
    assert [("LINUX", "ARM64"), ("LINUX", "X86_64")] == [machine("start"), machine("end")]


def test_steps_that_ask_for_gpus_have_a_queue_of_their_own_where_one_is_set() -> None:
    class Gpus(FlowSpec):
        @batch(gpu=1)
        @step
        def start(self) -> None:
            self.next(self.named)

        @batch(queue="own")
        @resources(gpu=2)
        @step
        def named(self) -> None:
            self.next(self.none)

        @resources(gpu=0)
        @step
        def none(self) -> None:
            self.next(self.end)

        @resources(gpu=1)
        @step
        def end(self) -> None:
            pass

    steps = define(Gpus).steps
    settings = replace(SETTINGS, gpu_queue="gpus")

    queues = {name: step_job(each, settings, {}).queue for name, each in steps.items()}
    deployed = {name: job_of(each, "definition", settings).queue for name, each in steps.items()}

    assert {"start": "gpus", "named": "own", "none": "queue", "end": "gpus"} == queues
    assert {"start": "gpus", "named": "own", "none": None, "end": "gpus"} == deployed
    assert "queue" == step_job(steps["start"], SETTINGS, {}).queue, "there is no other"


def test_jobs_log_to_the_group_that_is_set_unless_their_step_says_where() -> None:
    class Logging(FlowSpec):
        @batch(log_driver="awslogs", log_options={"awslogs-group": "own"})
        @step
        def start(self) -> None:
            self.next(self.end)

        @step
        def end(self) -> None:
            pass

    def log_of(name: str, settings: AwsSettings) -> Any:
        job = step_job(define(Logging).steps[name], settings, {})
        return job.definition["containerProperties"].get("logConfiguration")

    settings = replace(SETTINGS, job_log_group="of-the-stack")
    assert {"awslogs-group": "own"} == log_of("start", settings)["options"]
    assert {
        "logDriver": "awslogs", "options": {"awslogs-group": "of-the-stack"}
    } == log_of("end", settings)  # fmt: skip
    assert log_of("end", SETTINGS) is None


def test_many_attempts_are_one_array_and_marks_are_left_out_where_nobody_wants_them() -> None:
    job = step_job(define(Marked).steps["start"], SETTINGS, {})
    values = submit_values(job, MARK, "name", MOST, {})

    assert {"size": 10_000} == values["arrayProperties"]
    assert "tags" not in values


@given(st.text(min_size=1), st.text("abc_"), st.text("ab1_", max_size=200))
def test_names_of_jobs_are_such_that_batch_takes_them(user: str, flow: str, step: str) -> None:
    name = job_name(Mark(user, flow, "17"), step, "0123456789abcdef")

    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}", name)
    assert name.endswith("-0123456789abcdef")
    assert name.startswith(name_prefix(user, flow, "17"))


@given(st.lists(st.text(max_size=50), min_size=1, max_size=20))
def test_each_job_finds_its_own_attempt_in_the_list(steps: list[str]) -> None:
    payloads = Payloads(MemoryStore(), "F", "1")
    attempts = [
        AttemptSpec(name, task, 0, b"", None, task, None, False, True, False, {})
        for task, name in enumerate(steps)
    ]
    array = ArraySpec.parse(str(ArraySpec.write(payloads, attempts)))

    assert attempts == [array.read(payloads, index) for index in range(len(attempts))]
    with pytest.raises(CorruptBlob):
        array.read(payloads, len(attempts))


def test_a_list_that_is_none_is_refused() -> None:
    for text in ("", "key", "key:x"):
        with pytest.raises(AflowError, match="does not say where attempts stand"):
            ArraySpec.parse(text)


# ------------------------------------------------------------------ how jobs end, and when to ask


def described(**more: Any) -> dict[str, Any]:
    return {"jobId": "job-1", "status": "FAILED", "statusReason": "Essential container", **more}


def attempt(**container: Any) -> list[dict[str, Any]]:
    return [{"container": container}]


@pytest.mark.parametrize(
    ("job", "state", "words"),
    [
        (
            described(statusReason="Host EC2 (instance i-1) terminated."),
            AttemptState.LOST,
            "the machine of its job went away (Host EC2 (instance i-1) terminated.)",
        ),
        (described(statusReason="Your Spot Task was interrupted."), AttemptState.LOST, "Spot"),
        (
            described(attempts=attempt(reason="DockerTimeoutError: no create")),
            AttemptState.LOST,
            "went away",
        ),
        (
            described(statusReason="enough", isTerminated=True, attempts=attempt(exitCode=143)),
            AttemptState.FAILED,
            "The job job-1 was terminated: enough",
        ),
        (
            described(
                statusReason="Job attempt duration exceeded timeout",
                isTerminated=False,
                timeout={"attemptDurationSeconds": 60},
            ),
            AttemptState.TIMED_OUT,
            "ran for more than 60 seconds, and was stopped by AWS Batch.",
        ),
        (
            described(
                attempts=attempt(reason="OutOfMemoryError: Container killed", exitCode=137),
                container={"resourceRequirements": [{"type": "MEMORY", "value": "500"}]},
            ),
            AttemptState.FAILED,
            "needed more memory than the limit of 500 MB",
        ),
        (
            described(
                statusReason="Task failed to start",
                attempts=attempt(reason="CannotPullContainerError: no such image"),
                container={"image": "here/it"},
            ),
            AttemptState.FAILED,
            "could not be started (CannotPullContainerError: no such image): see that the image "
            "here/it",
        ),
        (
            described(attempts=attempt(exitCode=137, logStreamName="stream/1")),
            AttemptState.FAILED,
            "ended with exit code 137 before it reported how its task ended (it was killed, "
            "perhaps since memory ran out): Essential container. Its log: stream/1 of "
            "/aws/batch/job.",
        ),
        (described(status="SUCCEEDED"), AttemptState.FAILED, "ended before it reported"),
    ],
)
def test_how_a_job_has_ended_is_reported_in_a_sentence(
    job: dict[str, Any], state: AttemptState, words: str
) -> None:
    end = end_of(job)

    assert end is not None
    assert state is end.state
    assert words in end.reason
    assert end.retryable is not job.get("isTerminated", False)


def test_the_last_lines_of_its_log_stand_in_the_end_of_a_job() -> None:
    own = {"logDriver": "awslogs", "options": {"awslogs-group": "/own"}}
    job = described(attempts=attempt(exitCode=1, logStreamName="stream/1"))
    elsewhere = described(
        attempts=attempt(exitCode=1, logStreamName="stream/1"), container={"logConfiguration": own}
    )

    end, other = end_of(job, ["one", "two"]), end_of(elsewhere, ["one"])

    assert end is not None
    assert other is not None
    assert end.reason.endswith("stream/1 of /aws/batch/job, which ends with:\n    one\n    two")
    assert "stream/1 of /own, which ends with:" in other.reason


def test_an_image_without_the_program_of_jobs_is_distinguished_from_one_that_is_not_there() -> None:
    said = 'CannotStartContainerError: exec: "python": executable file not found in $PATH'
    container = {"image": "here/it", "command": ["python", "-c", "..."]}
    end = end_of(described(container=container, attempts=attempt(reason=said)))

    assert end is not None
    assert "has the program 'python', or name the Python that it has with @batch(executable" in (
        end.reason
    )


def test_a_job_that_goes_on_has_no_end() -> None:
    for status in ("SUBMITTED", "PENDING", "RUNNABLE", "STARTING", "RUNNING"):
        assert end_of(described(status=status)) is None


def test_polling_slows_down_when_little_happens_and_after_a_refusal() -> None:
    wait, waits = QUIET.first, []
    for _ in range(40):
        wait = next_wait(wait, changed=False, refused=False)
        waits.append(wait)

    assert sorted(waits) == waits
    assert QUIET.longest == waits[-1]
    assert QUIET.first == next_wait(wait, changed=True, refused=False)
    assert 2 * QUIET.first == next_wait(QUIET.first, changed=True, refused=True)
    assert REFUSED.longest == next_wait(REFUSED.longest, changed=False, refused=True)
