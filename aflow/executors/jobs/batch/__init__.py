"""AWS Batch as a job system: definitions of jobs, and what it says of jobs that have ended."""

from __future__ import annotations

from aflow._core.lazy import modules_of

__all__ = ["definitions", "job_system"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from aflow.executors.jobs.batch import definitions, job_system
else:
    __getattr__ = modules_of(__name__, __all__)
