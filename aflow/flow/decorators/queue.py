"""@queue: run the step on a worker of a queue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, overload

from aflow.errors import InvalidDecorator
from aflow.flow.decorators.base import F, StepDecorator, decorate

_ALLOWED = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


@dataclass(frozen=True, slots=True)
class Queue(StepDecorator):
    """The pool of workers that the step runs on, where the run uses a queue; else it runs here."""

    name: ClassVar[str] = "queue"
    pool: str = "default"

    def __post_init__(self) -> None:
        pool: object = self.pool
        if not isinstance(pool, str) or not 0 < len(pool) <= 40 or set(pool) - _ALLOWED:
            raise InvalidDecorator(
                f"@queue: pool={self.pool!r} is no name of a pool: use letters, digits and _ . -, "
                "40 of them at most."
            )

    def shapes_result(self) -> None:
        """None: where a step runs makes no difference."""


@overload
def queue(function: F) -> F: ...
@overload
def queue(*, pool: str = "default") -> Callable[[F], F]: ...
def queue(function: object = None, **options: Any) -> Any:
    """Run the step on a worker of this pool, in runs with `--executor queue`."""
    return decorate(Queue, function, options)
