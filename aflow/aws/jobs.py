"""The jobs of AWS Batch that runs have submitted: found again by their marks, and ended."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from aflow.aws.calls import MOST_DESCRIBED
from aflow.aws.ends import ENDED
from aflow.aws.submission import SAID, name_prefix

if TYPE_CHECKING:
    from aflow.aws.calls import Calls

UNFINISHED = ("SUBMITTED", "PENDING", "RUNNABLE", "STARTING", "RUNNING")


class Wanted(NamedTuple):
    """Whose jobs are meant; None is everybody's, of every flow, of every run."""

    user: str | None = None
    flow: str | None = None
    run: str | None = None

    def fits(self, job: SubmittedJob) -> bool:
        """Whether the job is meant."""
        given = ((self.user, job.user), (self.flow, job.flow), (self.run, job.run))
        return all(wanted in (None, there) for wanted, there in given)


class SubmittedJob(NamedTuple):
    """A job that has not ended. `states` has how many of an array are in which state; it is empty
    for a job that is none. `created_at` is in seconds since the epoch."""

    id: str
    user: str
    flow: str
    run: str
    step: str
    status: str
    states: dict[str, int]
    created_at: float


def unfinished(calls: Calls, queues: Iterable[str], wanted: Wanted) -> list[SubmittedJob]:
    """The jobs of aflow in these queues that have not ended, the oldest first. Blocks. Raises
    AwsError."""
    ids = [id for queue in queues for id in _candidates(calls, queue, wanted)]
    found = []
    for at in range(0, len(ids), MOST_DESCRIBED):
        for described in calls.described(ids[at : at + MOST_DESCRIBED]):
            job = _job(described)
            if job is not None and wanted.fits(job):
                found.append(job)
    return sorted(found, key=lambda job: job.created_at)


def _candidates(calls: Calls, queue: str, wanted: Wanted) -> Iterator[str]:
    """The ids of jobs that may be meant."""
    if wanted.user is not None and wanted.flow is not None:
        # Asked for by name AWS lists those of all states.
        prefix = name_prefix(wanted.user, wanted.flow, wanted.run)
        filters = [{"name": "JOB_NAME", "values": [f"{prefix}*"]}]
        listed = calls.listed(jobQueue=queue, filters=filters)
        yield from (each["jobId"] for each in listed if each["status"] not in ENDED)
        return
    for status in UNFINISHED:
        for each in calls.listed(jobQueue=queue, jobStatus=status):
            yield each["jobId"]


def _job(described: dict[str, Any]) -> SubmittedJob | None:
    """The job, if a run of aflow has submitted it, and it has not ended meanwhile."""
    said = described.get("parameters") or {}
    user, flow, run, step = (said.get(f"aflow.{name}", "") for name in SAID)
    if described["status"] in ENDED or not (flow and run):
        return None
    summary = (described.get("arrayProperties") or {}).get("statusSummary") or {}
    states = {status: count for status, count in summary.items() if count}
    return SubmittedJob(
        described["jobId"],
        user,
        flow,
        run,
        step,
        described["status"],
        states,
        (described.get("createdAt") or 0) / 1000,
    )
