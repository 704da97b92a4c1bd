"""The lifecycle of a run: creation, execution, recovery, resumption and garbage collection."""

from aflow._core.lazy import modules_of

__all__ = ["liveness", "recovery", "resume", "spin"]

# Imported lazily: few runs need these modules, and importing them delays the first task.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from aflow.runs import liveness, recovery, resume, spin
else:
    __getattr__ = modules_of(__name__, __all__)
