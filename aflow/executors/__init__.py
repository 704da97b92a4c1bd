"""Executors: they start attempts on this machine, on workers or as jobs."""

from __future__ import annotations

from aflow._core.lazy import modules_of

__all__ = ["protocol", "queue_workers"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from aflow.executors import protocol, queue_workers
else:
    __getattr__ = modules_of(__name__, __all__)
