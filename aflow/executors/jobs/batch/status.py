"""How an attempt ended, from the status of its job in AWS Batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from aflow.executors.jobs.base import failed, lost, out_of_memory, quoted, timed_out
from aflow.task.spec import NO_RETRY_EXIT_CODE

if TYPE_CHECKING:
    from aflow.aws.client import AwsClient
    from aflow.scheduler.messages import Outcome

ENDED = ("SUCCEEDED", "FAILED")
LOG_GROUP = "/aws/batch/job"  # the default of job definitions
_KILLED = 137  # the exit code of a container that was killed by SIGKILL
# The machine was lost, or did not start the container: not a failure of the task.
_LOST = ("Host EC2", "Your Spot Task was interrupted", "DockerTimeoutError", "CannotInspect")
_NOT_STARTED = ("Cannot", "ResourceInitializationError", "Task failed to start")


class LogStream(NamedTuple):
    """The location of a job's log in CloudWatch."""

    group: str
    name: str


def log_of(job: Mapping[str, Any]) -> LogStream | None:
    """Return the log of the job's last attempt; None if it has none in CloudWatch.

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
    """Return the last lines of a job's log; none if it has no log, or the log cannot be read.

    Args:
        calls: The clients of AWS.
        job: The job, as an item of `describe_jobs`.
    """
    stream = log_of(job)
    return [] if stream is None else calls.last_lines(stream.group, stream.name)


def end_of(job: Mapping[str, Any], log: Sequence[str] = ()) -> Outcome | None:
    """Return how a job has ended; None if it has not.

    Args:
        job: The job, as an item of `describe_jobs`.
        log: The last lines of its log, which the reason quotes; empty for none.
    """
    if job["status"] not in ENDED:
        return None
    name = f"The job {job['jobId']}"
    status_reason = str(job.get("statusReason") or "")
    container = _last_container(job)
    cause = str(container.get("reason") or "")
    if status_reason.startswith(_LOST) or cause.startswith(_LOST):
        return lost(f"the machine of its job went away ({status_reason or cause})")
    if job.get("isTerminated") or job.get("isCancelled"):
        return failed(f"{name} was terminated: {status_reason}", retryable=False)
    if status_reason.startswith("Job attempt duration exceeded"):
        limit = (job.get("timeout") or {}).get("attemptDurationSeconds", "its limit of")
        return timed_out(f"{name} ran for more than {limit} seconds, and was stopped by AWS Batch.")
    if "OutOfMemory" in cause:
        requirements = container.get("resourceRequirements") or ()
        limits = {each["type"]: each["value"] for each in requirements}
        memory = f" of {limits['MEMORY']} MB" if "MEMORY" in limits else ""
        outcome = out_of_memory(name, f"the limit{memory}")
    elif status_reason.startswith(_NOT_STARTED) or cause.startswith(_NOT_STARTED):
        return failed(_not_started(cause or status_reason, container))
    else:
        is_final = container.get("exitCode") == NO_RETRY_EXIT_CODE
        reason = _without_reason(name, status_reason, container)
        outcome = failed(reason, retryable=not is_final)
    return outcome._replace(reason=outcome.reason + _log_ends(log_of(job), log))


def _last_container(job: Mapping[str, Any]) -> dict[str, Any]:
    attempts = job.get("attempts") or [{}]
    return {**(job.get("container") or {}), **(attempts[-1].get("container") or {})}


def _not_started(cause: str, container: Mapping[str, Any]) -> str:
    image = container.get("image")
    begun = f"The container of the task could not be started ({cause}): see that the image {image} "
    program = next(iter(container.get("command") or ()), None)
    if program and "executable file not found" in cause:
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


def _log_ends(stream: LogStream | None, log: Sequence[str]) -> str:
    """Return a sentence with the location of the log, and its last lines."""
    if stream is None:
        return " It has no log in CloudWatch."
    where = f" Its log: {stream.name} of {stream.group}"
    return f"{where}, which ends with:{quoted(log)}" if log else f"{where}."
