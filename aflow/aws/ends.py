"""What AWS Batch says of a job that has ended, in our words: a pure function of its description."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from aflow.scheduler.states import AttemptState

ENDED = ("SUCCEEDED", "FAILED")
_KILLED = 137  # the exit code of a container that was killed
# The machine went away, or never came to run the container: nobody's fault.
_LOST = ("Host EC2", "Your Spot Task was interrupted", "DockerTimeoutError", "CannotInspect")
_NOT_STARTED = ("Cannot", "ResourceInitializationError", "Task failed to start")


class JobEnd(NamedTuple):
    """How the attempt of a job that ended without a word has ended."""

    state: AttemptState
    reason: str
    retryable: bool = True


def end_of(job: Mapping[str, Any]) -> JobEnd | None:
    """The end of the job that `describe_jobs` describes so; None for one that goes on."""
    if job["status"] not in ENDED:
        return None
    name = f"The job {job['jobId']}"
    told = str(job.get("statusReason") or "")
    container = _last_container(job)
    said = str(container.get("reason") or "")
    if told.startswith(_LOST) or said.startswith(_LOST):
        reason = f"The task was lost: the machine of its job went away ({told or said})"
        return JobEnd(AttemptState.LOST, reason)
    if job.get("isTerminated") or job.get("isCancelled"):
        return JobEnd(AttemptState.FAILED, f"{name} was terminated: {told}", retryable=False)
    if told.startswith("Job attempt duration exceeded"):
        limit = (job.get("timeout") or {}).get("attemptDurationSeconds", "its limit of")
        reason = f"{name} ran for more than {limit} seconds, and was stopped by AWS Batch."
        return JobEnd(AttemptState.TIMED_OUT, reason)
    if "OutOfMemory" in said:
        return JobEnd(AttemptState.FAILED, _out_of_memory(name, container))
    if told.startswith(_NOT_STARTED) or said.startswith(_NOT_STARTED):
        reason = (
            f"The container of the task could not be started ({said or told}): see that the image "
            f"{container.get('image')} is there, and that the machines of the queue may pull it."
        )
        return JobEnd(AttemptState.FAILED, reason)
    return JobEnd(AttemptState.FAILED, _without_a_word(name, told, container))


def _last_container(job: Mapping[str, Any]) -> dict[str, Any]:
    attempts = job.get("attempts") or [{}]
    return {**(job.get("container") or {}), **(attempts[-1].get("container") or {})}


def _out_of_memory(name: str, container: Mapping[str, Any]) -> str:
    limits = {each["type"]: each["value"] for each in container.get("resourceRequirements") or ()}
    memory = f" of {limits['MEMORY']} MB" if "MEMORY" in limits else ""
    return (
        f"{name} needed more memory than the limit{memory}: give the step more, with "
        "@resources(memory=...)."
    )


def _without_a_word(name: str, told: str, container: Mapping[str, Any]) -> str:
    code = container.get("exitCode")
    how = f"with exit code {code} " if code is not None else ""
    why = " (it was killed, perhaps since memory ran out)" if code == _KILLED else ""
    stream = container.get("logStreamName")
    log = f" Its log: {stream} of /aws/batch/job." if stream else ""
    return f"{name} ended {how}before it told how its task went{why}: {told}.{log}"
