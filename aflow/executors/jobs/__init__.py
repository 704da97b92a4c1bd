"""Run attempts as jobs: the port of job systems, the executor, and one backend per module."""

from __future__ import annotations

from aflow._core.lazy import modules_of

__all__ = ["base", "batch", "executor", "kubernetes", "options", "slurm"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from aflow.executors.jobs import base, batch, executor, kubernetes, options, slurm
else:
    __getattr__ = modules_of(__name__, __all__)
