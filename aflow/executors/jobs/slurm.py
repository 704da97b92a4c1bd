"""Slurm as a job system, through its commands: sbatch, squeue, scancel, scontrol.

If Slurm's controller is killed, it reuses the job numbers of its last seconds. Therefore an id here
is `NUMBER@NAME` (`NUMBER_INDEX@NAME` for a member of an array). If a job has the number but another
name, it is a different job, and the job with this id is unknown.
"""

from __future__ import annotations

import math
import re
import shlex
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from aflow._core.settings import environment_of_jobs, looked_up
from aflow.errors import (
    InvalidInput,
    InvalidSetting,
    JobRefused,
    JobSystemBusy,
    JobSystemError,
)
from aflow.executors.jobs.base import (
    TAIL_LINES,
    TAIL_SIZE,
    CallLimits,
    JobState,
    JobStatus,
    Submission,
    failed,
    lost,
    out_of_memory,
    quoted,
    timed_out,
    until_answered,
)
from aflow.executors.jobs.options import MARGIN, PROGRAM, StepOptions
from aflow.executors.jobs.place import SLURM
from aflow.scheduler.states import AttemptState
from aflow.task.spec import NO_RETRY_EXIT_CODE

if TYPE_CHECKING:
    from aflow.flow.definition import StepDefinition
    from aflow.scheduler.messages import Outcome
    from aflow.task.spec import RunContext

LONGEST_NAME = 128
LARGEST_ARRAY = 10_000
TIMEOUT = 120.0  # seconds for one command; a busy controller responds late
DEFAULTS = {  # options, and the keys of their settings
    "partition": "SLURM_PARTITION",
    "account": "SLURM_ACCOUNT",
    "qos": "SLURM_QOS",
    "constraint": "SLURM_CONSTRAINT",
    "time": "SLURM_TIME",
}
PASSED_ON = ("gres", "nodelist", "exclude", "reservation", "nice")

_ENDED = frozenset({
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "PREEMPTED", "REVOKED", "TIMEOUT",
})  # fmt: skip
_WAITING = frozenset({
    "PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD",
    "SPECIAL_EXIT",
})  # fmt: skip
_LOST = frozenset({"BOOT_FAIL", "NODE_FAIL", "PREEMPTED", "REVOKED"})
# Errors of commands if the controller is unreachable or overloaded.
_BUSY = re.compile(
    "unable to contact|connect failure|connection (refused|timed out|reset)|socket timed out|"
    "zero bytes were transmitted|temporarily unable|temporarily unavailable|standby mode|"
    "unexpected message|communication|transport endpoint|munge|try again",
    re.IGNORECASE,
)
_NO_NODE = "Requested node configuration is not available"
_FORGOTTEN = re.compile("invalid job id", re.IGNORECASE)
_OVER = re.compile("invalid job id|already completing or completed", re.IGNORECASE)
_NOISE = re.compile(r"^(sbatch|squeue|scancel|scontrol|slurm_\w+):? ?(error: )?", re.MULTILINE)
_FIELD = re.compile(r" (?=[A-Z][\w:/]*=)")  # what separates two fields that scontrol prints
_FIELDS = "%F|%K|%T|%r|%V|%j"  # of a job: number, index, state, reason, submit time, name


_PARTITION = "--partition="


class SlurmJob(NamedTuple):
    """The properties shared by all jobs of a step: arguments of sbatch, Python interpreter."""

    step: str
    arguments: tuple[str, ...]
    python: str
    is_gang: bool = False

    @property
    def queue(self) -> str:
        """The partition; empty for Slurm's default."""
        named = (each.partition("=")[2] for each in self.arguments if each.startswith(_PARTITION))
        return next(named, "")


def step_job(
    step: StepDefinition, python: str, attempt: int = 0, *, is_gang: bool = False
) -> SlurmJob:
    """Return the job of an attempt of the step.

    Args:
        step: The step, with its decorators.
        python: The path of the Python interpreter on the nodes, unless @slurm sets `executable`.
        attempt: The number of the attempt, from 0.
        is_gang: Whether the attempts start together, on nodes that communicate with each other.

    Raises:
        InvalidInput: If options of @slurm are invalid.
    """
    options = StepOptions(step, "slurm")
    asked: dict[str, Any] = {name: looked_up(key) for name, key in DEFAULTS.items()}
    timeout = step.decorator("timeout")
    if timeout is not None:
        asked["time"] = math.ceil((timeout.total_seconds + MARGIN) / 60)
    for name in (*DEFAULTS, *PASSED_ON):
        if (value := options.value(name)) is not None:
            asked[name] = value
    arguments = [f"--{name}={value}" for name, value in asked.items() if value is not None]
    arguments += _resources(step, options, attempt)
    if options.value("exclusive"):
        arguments.append("--exclusive")
    arguments += _more(step, options.value("options"))
    executable = options.text("executable") or python
    return SlurmJob(step.name, tuple(arguments), executable, is_gang)


def _more(step: StepDefinition, options: Any) -> list[str]:
    """Return the additional arguments of sbatch that the user has given."""
    argv = options.split() if isinstance(options, str) else [str(each) for each in options or ()]
    for argument in argv:
        if not argument.startswith("-"):
            raise InvalidInput(
                f"Step {step.name}: options of @slurm are arguments of sbatch such as "
                f"--mail-type=END, not {argument!r}."
            )
    return argv


def _resources(step: StepDefinition, options: StepOptions, attempt: int) -> list[str]:
    """Return the arguments for resources: the maximum of @resources and @slurm."""
    resources: Any = step.decorator("resources")
    forms = {"cpu": "--cpus-per-task={}", "memory": "--mem={}M", "disk": "--tmp={}M"}
    if options.value("gres") is None:
        forms["gpu"] = "--gres=gpu:{}"
    asked = {option: math.ceil(options.most(option, attempt)) for option in forms}
    arguments = [forms[option].format(amount) for option, amount in asked.items() if amount]
    custom = {} if resources is None else resources.custom_amounts(attempt)
    licences = ",".join(f"{name}:{math.ceil(each)}" for name, each in custom.items() if each)
    return [*arguments, f"--licenses={licences}"] if licences else arguments


# ------------------------------------------------------------------ the system


class SlurmSystem:
    """The Slurm cluster of this machine.

    Output that a job prints before it can report goes to a file in `folder`."""

    title = "Slurm"
    advice = "See `squeue --start`, and what the partition allows (`scontrol show partition`)."

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @cached_property
    def _configuration(self) -> Mapping[str, str]:
        pairs = (line.partition("=") for line in _run("scontrol", "show", "config").split("\n"))
        return {name.strip(): value.strip() for name, _, value in pairs}

    @property
    def scope(self) -> str:
        """The name of the cluster, and the folder for output."""
        return f"slurm/{self._configuration.get('ClusterName', '')}/{self._folder}"

    @property
    def limits(self) -> CallLimits:
        """The limits; arrays are also limited by MaxArraySize of the cluster."""
        largest = self._configuration.get("MaxArraySize", "")
        size = int(largest) if largest.isdigit() else 1001  # Slurm's own default
        return CallLimits(max(1, min(LARGEST_ARRAY, size)), 100, 500)

    def check_all(self, jobs: Sequence[SlurmJob]) -> None:
        """Check by `sbatch --test-only` that Slurm would accept these jobs.

        Retries while the controller does not respond. Blocks.

        Args:
            jobs: The jobs of the steps; those with equal arguments are checked once.

        Raises:
            InvalidInput: If Slurm rejects a job; the error names the steps and quotes Slurm.
            JobSystemBusy: If the controller does not respond for too long.
            InvalidSetting: If Slurm is not installed on this machine.
        """
        for arguments in dict.fromkeys(job.arguments for job in jobs):
            steps = ", ".join(job.step for job in jobs if job.arguments == arguments)
            test = partial(_run, "sbatch", "--test-only", "--job-name=aflow-check", *arguments)
            try:
                until_answered("Slurm", partial(test, script="#!/bin/sh\n", refused=JobRefused))
            except JobRefused as error:
                asked = " ".join(arguments) or "no options"
                raise InvalidInput(
                    f"Slurm does not take jobs of step {steps} ({asked}): {error}"
                ) from error

    def name_of(self, context: RunContext, step: str, unique: str) -> str:
        """Return a name with user, flow, run and step, truncated if too long, and `unique`."""
        text = re.sub(r"[^A-Za-z0-9_-]", "-", f"{context.user}-{context.flow}-{context.run}-{step}")
        return f"{text[: LONGEST_NAME - len(unique) - 1]}-{unique}"

    def submit(self, submission: Submission) -> str:
        """Submit a job, an array, or a job of several nodes.

        Args:
            submission: The submission; its job is a SlurmJob, its size the number of members or
                nodes.

        Returns:
            The id of the job, of the array, or of the job of several nodes.

        Raises:
            JobSystemError: If Slurm rejects the job.
        """
        job: SlurmJob = submission.job
        self._folder.mkdir(parents=True, exist_ok=True)
        is_array = submission.size > 1 and not job.is_gang
        output = self._folder / f"{submission.name}.{'%a' if is_array else 'out'}"
        nodes = submission.size if job.is_gang else 1
        arguments = [
            "--no-requeue", f"--job-name={submission.name}", f"--output={output}", *job.arguments,
            *([f"--array=0-{submission.size - 1}"] if is_array else []),
            f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1",
        ]  # fmt: skip
        environment = {
            **submission.environment, "AFLOW_JOB_SYSTEM": SLURM, "AFLOW_JOB_NODES": str(nodes),
        }  # fmt: skip
        number = _sbatch(arguments, _script(job.python, nodes), environment)
        return f"{number}@{submission.name}"

    def find(self, name: str, job: SlurmJob) -> str | None:
        """Return the id of the job with this name, of the latest one if there are several."""
        found = _jobs("--states=all", f"--name={name}")
        there = [each for each in found if each.name == name and not each.was_refused]
        if not there:
            return None
        return f"{max(there, key=lambda each: each.submitted).number}@{name}"

    def member(self, job: str, index: int) -> str:
        """Return `NUMBER_INDEX@NAME`."""
        number, _, name = job.partition("@")
        return f"{number}_{index}@{name}"

    def describe(self, ids: Sequence[str]) -> dict[str, JobStatus]:
        """Return the status of each of these jobs, by one call of squeue."""
        numbers = ",".join(id.partition("@")[0] for id in ids)
        by_number: defaultdict[str, list[_Job]] = defaultdict(list)
        for each in _jobs("--states=all", "--array", f"--jobs={numbers}"):
            by_number[each.number].append(each)
        return {id: _status(id, by_number) for id in ids}

    def why_waiting(self, status: JobStatus) -> str:
        """Return Slurm's reason: Resources, Priority, PartitionTimeLimit..."""
        return status.reason

    def suspects(self, array: str, members: Sequence[str], *, is_over: bool) -> Sequence[str]:
        """Return the members that neither run nor wait, by one call for all of them."""
        number, _, name = array.partition("@")
        going_on = {
            f"{number}_{each.place}@{name}"
            for each in _jobs("--states=all", "--array", f"--jobs={number}")
            if each.name == name and not each.is_over
        }
        return [each for each in members if each not in going_on]

    def outcome_of(self, status: JobStatus) -> Outcome:
        """Return how the attempt ended; for a failed one with the end of its job's output."""
        number, _, name = status.id.partition("@")
        details = _details(number, name)
        if details is None:
            return lost(f"Slurm no longer knows its job {number} ({name}).")
        if _is_held_launch(details.get("JobState", ""), details.get("Reason", "")):
            self.terminate([status.id], "It could not be launched.")
        outcome = outcome_of(number, details)
        if outcome.state is AttemptState.FAILED and outcome.retryable:
            ends = _output_ends(details.get("StdErr", ""))
            outcome = outcome._replace(reason=outcome.reason + ends)
        return outcome

    def terminate(self, ids: Sequence[str], reason: str) -> None:
        """End these jobs by scancel: SIGTERM, then SIGKILL after KillWait."""
        statuses = self.describe(ids)
        by_name: defaultdict[str, list[str]] = defaultdict(list)
        for id in ids:
            # A job whose launch failed is over for us, but held in Slurm.
            if not statuses[id].is_over or statuses[id].detail == _HELD:
                number, _, name = id.partition("@")
                by_name[name].append(number)
        for name, numbers in by_name.items():
            # Filter by name as well: scancel waits for an unresponsive controller, which may have
            # reused the number for another job when it is back.
            _unless(_OVER, "scancel", f"--name={name}", *numbers)

    def close(self) -> None:
        """Do nothing: no connection is kept open."""


def _script(python: str, nodes: int) -> str:
    # `exec` replaces the shell, so that the program receives Slurm's SIGTERM.
    launcher = "srun " if nodes > 1 else ""
    return f"#!/bin/sh\nexec {launcher}{shlex.join([python, '-m', *PROGRAM])}\n"


def submit_workers(
    count: int,
    argv: Sequence[str],
    variables: Mapping[str, str],
    options: Sequence[str],
    folder: Path,
    cpus: int,
) -> str:
    """Submit workers of a queue as one array. Blocks.

    A worker receives SIGTERM a minute before the time limit of its job.

    Args:
        count: The number of workers: the size of the array.
        argv: The arguments of `aflow worker`.
        variables: Environment variables of the workers, in addition to those of this process.
        options: Additional arguments of sbatch, which take precedence.
        folder: The directory for the output of the workers; created if it does not exist.
        cpus: The number of CPUs per worker.

    Returns:
        The number of the job.

    Raises:
        JobRefused: If Slurm rejects the array.
        JobSystemBusy: If the controller does not respond.
        InvalidSetting: If Slurm is not installed on this machine.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = shlex.join([sys.executable, "-m", "aflow", "worker", *argv])
    arguments = [
        "--job-name=aflow-worker", f"--array=0-{count - 1}", "--nodes=1", "--ntasks=1",
        f"--cpus-per-task={cpus}", "--signal=B:TERM@60", f"--output={folder}/worker-%A_%a.log",
        *options,
    ]  # fmt: skip
    return _sbatch(arguments, f"#!/bin/sh\nexec {command}\n", variables)


# ------------------------------------------------------------------ output of Slurm

_HELD = "held"


class _Job(NamedTuple):
    """One line of squeue: `number` is that of the array, `place` the index in it, if any."""

    number: str
    place: str
    state: str
    reason: str
    submitted: str
    name: str

    @property
    def is_over(self) -> bool:
        return self.state in _ENDED or _is_held_launch(self.state, self.reason)

    @property
    def was_refused(self) -> bool:
        """Whether sbatch rejected it: Slurm lists such a job for a while."""
        return self.state == "FAILED" and self.reason == "BadConstraints"


def _is_held_launch(state: str, reason: str) -> bool:
    """Return whether a node failed to launch the job, so that Slurm holds it forever."""
    return state in _WAITING and "launch" in reason.lower() and "held" in reason.lower()


def _jobs(*arguments: str) -> list[_Job]:
    """Return the jobs that squeue lists; an empty list if Slurm has forgotten them."""
    form = f"--format={_FIELDS}"
    printed = _unless(_FORGOTTEN, "squeue", "--all", "--noheader", form, *arguments) or ""
    found = []
    for line in printed.splitlines():
        fields = line.strip().split("|")
        if len(fields) == len(_Job._fields):
            place = fields[1] if fields[1].isdigit() else ""
            found.append(_Job(fields[0], place, *fields[2:]))
    return found


def _status(id: str, by_number: Mapping[str, Sequence[_Job]]) -> JobStatus:
    which, _, name = id.partition("@")
    number, _, place = which.partition("_")
    jobs = [
        each
        for each in by_number.get(number, ())
        if each.name == name and (not place or each.place == place)
    ]
    if not jobs:
        return JobStatus(id, JobState.UNKNOWN)
    waiting = [each for each in jobs if each.state in _WAITING and not each.is_over]
    ended = sum(each.is_over for each in jobs)
    if ended == len(jobs):
        state = JobState.ENDED
    else:
        state = JobState.WAITING if len(waiting) == len(jobs) else JobState.RUNNING
    return JobStatus(
        id=id,
        state=state,
        size=len(jobs),
        waiting=len(waiting),
        ended=ended,
        reason=_reason_of(waiting),
        detail=_HELD if any(_is_held_launch(each.state, each.reason) for each in jobs) else None,
        succeeded=all(each.state == "COMPLETED" for each in jobs),
    )


def _reason_of(waiting: Sequence[_Job]) -> str:
    """Return the reason of the waiting jobs.

    Priority and JobArrayTaskLimit are normal: one of them is returned only if no job has another
    reason."""
    reasons = [each.reason for each in waiting if each.reason not in ("None", "")]
    specific = [each for each in reasons if each not in ("JobArrayTaskLimit", "Priority")]
    return next(iter(specific or reasons), "")


def _details(number: str, name: str) -> dict[str, str] | None:
    """Return the fields that scontrol shows; None if the job is unknown or has another name."""
    printed = _unless(_FORGOTTEN, "scontrol", "--oneliner", "show", "job", number)
    details = fields_of(printed or "")
    return details if details.get("JobName") == name else None


def fields_of(printed: str) -> dict[str, str]:
    """Return the fields of a line of `scontrol show job`; values may have spaces. Pure.

    Args:
        printed: The line, such as `JobId=7 JobName=train StdErr=/home/ann/my run/7.out`.
    """
    pairs = (field.partition("=") for field in _FIELD.split(printed.strip()))
    return {key: value for key, _, value in pairs}


def outcome_of(number: str, details: Mapping[str, str]) -> Outcome:
    """Return how an attempt without a report ended, from the output of scontrol. Pure.

    Args:
        number: The number of the job, for the reason.
        details: The fields that `scontrol show job` prints.
    """
    state, reason = details.get("JobState", ""), details.get("Reason", "")
    job = f"The job {number}"
    nodes = details.get("NodeList", "")
    where = f" on {nodes}" if nodes not in ("", "(null)") else ""
    code, _, signum = details.get("ExitCode", "0:0").partition(":")
    was_killed = signum not in ("", "0")
    if state in _LOST:
        how = "preempted by another job" if state == "PREEMPTED" else f"ended with its node{where}"
        return lost(f"{job} was {how} ({state}).")
    # Slurm also reports JobLaunchFailure for programs that were killed after their launch.
    if _is_held_launch(state, reason) or (reason == "JobLaunchFailure" and not was_killed):
        return lost(f"{job} could not be started{where} ({reason}).")
    if state in ("TIMEOUT", "DEADLINE"):
        limit = details.get("TimeLimit", "")
        return timed_out(
            f"{job} ran for longer than its limit of {limit}, and was stopped by Slurm."
        )
    if state == "OUT_OF_MEMORY":
        memory = details.get("MinMemoryNode") or details.get("MinMemoryCPU") or "0"
        return out_of_memory(job, f"the limit of {memory}" if memory != "0" else "the limit")
    if state == "CANCELLED":
        why = f"{job} was cancelled, by scancel or by an administrator."
        return failed(why, retryable=False)
    if state == "COMPLETED":
        return lost(
            f"{job} ended well{where}, and its report is not in the datastore. See that the "
            "datastore is the same folder on all nodes."
        )
    how = f"was killed by signal {signum}" if was_killed else f"ended with exit code {code}"
    more = "" if was_killed or reason in ("None", "", "NonZeroExitCode") else f" ({reason})"
    return failed(
        f"{job} {how}{where} before it could report{more}.",
        retryable=code != str(NO_RETRY_EXIT_CODE),
    )


def _output_ends(path: str) -> str:
    """Return the last lines of a job's output, to which it writes before it can report."""
    try:
        with open(path, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - TAIL_SIZE))
            tail = file.read().decode("utf-8", "replace").splitlines()[-TAIL_LINES:]
    except (OSError, ValueError):  # on another machine, or never written
        return ""
    shown = quoted(tail)
    return f" Its output, {path}, ends with:{shown}" if shown else ""


# ------------------------------------------------------------------ commands


def _sbatch(arguments: Sequence[str], script: str, variables: Mapping[str, str]) -> str:
    """Submit a job whose output is appended to its file, and return its number."""
    printed = _run(
        "sbatch", "--parsable", "--export=ALL", "--open-mode=append", *arguments,
        script=script, more=variables, refused=JobRefused,
    )  # fmt: skip
    number = printed.strip().split("\n")[-1].partition(";")[0]
    if not number.isdigit():
        raise JobSystemError(f"sbatch did not print the number of the job, but {printed!r}.")
    return number


def _unless(known: re.Pattern[str], command: str, *arguments: str) -> str | None:
    """Return the output of the command; None if its error is a known one."""
    try:
        return _run(command, *arguments)
    except JobSystemError as error:
        if isinstance(error, JobSystemBusy) or not known.search(str(error)):
            raise
        return None


def _run(
    command: str,
    *arguments: str,
    script: str = "",
    more: Mapping[str, str] | None = None,
    refused: type[JobSystemError] = JobSystemError,
) -> str:
    """Return the output of the command, with the script as its input.

    Raises JobSystemBusy, InvalidSetting if the command is not installed, and `refused` for other
    errors."""
    try:
        done = subprocess.run(
            [command, *arguments],
            check=False,
            input=script,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=TIMEOUT,
            env=environment_of_jobs({"SLURM_TIME_FORMAT": "standard", **(more or {})}),
        )
    except FileNotFoundError as error:
        raise InvalidSetting(
            f"There is no {command} here: run the flow on a machine from which Slurm is used, or "
            "run its steps elsewhere."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise JobSystemBusy(f"{command} did not end within {TIMEOUT:.0f} seconds.") from error
    except OSError as error:
        raise JobSystemBusy(f"{command} could not be started: {error.strerror}.") from error
    if done.returncode == 0:
        return done.stdout
    output = done.stderr.strip() or done.stdout.strip()
    message = " ".join(_NOISE.sub("", output).split()).rstrip(".") or f"exit code {done.returncode}"
    if _BUSY.search(output):
        raise JobSystemBusy(f"{command}: {message}.")
    # A controller that has just started rejects every job until its nodes have registered.
    if _NO_NODE in output and "unk" in _run("sinfo", "-h", "-o", "%t"):
        raise JobSystemBusy(f"{command}: {message}: nodes have not registered with it yet.")
    raise refused(f"{command}: {message}.")
