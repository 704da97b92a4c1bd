"""The port of a job system, such as AWS Batch or Slurm.

The executor above it (executor.py) implements arrays, gangs, reports through the datastore,
recovery by name, and the distinction between lost and failed jobs. A backend only translates: each
method is one operation of the system. Methods block, are thread-safe, and do not retry: the
executor retries after JobSystemBusy.

Every backend guarantees the following, which tests/contracts/test_job_systems.py checks:

- `submit` runs `python -m aflow _task` once per attempt, with the environment variables of the
  submission. A job finds its index through `place.place_of_this_job`.
- An id is unique forever. If a system reuses ids, the backend adds something unique to them.
- `find` finds a submission whose response was lost, by its unique name.
- `describe` returns an entry for each requested id, even if the system does not know it.
- `terminate` has no effect on a job that has ended or that the system no longer knows.
- A job that ended through no fault of its step (a failed machine, a preemption) is LOST.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from aflow._core.backoff import Backoff, Tries
from aflow.errors import OUT_OF_MEMORY, JobSystemBusy, JobSystemUnauthorized
from aflow.scheduler.messages import Outcome
from aflow.scheduler.states import AttemptState

if TYPE_CHECKING:
    from aflow.task.spec import RunContext

TAIL_LINES, TAIL_SIZE = 10, 4096  # of the output of a failed job: lines, bytes
PATIENCE_AT_START = 120.0  # seconds for which a system may be unavailable when a run starts
_BACKOFF = Backoff(2.0, 10.0)


class JobState(Enum):
    """The state of a job in common terms. UNKNOWN: the system no longer knows the job."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"
    UNKNOWN = "unknown"


class JobStatus(NamedTuple):
    """The status of a job, of an array of `size` jobs, or of one member of an array.

    `waiting` of them have not started, `ended` have ended. `reason` is the system's reason for
    waiting, possibly empty. `detail` is specific to the
    backend, for `outcome_of`. If `succeeded`, the program exited with 0: its report is in the
    datastore, but may not be visible yet on a shared file system."""

    id: str
    state: JobState
    size: int = 1
    waiting: int = 0
    ended: int = 0
    reason: str = ""
    detail: Any = None
    succeeded: bool = False

    @property
    def is_over(self) -> bool:
        """Whether the status is final."""
        return self.state in (JobState.ENDED, JobState.UNKNOWN)


class StepJob(Protocol):
    """The properties shared by all jobs of a step, in the terms of the backend.

    The attempts of a gang are the nodes of one job."""

    @property
    def step(self) -> str:
        """The name of the step."""

    @property
    def queue(self) -> str:
        """The queue, partition or namespace of its jobs; empty for the system's default."""

    @property
    def is_gang(self) -> bool:
        """Whether its attempts start together."""


T = TypeVar("T")
J_contra = TypeVar("J_contra", bound=StepJob, contravariant=True)


class Submission(NamedTuple):
    """One job to submit, with `size` attempts of the step of `job`.

    Several attempts form an array, or the nodes of a gang. `environment` is added to the variables
    of `job`."""

    context: RunContext
    job: Any
    name: str
    size: int
    environment: Mapping[str, str]


class CallLimits(NamedTuple):
    """Limits per call: members of an array, ids to describe, ids to terminate."""

    array: int
    described: int
    terminated: int


class JobSystem(Protocol[J_contra]):
    """A system that runs jobs.

    Its methods raise JobSystemBusy if a retry may succeed, and JobSystemError if the system rejects
    the request."""

    @property
    def title(self) -> str:
        """The display name, such as "AWS Batch"."""

    @property
    def advice(self) -> str:
        """Advice for users whose jobs wait for a long time."""

    @property
    def limits(self) -> CallLimits:
        """The limits of each call."""

    @property
    def scope(self) -> str:
        """The identity of the system: systems with the same scope know the same jobs.

        May block, and raise InvalidSetting."""

    def name_of(self, context: RunContext, step: str, unique: str) -> str:
        """Return a name for a job of this step that contains `unique`.

        The name shows users what the job belongs to.

        Args:
            context: The data that all attempts of the run share.
            step: The name of the step; shortened if the system limits the length of names.
            unique: A text that is unique to the submission.
        """

    def submit(self, submission: Submission) -> str:
        """Submit a job.

        Args:
            submission: The job, the number of its attempts, and its unique name.

        Returns:
            Its id.

        Raises:
            JobSystemBusy: If it is unknown whether the job was submitted; `find` can tell.
            JobRefused: If the system will never accept the job.
        """

    def find(self, name: str, job: J_contra) -> str | None:
        """Return the id of the job with this name; None if there is none.

        Args:
            name: The unique name of the submission.
            job: The submitted step job, for systems that search by queue or namespace.
        """

    def member(self, job: str, index: int) -> str:
        """Return the id of one member of an array.

        Args:
            job: The id of the array, as `submit` returned it.
            index: The index of the member, from 0.
        """

    def describe(self, ids: Sequence[str]) -> dict[str, JobStatus]:
        """Return the status of each of these jobs, arrays or members.

        Args:
            ids: The ids of the jobs, at most `limits.described`.
        """

    def why_waiting(self, status: JobStatus) -> str:
        """Return the system's reason why a job has not started; possibly empty.

        Args:
            status: The last status that `describe` returned for the job.
        """

    def suspects(self, array: str, members: Sequence[str], *, is_over: bool) -> Sequence[str]:
        """Return the members that may have ended without a report.

        These are fewer than all if the system can report which members have ended.

        Args:
            array: The id of the array.
            members: The ids of the members whose reports are missing.
            is_over: Whether the array as a whole has ended.
        """

    def outcome_of(self, status: JobStatus) -> Outcome:
        """Return how the attempt of an ended job ended.

        Args:
            status: The final status of the job.
        """

    def terminate(self, ids: Sequence[str], reason: str) -> None:
        """End these jobs, arrays or members: by SIGTERM, then by SIGKILL after a grace period.

        Args:
            ids: The ids of the jobs, at most `limits.terminated`.
            reason: The reason, in one sentence.
        """

    def close(self) -> None:
        """Close connections. The next call opens new ones."""


class SubmittedJob(NamedTuple):
    """A job of a run that has not ended, as listed by `batch list` and `kubernetes list`.

    `id` is the system's id, `shown` the displayed one. `path` is the pathspec of the step, `state`
    the number of attempts in each state. `created_at` is in seconds since the epoch."""

    id: str
    shown: str
    user: str
    path: str
    state: str
    created_at: float


def counted(states: Mapping[str, int]) -> str:
    """Return the number of attempts in each state, such as `2 running, 1 waiting`.

    Args:
        states: The number of attempts by state; zero counts are omitted.
    """
    return ", ".join(f"{count} {state}" for state, count in states.items() if count)


def until_answered(system: str, call: Callable[[], T]) -> T:
    """Return the result of the call; retry, and log the wait, while the system is unavailable at
    the start of a run. Blocks.

    Args:
        system: The name of the job system.
        call: The call; it blocks.

    Raises:
        JobSystemBusy: If the system is unavailable for PATIENCE_AT_START. JobSystemUnauthorized and
            all other errors of the call are raised without a retry.
    """
    tries = Tries(_BACKOFF, patience=PATIENCE_AT_START, waiting_for=system)
    return tries.retry(call, JobSystemBusy, unless=JobSystemUnauthorized)


# How attempts without a report ended, according to the job system.


def lost(why: str) -> Outcome:
    """Return the outcome of an attempt that was lost through no fault of its step.

    Args:
        why: What happened to the job; `The task was lost: ` is prepended.
    """
    return Outcome(AttemptState.LOST, reason=f"The task was lost: {why}")


def failed(why: str, *, retryable: bool = True) -> Outcome:
    """Return the outcome of an attempt that has failed.

    Args:
        why: The reason, in one sentence.
        retryable: Whether another attempt may succeed.
    """
    return Outcome(AttemptState.FAILED, reason=why, retryable=retryable)


def timed_out(why: str) -> Outcome:
    """Return the outcome of an attempt that its job system stopped at its time limit.

    Args:
        why: The reason, in one sentence.
    """
    return Outcome(AttemptState.TIMED_OUT, reason=why)


def out_of_memory(job: str, available: str) -> Outcome:
    """Return the outcome of an attempt that ran out of memory.

    Args:
        job: The job or the pod, which starts the sentence.
        available: Its memory, such as `the limit of 2000M`.
    """
    return failed(
        f"{OUT_OF_MEMORY}{job} needed more memory than {available}: give the step more, with "
        "@resources(memory=...)."
    )


def quoted(lines: Iterable[str]) -> str:
    """Return the last lines of an output, formatted for a reason: one per line, indented.

    Args:
        lines: The lines; empty ones are omitted.
    """
    return "".join(f"\n    {line}" for line in lines if line.strip())
