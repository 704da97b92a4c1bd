"""@queue: run the step on a worker of a queue."""

from __future__ import annotations

from typing import ClassVar

from aflow._core.records import dataclass
from aflow.errors import InvalidDecorator
from aflow.flow.decorators.base import StepDecorator, written

_ALLOWED = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueDecorator(StepDecorator):
    """Set the pool of workers on which the step runs, if the run has a queue.

    The default is `gpu` for a step that requests GPUs with @resources, and `default` for others.
    """

    decorator_name: ClassVar[str] = "queue"
    pool: str | None = None

    def __post_init__(self) -> None:
        pool: object = self.pool
        if pool is None:
            return
        if not isinstance(pool, str) or not 0 < len(pool) <= 40 or set(pool) - _ALLOWED:
            raise InvalidDecorator(
                f"@queue: pool={self.pool!r} is not a name of a pool: use letters, digits and _ . "
                "-, 40 of them at most."
            )

    def shapes_result(self) -> None:
        """Return None: the result does not depend on where a step runs."""


queue = written(QueueDecorator)
"""Run the step on workers of a pool if the run has a queue; see QueueDecorator."""
