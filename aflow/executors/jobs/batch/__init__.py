"""AWS Batch as a job system: job definitions, and the outcome of ended jobs."""

from __future__ import annotations

from aflow._core.lazy import modules_of

__all__ = ["definitions", "job_system"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from aflow.executors.jobs.batch import definitions, job_system
else:
    __getattr__ = modules_of(__name__, __all__)
