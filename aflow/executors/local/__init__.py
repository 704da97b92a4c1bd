"""Run attempts in processes of this machine."""

from aflow._core.lazy import modules_of

__all__ = ["worker_processes"]

# Imported on first use: only isolation `worker` and coroutine steps need it.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from aflow.executors.local import worker_processes
else:
    __getattr__ = modules_of(__name__, __all__)
