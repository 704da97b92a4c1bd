"""Read finished and running flows as objects: flows, runs, steps, tasks and artifacts.

    run = Flow("MyFlow").latest_successful_run
    run.data.score
    [task.data.loss for task in run["train"]]

All calls are synchronous (they need no event loop, and work inside a running one), lazy (a value is
read when it is accessed) and thread-safe. Listings start with the newest.
"""

from __future__ import annotations

from aflow.client.artifact import DataArtifact, TaskData
from aflow.client.flow import Flow, Metaflow
from aflow.client.run import Run
from aflow.client.step import Step
from aflow.client.task import Task
from aflow.client.where import (
    connect_to,
    default_metadata,
    default_namespace,
    get_metadata,
    get_namespace,
    inspect_spin,
    metadata,
    namespace,
)

__all__ = [
    "DataArtifact",
    "Flow",
    "Metaflow",
    "Run",
    "Step",
    "Task",
    "TaskData",
    "connect_to",
    "default_metadata",
    "default_namespace",
    "get_metadata",
    "get_namespace",
    "inspect_spin",
    "metadata",
    "namespace",
]
