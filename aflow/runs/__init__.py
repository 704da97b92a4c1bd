"""One run, from its creation to its end."""

from aflow._core.lazy import modules_of

__all__ = ["liveness", "recovery", "resume", "spin"]

# What few runs need, and the first task of all others would wait for.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from aflow.runs import liveness, recovery, resume, spin
else:
    __getattr__ = modules_of(__name__, __all__)
