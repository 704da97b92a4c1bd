"""Whether anybody drives a run: decided here alone, for every command and for `gc`.

A run that goes on has a lease (`MetadataStore.acquire_lease`), which its coordinator renews every
few seconds wherever it runs: in another container, pid namespace or host, and whether it began the
run or has taken it up. Where the process that began the run is says nothing. The store's own clock
decides, so that clocks of machines may differ.

Runs of deployed flows have no coordinator: there the engine's word stands for the lease. An engine
that cannot be asked is believed to go on, since the other mistake deletes results.
"""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from aflow import aws
from aflow._core.records import NamedTuple
from aflow.errors import AflowError, VersionConflict
from aflow.executors import jobs as job_systems
from aflow.metadata.base import LEASE, Batch, RunUpdate
from aflow.scheduler.messages import CancelRequested, encode_events
from aflow.scheduler.states import TERMINAL_RUN_STATES, AttemptState, RunState, TaskState

if TYPE_CHECKING:
    from aflow.executors.jobs.base import JobSystem
    from aflow.metadata.base import MetadataStore, RunRecord

ENGINE = "step-functions"
"""The kind of lease holder of runs that an engine drives, without a coordinator of ours."""

Asked = Literal["over", "asked", "ended"]

_RENEWED = 0.5  # seconds by which a lease has to have grown to have been renewed
_TRIES = 10  # to write the end of a run, while a coordinator that was late still writes


_log = logging.getLogger("aflow")


class Engine(NamedTuple):
    """What an engine says of a run: whether it goes on, None where it cannot be asked, and in its
    own words what has become of it."""

    goes_on: bool | None
    status: str = ""


def holder_named(kind: str) -> str:
    """Return a new name of a lease holder in this process, which no other has.

    Args:
        kind: What holds the lease: `coordinator`, `gc` and so on.
    """
    return f"{kind}/{socket.gethostname()}-{os.getpid()}-{os.urandom(6).hex()}"


def is_driven(run: RunRecord) -> bool:
    """Return whether somebody drives the run. Asks AWS for runs of deployed flows; blocks then.

    Args:
        run: The run, read just now: the age of its lease counts.
    """
    if run.state in TERMINAL_RUN_STATES or run.lease is None:
        return False
    if is_deployed(run):
        return engine_of(run).goes_on is not False
    return run.lease.left > 0


def is_left(run: RunRecord) -> bool:
    """Return whether the run goes on by its record, and nobody drives it.

    Args:
        run: The run, read just now.
    """
    return run.state not in TERMINAL_RUN_STATES and not is_driven(run)


def left_for(run: RunRecord) -> float:
    """Return for how many seconds an orphaned run has had no coordinator; infinity where that is
    not known.

    Args:
        run: The run, read just now.
    """
    if run.lease is None or is_deployed(run):
        return float("inf")
    return max(0.0, -run.lease.left)


def is_deployed(run: RunRecord) -> bool:
    """Return whether an engine drives the run, and no coordinator.

    Args:
        run: The run, whose lease may have expired.
    """
    return run.lease is not None and run.lease.holder.startswith(f"{ENGINE}/")


def engine_of(run: RunRecord) -> Engine:
    """Return what Step Functions says of the execution of a deployed run. Blocks.

    Args:
        run: A deployed run, whose settings name the state machine and the execution.
    """
    engine = run.settings.get("engine") or {}
    if "machine" not in engine:
        return Engine(None, "the run does not say which state machine it is of")
    try:
        found = aws.client.execution_status(engine["machine"], engine["execution"])
    except AflowError as error:
        return Engine(None, str(error))
    if found is None:
        return Engine(False, f"Step Functions no longer knows the execution {engine['execution']}.")
    return Engine(found == "RUNNING", f"Step Functions ended the execution with {found}.")


def settled(
    metadata: MetadataStore, run: RunRecord, rest: Callable[[float], object]
) -> RunRecord | None:
    """Return a run that goes on by its record, watched until it is known whether somebody drives
    it: None where somebody does, else the run as it is now. Takes LEASE seconds at most: a
    coordinator that lives renews its lease meanwhile, and that of one that was killed expires.
    Blocks.

    Args:
        metadata: The metadata store, which is read again every second.
        run: The run, as it was read before.
        rest: Waits for a number of seconds.
    """
    waited = 0.0
    while is_driven(run):
        assert run.lease is not None, "who drives a run has a lease"
        if is_deployed(run) or waited > LEASE + 1:
            return None
        before = run.lease.left
        rest(1.0)
        waited += 1.0
        now = metadata.run(run.flow, run.run)
        if now is None:
            return run
        if now.lease is not None and now.lease.left > before - 1.0 + _RENEWED:
            return None
        run = now
    return run


def request_end(metadata: MetadataStore, run: RunRecord, reason: str, at: float) -> Asked:
    """Cancel a run. Blocks.

    Args:
        metadata: The metadata store.
        run: The run to cancel.
        reason: Why, in one sentence.
        at: When it happened, in seconds since the epoch.

    Returns:
        The coordinator that drives or recovers it is asked to stop it (`asked`), and one that
        nobody drives is recorded as cancelled (`ended`); `over` where it has ended before.

    Raises:
        MetadataError: Where AWS refuses to stop the execution of a deployed run.
        AwsError: Where AWS refuses to stop the execution of a deployed run.
    """
    if run.state in TERMINAL_RUN_STATES:
        return "over"
    if is_deployed(run):
        engine = engine_of(run)
        if engine.goes_on:
            aws.client.stop_execution(
                run.settings["engine"]["machine"], run.settings["engine"]["execution"], reason
            )
        elif engine.goes_on is None:  # jobs of it that still run find that the run has ended
            reason = f"{reason} (AWS could not be asked about its execution: {engine.status})"
    elif metadata.request_cancel(run.key, reason) and is_driven(run):
        return "asked"
    if end_left_run(metadata, run, RunState.CANCELLED, reason, at):
        return "ended"
    now = metadata.run(run.flow, run.run)
    return "over" if now is None or now.state in TERMINAL_RUN_STATES else "asked"


def end_left_run(
    metadata: MetadataStore, run: RunRecord, state: RunState, reason: str, at: float
) -> bool:
    """Record the end of a run that nobody drives, with that of its attempts. It is not where
    somebody has taken the run up meanwhile, or where it has ended. Blocks. Raises MetadataError.

    Args:
        metadata: The metadata store.
        run: The run, which no coordinator drives.
        state: The state in which the run ends: failed or cancelled.
        reason: Why, in one sentence.
        at: When it happened, in seconds since the epoch.

    Returns:
        False where the run has a holder again, or has ended.
    """
    holder = holder_named("ending")
    deployed = is_deployed(run)
    if not deployed and not metadata.acquire_lease(run.key, holder, LEASE, at).mine:
        return False
    for _ in range(_TRIES):
        now = metadata.run(run.flow, run.run)
        if now is None or now.state in TERMINAL_RUN_STATES:
            return False
        end = _end_of(metadata, now, state, reason, at)
        try:
            metadata.commit(run.key, now.version, end)
        except VersionConflict:  # by a coordinator whose lease has expired: it is refused from now
            continue
        _end_jobs([each.handle for each in end.attempts], reason)
        return True
    if not deployed:
        metadata.release_lease(run.key, holder)
    return False


def _end_jobs(handles: Sequence[str], reason: str) -> None:
    """End the jobs that have these handles: nobody else is left to do it."""
    for pattern, title, job_system in _JOB_SYSTEMS:
        found = (re.match(pattern, each) for each in handles)
        jobs = sorted({each[0] for each in found if each is not None})
        if not jobs:
            continue
        try:
            with closing(job_system()) as system:
                most = system.limits.terminated
                for at in range(0, len(jobs), most):
                    system.terminate(jobs[at : at + most], reason[:1000])
        except AflowError as error:
            _log.warning("Jobs of %s go on (%s), and have to be ended there: %s", title,
                         ", ".join(jobs[:5]), error)  # fmt: skip


def _batch() -> JobSystem[Any]:
    return job_systems.batch.job_system.BatchSystem(aws.client.AwsClient())


def _slurm() -> JobSystem[Any]:
    return job_systems.slurm.SlurmSystem(Path())


def _kubernetes() -> JobSystem[Any]:
    kubernetes = job_systems.kubernetes
    return kubernetes.job_system.KubernetesSystem(kubernetes.access.KubernetesCluster())


# The ids of jobs, as handles begin with them.
_JOB_SYSTEMS = (
    (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(?=[:#]|\Z)", "AWS Batch", _batch),
    (r"\d+@[A-Za-z0-9_-]+(?=[:#]|\Z)", "Slurm", _slurm),
    (r"k8s@[a-z0-9-]+@[a-z0-9-]+(?=[:#~]|\Z)", "Kubernetes", _kubernetes),
)


def _end_of(
    metadata: MetadataStore, run: RunRecord, state: RunState, reason: str, at: float
) -> Batch:
    out = metadata.newest_tasks(run.key, states=[TaskState.RUNNING])
    ended = [
        view.attempt._replace(state=AttemptState.CANCELLED, finished_at=at, reason=reason)
        for view in out
        if view.attempt is not None
    ]
    return Batch(
        events=encode_events([(at, CancelRequested(reason))]),
        attempts=ended,
        run=RunUpdate(state, at, reason),
    )
