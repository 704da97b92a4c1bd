"""Determine whether a run is being driven; the only implementation, for all commands and `gc`.

A running run has a lease (`MetadataStore.acquire_lease`), which its coordinator renews every few
seconds, from whatever container, pid namespace or host. The process that created the run is not
checked: another coordinator may have recovered the run. Expiry is measured by the clock of the
metadata store, so that clock differences between hosts do not matter.

Runs of deployed flows have no coordinator: the status of the engine replaces the lease. If the
engine does not respond, its run counts as running, since the opposite error would delete results.
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
"""The kind of lease holder of runs that Step Functions drives, without a coordinator."""

Asked = Literal["over", "asked", "ended"]

_RENEWED = 0.5  # seconds of additional validity from which a lease counts as renewed
_TRIES = 10  # attempts to commit the end of a run, against a late coordinator that still commits


_log = logging.getLogger("aflow")


class Engine(NamedTuple):
    """The status of a run according to its engine: whether it is running, None if the engine does
    not respond, and a sentence about it."""

    goes_on: bool | None
    status: str = ""


def holder_named(kind: str) -> str:
    """Return a new, globally unique name for a lease holder in this process.

    Args:
        kind: The kind of lease holder: `coordinator`, `gc` and so on.
    """
    return f"{kind}/{socket.gethostname()}-{os.getpid()}-{os.urandom(6).hex()}"


def is_driven(run: RunRecord) -> bool:
    """Return whether a coordinator or an engine drives the run. Blocks for a request to AWS if the
    run is one of a deployed flow.

    Args:
        run: The run, read recently: the validity of its lease is that at the time of the read.
    """
    if run.state in TERMINAL_RUN_STATES or run.lease is None:
        return False
    if is_deployed(run):
        return engine_of(run).goes_on is not False
    return run.lease.left > 0


def is_left(run: RunRecord) -> bool:
    """Return whether the run is orphaned: recorded as running, but not driven.

    Args:
        run: The run, read recently.
    """
    return run.state not in TERMINAL_RUN_STATES and not is_driven(run)


def left_for(run: RunRecord) -> float:
    """Return for how many seconds an orphaned run has had no coordinator; infinity if unknown.

    Args:
        run: The run, read recently.
    """
    if run.lease is None or is_deployed(run):
        return float("inf")
    return max(0.0, -run.lease.left)


def is_deployed(run: RunRecord) -> bool:
    """Return whether the run is one of a deployed flow, which an engine drives.

    Args:
        run: The run; its lease may have expired.
    """
    return run.lease is not None and run.lease.holder.startswith(f"{ENGINE}/")


def engine_of(run: RunRecord) -> Engine:
    """Return the status of a deployed run's execution in Step Functions. Blocks.

    Args:
        run: A deployed run, whose settings contain the state machine and the execution.
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
    """Return the current record of a run that is not driven; None if the run is driven.

    Blocks for up to about LEASE seconds if the run has a valid lease: a live coordinator renews it
    in that time, that of a killed one expires.

    Args:
        metadata: The metadata store, which is read once a second.
        run: The run, as it was read before.
        rest: Sleeps for a number of seconds.
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
        reason: The reason, as one sentence.
        at: The present time, in seconds since the epoch.

    Returns:
        `asked` if the coordinator that drives or recovers the run was asked to stop it, `ended` if
        the run was not driven and is now recorded as cancelled, `over` if it had ended before.

    Raises:
        MetadataError: If the metadata store does not respond.
        AwsError: If AWS refuses to stop the execution of a deployed run.
    """
    if run.state in TERMINAL_RUN_STATES:
        return "over"
    if is_deployed(run):
        engine = engine_of(run)
        if engine.goes_on:
            aws.client.stop_execution(
                run.settings["engine"]["machine"], run.settings["engine"]["execution"], reason
            )
        elif engine.goes_on is None:  # jobs that still run will notice that the run has ended
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
    """Record the end of an orphaned run and of its attempts, and terminate its jobs. Blocks. Raises
    MetadataError.

    Args:
        metadata: The metadata store.
        run: The run, which no coordinator drives.
        state: The final state of the run: failed or cancelled.
        reason: The reason, as one sentence.
        at: The present time, in seconds since the epoch.

    Returns:
        True if the end was recorded; False if the run has ended, or a coordinator has recovered it.
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
        except VersionConflict:  # a coordinator with an expired lease has committed: try again
            continue
        _end_jobs([each.handle for each in end.attempts], reason)
        return True
    if not deployed:
        metadata.release_lease(run.key, holder)
    return False


def _end_jobs(handles: Sequence[str], reason: str) -> None:
    """Terminate the jobs with these handles: the run has no coordinator that would do it."""
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


# By job system: the pattern of a job id, with which the handle of an attempt starts.
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
