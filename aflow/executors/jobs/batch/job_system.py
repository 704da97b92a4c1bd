"""AWS Batch as a job system."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from aflow.errors import (
    AwsBusy,
    AwsError,
    AwsUnauthorized,
    JobRefused,
    JobSystemBusy,
    JobSystemError,
    JobSystemUnauthorized,
)
from aflow.executors.jobs.base import CallLimits, JobState, JobStatus, Submission, lost
from aflow.executors.jobs.batch.definitions import (
    MOST,
    MOST_DESCRIBED,
    BatchStepJob,
    Mark,
    job_name,
    submit_values,
)
from aflow.executors.jobs.batch.status import ENDED, end_of, last_lines, log_of
from aflow.scheduler.states import AttemptState

if TYPE_CHECKING:
    from aflow.aws.client import AwsClient
    from aflow.scheduler.messages import Outcome
    from aflow.task.spec import RunContext

LOOKS, BETWEEN = 3, 1.0  # for the log of a failed job: number of tries, seconds between them

T = TypeVar("T")
_NOT_BEGUN = ("SUBMITTED", "PENDING", "RUNNABLE", "STARTING")


class BatchSystem:
    """The jobs of an account in one region. Job definitions are registered on first use."""

    title = "AWS Batch"
    advice = (
        "See whether the compute environments of the job queue are enabled, large enough for what "
        "the step asks for, and not at their limit."
    )
    limits = CallLimits(MOST, MOST_DESCRIBED, 1)

    def __init__(self, calls: AwsClient) -> None:
        self._calls = calls
        self._registered: set[str] = set()  # names of definitions

    @property
    def scope(self) -> str:
        """The region. Creates the client, which may block."""
        return f"batch/{self._calls.region}"

    def name_of(self, context: RunContext, step: str, unique: str) -> str:
        """Return a name with user, flow, run and step, truncated if too long, and `unique`."""
        return job_name(_mark(context), step, unique)

    def submit(self, submission: Submission) -> str:
        """Submit a job, after registering its job definition.

        Args:
            submission: The submission; its job is a BatchStepJob.

        Returns:
            The id of the job or of the array.

        Raises:
            JobRefused: If AWS rejects the job or its definition.
            JobSystemBusy: If AWS does not respond, or throttles the call.
        """
        job: BatchStepJob = submission.job
        name = job.definition["jobDefinitionName"]
        if name not in self._registered:
            called(lambda: self._calls.register(job.definition), refused=JobRefused)
            self._registered.add(name)
        name, size = submission.name, submission.size
        mark = _mark(submission.context)
        values = submit_values(job, mark, name, size, submission.environment)
        return called(lambda: self._calls.submit(values), refused=JobRefused)

    def find(self, name: str, job: BatchStepJob) -> str | None:
        """Return the id of the job with this name in its step's queue; None if there is none."""
        filters = [{"name": "JOB_NAME", "values": [name]}]
        listed = called(lambda: [*self._calls.listed(jobQueue=job.queue, filters=filters)])
        return next((each["jobId"] for each in listed if each["jobName"] == name), None)

    def member(self, job: str, index: int) -> str:
        """Return `ID:INDEX`."""
        return f"{job}:{index}"

    def describe(self, ids: Sequence[str]) -> dict[str, JobStatus]:
        """Return the status of each of these jobs."""
        found = {each["jobId"]: each for each in called(lambda: self._calls.described(ids))}
        return {id: _status(id, found.get(id)) for id in ids}

    def why_waiting(self, status: JobStatus) -> str:
        """Return the job's `statusReason`, or that of an array's last member.

        The parent of an array has no reason."""
        if status.size == 1 or status.reason:
            return status.reason
        last = self.member(status.id, status.size - 1)
        return self.describe([last])[last].reason

    def suspects(self, array: str, members: Sequence[str], *, is_over: bool) -> Sequence[str]:
        """Return the failed members if describing all members takes several calls, else all."""
        if len(members) <= MOST_DESCRIBED or is_over:
            return members
        of = {"arrayJobId": array, "jobStatus": "FAILED"}
        failed = {each["jobId"] for each in called(lambda: [*self._calls.listed(**of)])}
        return [each for each in members if each in failed]

    def outcome_of(self, status: JobStatus) -> Outcome:
        """Return how the attempt ended; for a failed one with the last lines of its log."""
        end = None if status.detail is None else end_of(status.detail)
        if end is None:
            return lost(f"AWS Batch does not know its job {status.id}.")
        if end.state is AttemptState.FAILED:
            end = end_of(status.detail, self._last_lines(status.detail)) or end
        return end

    def _last_lines(self, job: dict[str, Any]) -> list[str]:
        """Return the last lines of a job's log; empty if it does not arrive within seconds."""
        for _ in range(LOOKS):
            lines = last_lines(self._calls, job)
            if lines or log_of(job) is None:
                return lines
            threading.Event().wait(BETWEEN)
        return []

    def terminate(self, ids: Sequence[str], reason: str) -> None:
        """End these jobs, with one call each."""
        for each in ids:
            called(lambda: self._calls.terminate(each, reason))  # noqa: B023 -- called immediately

    def close(self) -> None:
        """Close the connections."""
        self._calls.close()


def _mark(context: RunContext) -> Mark:
    return Mark(context.user, context.flow, context.run)


def called(call: Callable[[], T], refused: type[JobSystemError] = JobSystemError) -> T:
    """Return the result of a call to AWS Batch, with its errors translated.

    Args:
        call: A call of the client, which blocks.
        refused: The error to raise if AWS rejects the call.

    Raises:
        JobSystemUnauthorized: If AWS rejects the credentials.
        JobSystemBusy: If AWS does not respond, or throttles the call.
        JobSystemError: If AWS rejects the call.
    """
    try:
        return call()
    except AwsUnauthorized as error:
        raise JobSystemUnauthorized(str(error)) from error
    except AwsBusy as error:
        raise JobSystemBusy(str(error)) from error
    except AwsError as error:
        raise refused(str(error)) from error


def _status(id: str, described: dict[str, Any] | None) -> JobStatus:
    if described is None:
        return JobStatus(id, JobState.UNKNOWN)
    status = described["status"]
    array = described.get("arrayProperties") or {}
    summary = array.get("statusSummary")
    if status in ENDED:
        state = JobState.ENDED
    else:
        state = JobState.WAITING if status in _NOT_BEGUN else JobState.RUNNING
    counts = {status: 1} if summary is None else summary
    return JobStatus(
        id=id,
        state=state,
        size=array.get("size") or 1,
        waiting=sum(counts.get(each, 0) for each in _NOT_BEGUN),
        ended=sum(counts.get(each, 0) for each in ENDED),
        reason=str(described.get("statusReason") or "") if state is JobState.WAITING else "",
        detail=described,
    )
