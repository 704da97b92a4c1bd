"""The port of a job system: AWS Batch, Slurm, or another one that runs jobs for us.

The executor above it (executor.py) has arrays, gangs, reports from the store, recovery by name and
the rule that a lost job is not a failure. A backend only translates: each method is one thing that
the system can do. Its calls block, are safe from many threads, and are made once: the executor
tries again where JobSystemBusy says that it may help.

What every backend promises, and tests/contracts/test_job_systems.py checks:

- `submit` runs `python -m aflow _task` once for each attempt, with the variables
  of the submission. Which of them it is a job learns by `place.place_of_this_job`.
- An id names one job for good. A system that gives ids again puts more into them than its own.
- A submission whose answer was lost is found by `find`, by its name, which no other job has.
- `describe` has an entry for each id that it was asked for, whatever the system knows of it.
- `terminate` of a job that has ended, or that the system has forgotten, does nothing.
- A job that ended without the doing of its step (a machine that failed, a preemption) is LOST.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from aflow._core.backoff import Backoff, Tries
from aflow.errors import OUT_OF_MEMORY, JobSystemBusy, JobSystemUnauthorized
from aflow.scheduler.messages import Outcome
from aflow.scheduler.states import AttemptState

if TYPE_CHECKING:
    from aflow.task.spec import RunContext

TAIL_LINES, TAIL_SIZE = 10, 4096  # of the output of a job that has failed: lines, bytes
PATIENCE_AT_START = 120.0  # seconds for which a system may not answer when a run begins
_BACKOFF = Backoff(2.0, 10.0)


class JobState(Enum):
    """How far a job is, as far as all systems agree. UNKNOWN: the system has forgotten it."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"
    UNKNOWN = "unknown"


class JobStatus(NamedTuple):
    """What a system says of a job, of an array of `size` jobs, or of one member of an array.

    `waiting` of them have not begun, `ended` have ended. `reason` is what the system says of why it
    waits, maybe nothing. `version` changes when something has happened. `detail` is the backend's
    own, for `outcome_of`. `succeeded` says that the program has ended with 0: then its report is in
    the store, and may take a while to be seen on a shared file system.
    """

    id: str
    state: JobState
    size: int = 1
    waiting: int = 0
    ended: int = 0
    reason: str = ""
    version: Hashable = None
    detail: Any = None
    succeeded: bool = False

    @property
    def is_over(self) -> bool:
        """Whether nothing more happens with it."""
        return self.state in (JobState.ENDED, JobState.UNKNOWN)


class StepJob(Protocol):
    """What all jobs of a step have in common, in the terms of the backend. The attempts of a gang
    are nodes of one job."""

    @property
    def step(self) -> str:
        """The name of the step."""

    @property
    def queue(self) -> str:
        """Where its jobs wait, as people call it: a queue, a partition, a namespace; maybe empty,
        for the one that the system takes by itself."""

    @property
    def is_gang(self) -> bool:
        """Whether its attempts start together."""


J = TypeVar("J", bound=StepJob)
J_contra = TypeVar("J_contra", bound=StepJob, contravariant=True)


class Submission(NamedTuple):
    """One job to submit: `size` attempts of the step of `job`, as an array where there are several,
    or as the nodes of a gang. `environment` is added to the variables that `job` has."""

    context: RunContext
    job: Any
    name: str
    size: int
    environment: Mapping[str, str]


class CallLimits(NamedTuple):
    """What a system takes in one call: members of an array, ids to describe, ids to terminate."""

    array: int
    described: int
    terminated: int


class JobSystem(Protocol[J_contra]):
    """A system that runs jobs. Its methods raise JobSystemBusy where another try may go well, and
    JobSystemError where it refuses."""

    @property
    def title(self) -> str:
        """What people call it: "AWS Batch"."""

    @property
    def advice(self) -> str:
        """What to look at when jobs wait for a long time."""

    @property
    def limits(self) -> CallLimits:
        """What it takes in one call."""

    @property
    def scope(self) -> str:
        """Which of several systems it is: those of one scope know the same jobs. May take a while,
        and raise InvalidSetting."""

    def name_of(self, context: RunContext, step: str, unique: str) -> str:
        """Return the name of a job of this step: people see whose it is, and `unique` stands in it.

        Args:
            context: What all attempts of the run share.
            step: The name of the step; shortened where the system limits names.
            unique: A text that no other submission has.
        """

    def submit(self, submission: Submission) -> str:
        """Submit a job. JobSystemBusy leaves open whether it was submitted; JobRefused says that it
        never will be.

        Args:
            submission: The job, how many attempts it has, and under which unique name.

        Returns:
            Its id.

        Raises:
            JobSystemBusy: It is not known whether the job was submitted: `find` tells.
            JobRefused: The job will never be accepted as it is.
        """

    def find(self, name: str, job: J_contra) -> str | None:
        """Return the id of the job of this name; None where there is none.

        Args:
            name: The name that the submission had; it is unique.
            job: What was to be submitted, for systems that need its queue or namespace to search.
        """

    def member(self, job: str, index: int) -> str:
        """Return the id of one member of an array.

        Args:
            job: The id of the array, as `submit` returned it.
            index: The index of the member, from 0.
        """

    def describe(self, ids: Sequence[str]) -> dict[str, JobStatus]:
        """Return the status of each of these jobs, arrays or members: `limits.described` at most.

        Args:
            ids: The ids of the jobs or messages.
        """

    def why_waiting(self, status: JobStatus) -> str:
        """Return why the job of this status has not begun, as the system says it; maybe empty.

        Args:
            status: The last status that `describe` has returned for the job.
        """

    def suspects(self, array: str, members: Sequence[str], *, is_over: bool) -> Sequence[str]:
        """Return those of the members that may have ended without a report: fewer than all, where
        the system can tell. `is_over` says that the whole array has ended.

        Args:
            array: The id of the array.
            members: The ids of the members whose reports are missing.
            is_over: Whether the array as a whole has ended, so that every member without a report
                is lost.
        """

    def outcome_of(self, status: JobStatus) -> Outcome:
        """Return how the attempt ended whose job has this status, which is over.

        Args:
            status: The status of a job that has ended.
        """

    def terminate(self, ids: Sequence[str], reason: str) -> None:
        """End these jobs, arrays or members, `limits.terminated` at most: SIGTERM first, SIGKILL
        when they take too long.

        Args:
            ids: The ids of the jobs or messages.
            reason: Why, in one sentence.
        """

    def close(self) -> None:
        """Release connections. The next call makes new ones."""


class SubmittedJob(NamedTuple):
    """A job that a run has submitted and that has not ended, as `batch list` and `kubernetes list`
    show it. `id` is how its system knows it, `shown` how people do; `path` is the pathspec of its
    step, `state` how far its attempts are. `created_at` is in seconds since the epoch."""

    id: str
    shown: str
    user: str
    path: str
    state: str
    created_at: float


def counted(states: Mapping[str, int]) -> str:
    """Return how many attempts are in each state, as `2 running, 1 waiting`.

    Args:
        states: How many there are, by state; states without any are left out.
    """
    return ", ".join(f"{count} {state}" for state, count in states.items() if count)


def until_answered(system: str, call: Callable[[], object]) -> None:
    """Call again while the system does not answer, as at the start of a run, and say what is waited
    for. Blocks.

    Args:
        system: The name of the job system.
        call: The call; it blocks.

    Raises:
        JobSystemBusy: After PATIENCE_AT_START, JobSystemUnauthorized at once, and what else the
            call raises.
    """
    tries = Tries(_BACKOFF, patience=PATIENCE_AT_START, waiting_for=system)
    tries.retry(call, JobSystemBusy, unless=JobSystemUnauthorized)


# How attempts ended that have left no report, as the job systems tell it.


def lost(why: str) -> Outcome:
    """Return the end of an attempt that went away without the doing of its step.

    Args:
        why: What has become of its job; `The task was lost: ` stands before it.
    """
    return Outcome(AttemptState.LOST, reason=f"The task was lost: {why}")


def failed(why: str, *, retryable: bool = True) -> Outcome:
    """Return the end of an attempt that has failed.

    Args:
        why: The reason, in a sentence.
        retryable: Whether another attempt may succeed.
    """
    return Outcome(AttemptState.FAILED, reason=why, retryable=retryable)


def timed_out(why: str) -> Outcome:
    """Return the end of an attempt that its job system has stopped at its time limit.

    Args:
        why: The reason, in a sentence.
    """
    return Outcome(AttemptState.TIMED_OUT, reason=why)


def out_of_memory(job: str, available: str) -> Outcome:
    """Return the end of an attempt that needed more memory than it had.

    Args:
        job: The job or the pod, with which the sentence begins.
        available: How much it had, as `the limit of 2000M`.
    """
    return failed(
        f"{OUT_OF_MEMORY}{job} needed more memory than {available}: give the step more, with "
        "@resources(memory=...)."
    )


def quoted(lines: Iterable[str]) -> str:
    """Return the last lines of an output as they stand in a reason, each on a line of its own.

    Args:
        lines: The lines; empty ones are left out.
    """
    return "".join(f"\n    {line}" for line in lines if line.strip())
