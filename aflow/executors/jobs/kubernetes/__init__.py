"""Kubernetes as a job system: access to the API server, manifests of Jobs, settings."""

from __future__ import annotations

from aflow._core.lazy import modules_of

__all__ = ["access", "job_system", "manifest", "settings"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from aflow.executors.jobs.kubernetes import access, job_system, manifest, settings
else:
    __getattr__ = modules_of(__name__, __all__)
