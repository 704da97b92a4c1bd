"""The identity of a job, from environment variables set by its job system."""

from __future__ import annotations

import socket
from typing import NamedTuple

from aflow._core.settings import environment_value, looked_up

BATCH, SLURM, KUBERNETES = "batch", "slurm", "kubernetes"
AGAIN = "~"  # separates a worker's name from the number of its try


class JobPlace(NamedTuple):
    """The identity of this process as a job.

    `worker` is the name under which it reports; `index` selects its attempt in the submission.
    `tries` is the number of times that the system has started it. A gang has several `nodes`; if
    `main_ends_all`, the end of node 0 ends all of them. If `echoes`, the system keeps a log of the
    job, to which the output of the task is copied."""

    worker: str
    index: int = 0  # type: ignore[assignment]
    tries: int = 1
    nodes: int = 1
    main_ends_all: bool = False
    echoes: bool = True


def place_of_this_job() -> JobPlace:
    """Return the place of this process; AFLOW_JOB_SYSTEM names the system that started it."""
    system = looked_up("JOB_SYSTEM")
    if system == KUBERNETES:
        return _kubernetes()
    return _slurm() if system == SLURM else _batch()


def _batch() -> JobPlace:
    node = environment_value("AWS_BATCH_JOB_NODE_INDEX")
    job = (environment_value("AWS_BATCH_JOB_ID") or socket.gethostname()).partition("#")[0]
    return JobPlace(
        job if node is None else f"{job}#{node}",
        int(node or environment_value("AWS_BATCH_JOB_ARRAY_INDEX") or 0),
        int(environment_value("AWS_BATCH_JOB_ATTEMPT") or 1),
        int(environment_value("AWS_BATCH_JOB_NUM_NODES") or 1),
        main_ends_all=True,
    )


def _slurm() -> JobPlace:
    # Names of jobs are unique; ids may be reused after a crash of Slurm's controller.
    name = environment_value("SLURM_JOB_NAME") or "job"
    array, place = environment_value("SLURM_ARRAY_JOB_ID"), environment_value("SLURM_ARRAY_TASK_ID")
    job = f"{array or environment_value('SLURM_JOB_ID') or socket.gethostname()}@{name}"
    tries = int(environment_value("SLURM_RESTART_COUNT") or 0) + 1
    nodes = int(looked_up("JOB_NODES") or 1)
    if nodes > 1:
        node = int(environment_value("SLURM_PROCID") or 0)
        return JobPlace(f"{job}#{node}", node, tries, nodes, echoes=False)
    worker = job if place is None else f"{job}:{place}"
    return JobPlace(worker, int(place or 0), tries, echoes=False)


def _kubernetes() -> JobPlace:
    index = int(environment_value("JOB_COMPLETION_INDEX") or 0)
    tries = int(looked_up("JOB_TRIES") or 0) + 1
    nodes = int(looked_up("JOB_NODES") or 1)
    worker = looked_up("JOB_ID") or socket.gethostname()
    if nodes > 1:
        worker += f"#{index}"
    elif int(looked_up("JOB_SIZE") or 1) > 1:
        worker += f":{index}"
    # The replacement of a disrupted pod numbers its reports from the start again.
    worker += f"{AGAIN}{tries}" if tries > 1 else ""
    return JobPlace(worker, index, tries, nodes)
