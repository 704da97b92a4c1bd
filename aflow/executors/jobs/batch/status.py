"""What AWS Batch says of a job that has ended, in our words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from aflow.errors import OUT_OF_MEMORY
from aflow.scheduler.messages import Outcome
from aflow.scheduler.states import AttemptState

if TYPE_CHECKING:
    from aflow.aws.client import AwsClient

ENDED = ("SUCCEEDED", "FAILED")
LOG_GROUP = "/aws/batch/job"  # of jobs whose definition names no other
_KILLED = 137  # the exit code of a container that was killed
_FINAL = 202  # the exit code of a job that would fail in the same way again
# The machine was lost, or never started the container: not a fault of the task.
_LOST = ("Host EC2", "Your Spot Task was interrupted", "DockerTimeoutError", "CannotInspect")
_NOT_STARTED = ("Cannot", "ResourceInitializationError", "Task failed to start")


class LogStream(NamedTuple):
    """Where a job's log is in CloudWatch."""

    group: str
    name: str


def log_of(job: Mapping[str, Any]) -> LogStream | None:
    """Return the log of the job that `describe_jobs` describes so, that of its last attempt; None
    for one that has none in CloudWatch.

    Args:
        job: The job, as an item of `describe_jobs`.
    """
    container = _last_container(job)
    name = container.get("logStreamName")
    log_settings = container.get("logConfiguration") or {}
    if not name or log_settings.get("logDriver", "awslogs") != "awslogs":
        return None
    return LogStream(
        (log_settings.get("options") or {}).get("awslogs-group") or LOG_GROUP, str(name)
    )


def last_lines(calls: AwsClient, job: Mapping[str, Any]) -> list[str]:
    """Return the last lines that the job has printed, which `describe_jobs` describes so; none
    where it has no log, or the log cannot be read.

    Args:
        calls: The clients of AWS; a log that cannot be read is not an error.
        job: The job, as an item of `describe_jobs`.
    """
    stream = log_of(job)
    return [] if stream is None else calls.last_lines(stream.group, stream.name)


def end_of(job: Mapping[str, Any], log: Sequence[str] = ()) -> Outcome | None:
    """Return the end of the job that `describe_jobs` describes so, `log` being the last lines that
    it has printed; None for one that goes on.

    Args:
        job: The job, as an item of `describe_jobs`.
        log: The last lines that the job has printed, which the reason quotes; empty for none.
    """
    if job["status"] not in ENDED:
        return None
    name = f"The job {job['jobId']}"
    status_reason = str(job.get("statusReason") or "")
    container = _last_container(job)
    said = str(container.get("reason") or "")
    if status_reason.startswith(_LOST) or said.startswith(_LOST):
        reason = f"The task was lost: the machine of its job went away ({status_reason or said})"
        return Outcome(AttemptState.LOST, reason=reason)
    if job.get("isTerminated") or job.get("isCancelled"):
        return Outcome(
            AttemptState.FAILED, reason=f"{name} was terminated: {status_reason}", retryable=False
        )
    if status_reason.startswith("Job attempt duration exceeded"):
        limit = (job.get("timeout") or {}).get("attemptDurationSeconds", "its limit of")
        reason = f"{name} ran for more than {limit} seconds, and was stopped by AWS Batch."
        return Outcome(AttemptState.TIMED_OUT, reason=reason)
    if "OutOfMemory" in said:
        reason = _out_of_memory(name, container) + _quoted(log_of(job), log)
        return Outcome(AttemptState.FAILED, reason=reason)
    if status_reason.startswith(_NOT_STARTED) or said.startswith(_NOT_STARTED):
        return Outcome(AttemptState.FAILED, reason=_not_started(said or status_reason, container))
    reason = _without_reason(name, status_reason, container) + _quoted(log_of(job), log)
    retryable = container.get("exitCode") != _FINAL
    return Outcome(AttemptState.FAILED, reason=reason, retryable=retryable)


def _last_container(job: Mapping[str, Any]) -> dict[str, Any]:
    attempts = job.get("attempts") or [{}]
    return {**(job.get("container") or {}), **(attempts[-1].get("container") or {})}


def _out_of_memory(name: str, container: Mapping[str, Any]) -> str:
    limits = {each["type"]: each["value"] for each in container.get("resourceRequirements") or ()}
    memory = f" of {limits['MEMORY']} MB" if "MEMORY" in limits else ""
    return (
        f"{OUT_OF_MEMORY}{name} needed more memory than the limit{memory}: give the step more, "
        "with @resources(memory=...)."
    )


def _not_started(said: str, container: Mapping[str, Any]) -> str:
    image = container.get("image")
    begun = f"The container of the task could not be started ({said}): see that the image {image} "
    program = next(iter(container.get("command") or ()), None)
    if program and "executable file not found" in said:
        return (
            f"{begun}has the program {program!r}, or name the Python that it has with "
            "@batch(executable=...)."
        )
    return f"{begun}is there, and that the machines of the queue may pull it."


def _without_reason(name: str, status_reason: str, container: Mapping[str, Any]) -> str:
    code = container.get("exitCode")
    how = f"with exit code {code} " if code is not None else ""
    why = " (it was killed, perhaps since memory ran out)" if code == _KILLED else ""
    return f"{name} ended {how}before it reported how its task ended{why}: {status_reason}."


def _quoted(stream: LogStream | None, log: Sequence[str]) -> str:
    """Where the log is, and its last lines."""
    if stream is None:
        return " It has no log in CloudWatch."
    where = f"Its log: {stream.name} of {stream.group}"
    if not log:
        return f" {where}."
    lines = "".join(f"\n    {line}" for line in log)
    return f" {where}, which ends with:{lines}"
