"""Failures of the jobs of deployed flows are survived or reported: a lost machine, throttling, a
terminated job, timeouts of a step and of a run."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import aflow
from aflow._core.clock import SystemClock
from aflow._core.settings import Settings
from aflow.aws.settings import Account as AccountOfFlows
from aflow.aws.settings import AwsSettings
from aflow.errors import MetadataUnavailable
from aflow.executors.local.zygote_start import EarlyZygote
from aflow.executors.remote.attempt import Container
from aflow.flow.spec import define
from aflow.metadata.factory import open_metadata
from aflow.scheduler.states import AttemptState, RunState
from aflow.step_functions.job import StateMachineJob
from aflow.step_functions.plan import DeploymentOptions, plan
from aflow.step_functions.spec import StateJobVariables, spec_name
from aflow.storage.blobs import BlobStore
from aflow.storage.local import LocalStore
from aflow.task import code_package
from tests.step_functions.deployed import (
    DEADLINE,
    ended,
    flow,
    job_logs,
    recorded,
    run_of,
    step_functions,
    wait_for_log,
)
from tests.support.failing import Failing, Killed, Points
from tests.support.faulty import Fault, FaultyProxy
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.support.aws.furnished import Account

pytestmark = pytest.mark.timeout(400)
LIMIT = 40  # seconds of a run that takes too long


class Post:
    """The notifications that a topic and the event bus have received."""

    def __init__(self, aws: Account) -> None:
        self._sqs, sns, events = (aws.client(each) for each in ("sqs", "sns", "events"))
        self._queue = self._sqs.create_queue(QueueName="ends")["QueueUrl"]
        attributes = self._sqs.get_queue_attributes(
            QueueUrl=self._queue, AttributeNames=["QueueArn"]
        )
        arn = attributes["Attributes"]["QueueArn"]
        self.topic: str = sns.create_topic(Name="ends")["TopicArn"]
        sns.subscribe(TopicArn=self.topic, Protocol="sqs", Endpoint=arn)
        self.bus = "arn:aws:events:us-east-1:123456789012:event-bus/default"
        events.put_rule(Name="ends", EventPattern=json.dumps({"source": ["aflow"]}))
        events.put_targets(Rule="ends", Targets=[{"Id": "queue", "Arn": arn}])

    def next(self) -> Any:
        """Return the next notification."""

        def received() -> Any:
            answer = self._sqs.receive_message(QueueUrl=self._queue, WaitTimeSeconds=2)
            return answer.get("Messages")

        message = wait_until(received, "there is no note", seconds=DEADLINE)[0]
        self._sqs.delete_message(QueueUrl=self._queue, ReceiptHandle=message["ReceiptHandle"])
        return json.loads(message["Body"])


def start(folder: Path, *words: str) -> str:
    """Start a run, and return its id."""
    file = folder / "run"
    step_functions(
        "trouble.py", "trigger", "--folder", str(folder), "--run-id-file", str(file), *words
    )
    return file.read_text()


def job_of(aws: Account, folder: Path, run: str) -> str:
    """Return the job of a run whose first step has started, and waits."""
    wait_until((folder / run).exists, lambda: job_logs(aws), seconds=DEADLINE)
    batch = aws.client("batch")
    for each in batch.list_jobs(jobQueue="queue", jobStatus="RUNNING")["jobSummaryList"]:
        (job,) = batch.describe_jobs(jobs=[each["jobId"]])["jobs"]
        variables = {pair["name"]: pair["value"] for pair in job["container"]["environment"]}
        if variables.get("AFLOW_SFN_RUN") == run:
            return str(each["jobId"])
    raise AssertionError(f"{run} has no job")


def test_what_happens_to_jobs_is_survived_or_reported(aws, tmp_path, monkeypatch):
    post = Post(aws)
    with FaultyProxy(aws.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        busy: Any = {"method": "POST", "code": "TooManyRequestsException", "times": 2}
        proxy.faults += [Fault("answer", status=429, **busy), Fault("answer", status=503, **busy)]
        words = ["--notify-on-error", post.topic, "--notify-on-success", post.bus]
        step_functions("trouble.py", "create", "--aws-batch-tag", "throttled=2", *words)
        assert 4 == sum(bool(each.kind) for each in proxy.seen)
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws.endpoint)
    timed = ["--name", "Timed"]
    flow("trouble.py", "step-functions", *timed, "create", "--workflow-timeout", str(LIMIT))
    slow = start(tmp_path, "--hangs", "true", *timed)

    _a_job_whose_machine_goes_away_is_tried_again(aws, tmp_path, post)
    _a_job_that_somebody_stops_ends_the_run(aws, tmp_path, post)

    # In the stand-in, an execution can catch its own timeout, too.
    assert ended(aws, "Timed", slow) in ("TIMED_OUT", "FAILED")
    wait_until(
        lambda: recorded(aws, "Trouble", slow).state is RunState.FAILED,
        lambda: job_logs(aws),
        seconds=DEADLINE,
    )
    reason = recorded(aws, "Trouble", slow).reason
    assert f"The run took longer than {LIMIT} seconds (--workflow-timeout)." == reason
    # The job that notes a failure calls hooks when that is recorded.
    wait_for_log(aws, f"hook of {slow} on error")


def _a_job_whose_machine_goes_away_is_tried_again(aws: Account, folder: Path, post: Post) -> None:
    run = start(folder)
    assert "SUCCEEDED" == ended(aws, "Trouble", run), job_logs(aws)
    there = run_of(aws, f"Trouble/{run}")
    problem, retried = there.end_task.data.reported
    assert "timed out after" in problem
    assert 0 == retried
    assert [AttemptState.LOST, AttemptState.SUCCEEDED] == states(aws, run, "start")
    reported = post.next()
    assert "Trouble succeeded" == reported["detail-type"]
    assert {"flow": "Trouble", "run": run, "status": "succeeded"}.items() <= reported[
        "detail"
    ].items()


def states(aws: Account, run: str, step: str) -> list[AttemptState]:
    """Return the states of the attempts of a step's only task."""
    metadata = open_metadata(aws.metadata.url)
    record = metadata.run("Trouble", run)
    assert record is not None
    (view,) = (each for each in metadata.tasks(record.key) if each.task.step == step)
    found = [each.state for each in metadata.attempts(record.key, view.task.task)]
    metadata.close()
    return found


def _a_job_that_somebody_stops_ends_the_run(aws: Account, folder: Path, post: Post) -> None:
    run = start(folder, "--hangs", "true")
    job = job_of(aws, folder, run)
    aws.client("batch").terminate_job(jobId=job, reason="Not today.")
    assert "FAILED" == ended(aws, "Trouble", run), job_logs(aws)
    assert [AttemptState.INTERRUPTED] == states(aws, run, "start")
    record = recorded(aws, "Trouble", run)
    assert RunState.FAILED is record.state
    assert record.reason
    reported = post.next()
    assert "Trouble failed" == reported["Subject"]
    assert reported["Message"].startswith(f"Trouble/{run} failed: {record.reason}")
    assert "failed" == reported["MessageAttributes"]["status"]["Value"]


def test_a_run_that_fails_before_it_is_recorded_is_seen_everywhere_with_its_reason(
    aws, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    s3 = aws.client("s3")
    reasons = {
        "no-such-image": "could not be started (CannotPullContainerError: pull access denied",
        "aflow": "There is no object 'deploy/specs/",
    }
    s3.put_object(Bucket="flows", Key="prefix/deploy/unrecorded/Trouble/sfn-0", Body=b"[]")
    for image, reason in reasons.items():
        machine = f"On-{image}"
        monkeypatch.setenv("AFLOW_BATCH_CONTAINER_IMAGE", image)
        step_functions("trouble.py", "create", "--name", machine)
        if image == "aflow":  # what its jobs are to do is gone
            found = s3.list_objects_v2(Bucket="flows", Prefix="prefix/deploy/specs/")["Contents"]
            s3.delete_object(
                Bucket="flows", Key=max(found, key=lambda each: each["LastModified"])["Key"]
            )
        run_file = tmp_path / machine
        step_functions("trouble.py", "trigger", "--name", machine, "--run-id-file", str(run_file))
        run = run_file.read_text()
        assert "FAILED" == ended(aws, machine, run), job_logs(aws)

        said = [
            step_functions("trouble.py", "list-runs", "--name", machine),
            command("status"),
            command("logs", f"Trouble/{run}"),
            recorded(aws, "Trouble", run).reason,
        ]
        assert [True] * 4 == ["The run failed before it was recorded." in each for each in said]
        assert [True] * 3 == [reason in each for each in (said[0], *said[2:])], said
        assert f"Trouble/{run}" in command("runs", "Trouble")
        assert any("production:" in tag for tag in recorded(aws, "Trouble", run).tags)
        step_functions("trouble.py", "delete", "--name", machine)


def command(*words: str) -> str:
    """Run a command without a flow, and return its output."""
    done = subprocess.run([sys.executable, "-m", "aflow", *words], capture_output=True, text=True)
    assert 0 == done.returncode, done.stderr
    return done.stdout + done.stderr


TWO_STEPS = """
from aflow import FlowSpec, step

class TwoSteps(FlowSpec):
    @step
    def start(self):
        self.next(self.end)

    @step
    def end(self):
        pass
"""


class Deployed:
    """The jobs of the first step of a deployed flow, in this process."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.url = f"sqlite:///{folder}/metadata.db"
        self._folder, self._store = folder, LocalStore(folder / "store")
        (folder / "flows").mkdir()
        (folder / "flows" / f"{folder.name}.py").write_text(TWO_STEPS)
        monkeypatch.syspath_prepend(folder / "flows")
        self.flow = importlib.import_module(folder.name).TwoSteps
        code = code_package.store(define(self.flow), BlobStore(self._store))
        settings = Settings(
            root=folder, user="ann", datastore="s3", datastore_s3="s3://bucket",
            metadata="service", service_url="http://service",
        )  # fmt: skip
        there = AwsSettings(queue="queue", image="image", job_role="role", internal_url="http://in")
        account = AccountOfFlows("aws", "region", "1")
        made = plan(define(self.flow), DeploymentOptions(), settings, there, account, code, "token")
        self._store.put(spec_name(made.spec_key), [made.spec])
        self._spec = made.spec_key

    def job(self, run: str, origin: str | None, points: Points | None = None) -> StateMachineJob:
        """Return the job; its metadata store fails at the chosen point."""
        payload = json.dumps({"Parameters": "{}", **({"Origin": origin} if origin else {})})
        variables = StateJobVariables(
            self._spec, self._store.url, self.url, run, "start", "0", "", None, payload, None, "1",
            None, None,
        )  # fmt: skip
        container = Container(self._store, self._folder / "code", EarlyZygote())
        job = StateMachineJob(variables, SystemClock(), container)
        if points is not None:
            but = [name for name in dir(job._metadata) if name not in BREAKS]
            job._metadata = Failing(job._metadata, points, MetadataUnavailable, but)
        return job


BREAKS = ("create_run", "commit", "acquire_lease")


def test_a_job_that_ends_while_it_records_a_resumed_run_leaves_the_rest_to_the_next_one(
    tmp_path, monkeypatch
):
    deployed = Deployed(tmp_path, monkeypatch)
    origin = aflow.run(deployed.flow, storage=f"file://{tmp_path}/store", metadata=deployed.url)
    for point, call in enumerate(("create_run", "commit", "commit")):
        run, points = f"sfn-{point}", Points(stop_at=point, how="before")
        with pytest.raises(Killed), closing(deployed.job(run, origin.id, points)) as job:
            job.run("start")
        assert points.passed[-1].endswith(call)
        with closing(deployed.job(run, origin.id)) as job:
            assert 0 == job.run("start")
        with closing(open_metadata(deployed.url)) as metadata:
            record = metadata.run("TwoSteps", run)
            assert record is not None
            assert {"_parameters", "start", "end"} == {
                view.task.step for view in metadata.tasks(record.key)
            }


def test_a_job_that_cannot_renew_the_lease_of_its_run_ends_with_one_sentence(tmp_path, monkeypatch):
    deployed = Deployed(tmp_path, monkeypatch)
    # The run, its facts, and the start of the attempt are recorded, and then nothing.
    points = Points(stop_at=3, dies=False)
    with closing(deployed.job("sfn-1", None, points)) as job, pytest.raises(MetadataUnavailable):
        job.run("start")
    assert points.passed[-1].endswith("acquire_lease")
