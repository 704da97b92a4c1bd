"""The jobs of runs at AWS Batch, Slurm and Kubernetes, read from aflow's own records.

The job systems are not queried, so readers need no credentials for them. All calls block.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from aflow.executors.jobs.board import JobsOfRun, of_runs_that_go_on
from aflow.scheduler.states import LIVE_RUN_STATES, AttemptState

if TYPE_CHECKING:
    from aflow.metadata.base import HandedAttempt, MetadataStore, RunRecord

_MOST_RUNS = 500  # active runs
_MOST_ROWS = 1000  # steps with jobs
_MEMBER = re.compile(r"[#:]\d+(~.*)?\Z")  # index of a member of an array, or of a node
_SUBMITTING = "name="  # prefix of the handle of a job that has no id yet


def queues(metadata: MetadataStore) -> dict[str, Any]:
    """Return the queues of all job systems that have jobs of active runs: for each step the number
    of waiting and running tasks, since when and why. `complete` is False if the list is truncated.

    Args:
        metadata: The metadata store.
    """
    jobs = of_runs_that_go_on(metadata.jobs())
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    rows = 0
    # If there are no documents, no job system has jobs: skip reading the runs.
    runs = metadata.runs(None, states=LIVE_RUN_STATES, limit=_MOST_RUNS) if jobs else []
    for run in runs:
        mine = jobs.get((run.flow, run.run), ())
        counts = metadata.live_counts(run.key) if mine else {}
        for each in mine:
            for step, queue in each.queues.items():
                row = _row(run, each, step, counts.get(step, {}))
                if row is not None and rows < _MOST_ROWS:
                    found.setdefault((each.system, queue), []).append(row)
                    rows += 1
    return {
        "queues": [
            {
                "system": system,
                "queue": queue,
                "waiting": sum(step["waiting"] for step in steps),
                "running": sum(step["running"] for step in steps),
                "steps": steps,
            }
            for (system, queue), steps in sorted(found.items())
        ],
        "complete": rows < _MOST_ROWS and len(runs) < _MOST_RUNS,
    }


def _row(
    run: RunRecord, jobs: JobsOfRun, step: str, counts: dict[AttemptState, int]
) -> dict[str, Any] | None:
    waiting = counts.get(AttemptState.QUEUED, 0)
    running = counts.get(AttemptState.RUNNING, 0)
    if not waiting and not running:
        return None
    mine = [each for each in jobs.waiting if each.step == step and waiting]
    return {
        "run": f"{run.flow}/{run.run}",
        "user": run.user,
        "step": step,
        "waiting": waiting,
        "running": running,
        "since": min((each.since for each in mine), default=None),
        "reason": next((each.reason for each in mine if each.reason), ""),
    }


def jobs_of(
    metadata: MetadataStore, run: RunRecord, step: str | None, after: int, limit: int
) -> dict[str, Any]:
    """Return a page of the unfinished jobs of a run or a step, ordered by task: state, place and
    start time of each. `next` is the task after which the next page starts; None on the last page.

    Args:
        metadata: The metadata store.
        run: The run; a finished run has no jobs.
        step: The name of the step; None for all steps.
        after: The number of the last task of the previous page; -1 for the first page.
        limit: The maximum size of the page.
    """
    known = of_runs_that_go_on(metadata.jobs()).get((run.flow, run.run), ())
    page = metadata.handed(run.key, step, after, limit)
    systems = {step: (each.system, queue) for each in known for step, queue in each.queues.items()}
    waits = {waiting.job: waiting for each in known for waiting in each.waiting}
    rows = [
        _job(each, *systems[each.step], waits.get(_array_of(each.handle)))
        for each in page
        if each.step in systems
    ]
    return {"jobs": rows, "next": page[-1].task if len(page) == limit else None}


def _job(each: HandedAttempt, system: str, queue: str, waits: Any) -> dict[str, Any]:
    runs = each.state is AttemptState.RUNNING
    is_submitting = each.handle.startswith(_SUBMITTING)
    return {
        "task": each.task,
        "step": each.step,
        "attempt": each.attempt,
        "system": system,
        "queue": queue,
        "job": "" if is_submitting else each.handle,
        "state": "running" if runs else "submitting" if is_submitting else "waiting",
        "host": each.host if runs else "",
        "since": each.started_at if runs else waits.since if waits else each.created_at,
        "reason": waits.reason if waits and not runs else "",
    }


def _array_of(handle: str) -> str:
    """Return the id of the job without the index of an array member or of a node."""
    return _MEMBER.sub("", handle)
