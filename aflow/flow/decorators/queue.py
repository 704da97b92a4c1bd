"""@queue: run the step on a worker of a queue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, overload

from aflow._core.records import dataclass
from aflow.errors import InvalidDecorator
from aflow.flow.decorators.base import F, StepDecorator, decorate

_ALLOWED = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


@dataclass(frozen=True, slots=True)
class QueueDecorator(StepDecorator):
    """The pool of workers that the step runs on, where the run has a queue; else it runs here.
    Without one it is `gpu` for a step that asks for GPUs by @resources, else `default`."""

    name: ClassVar[str] = "queue"
    pool: str | None = None

    def __post_init__(self) -> None:
        pool: object = self.pool
        if pool is None:
            return
        if not isinstance(pool, str) or not 0 < len(pool) <= 40 or set(pool) - _ALLOWED:
            raise InvalidDecorator(
                f"@queue: pool={self.pool!r} is not a name of a pool: use letters, digits and _ . "
                "-, "
                "40 of them at most."
            )

    def shapes_result(self) -> None:
        """None: where a step runs makes no difference."""


@overload
def queue(function: F) -> F: ...
@overload
def queue(*, pool: str | None = None) -> Callable[[F], F]: ...
def queue(function: object = None, **options: Any) -> Any:
    """Run the step on a worker of this pool, in runs that have a queue (`--queue`, AFLOW_QUEUE).

    Args:
        function: The function that is decorated; None where options are given.
        **options: The options, by name.

    Returns:
        The decorated function or class; with options alone, what decorates one.
    """
    return decorate(QueueDecorator, function, options)
