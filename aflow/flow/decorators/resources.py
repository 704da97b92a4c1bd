"""@resources: what a step needs. For executors that have resources to give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, overload

from aflow.flow.decorators.base import F, Number, StepDecorator, decorate


@dataclass(frozen=True, slots=True)
class Resources(StepDecorator):
    """What the step needs: CPUs, GPUs, disk, memory and shared memory in MB.

    Executors on one machine have nothing to choose from and ignore it.
    """

    name: ClassVar[str] = "resources"
    cpu: Number = 1
    gpu: Number | None = None
    disk: Number | None = None
    memory: Number = 4096
    shared_memory: Number | None = None

    def __post_init__(self) -> None:
        self._number("cpu", positive=True)
        self._number("memory", positive=True)
        for option in ("gpu", "disk", "shared_memory"):
            if getattr(self, option) is not None:
                self._number(option)

    def shapes_result(self) -> None:
        """None: more of them make it quicker, not different."""


@overload
def resources(function: F) -> F: ...
@overload
def resources(
    *,
    cpu: Number = 1,
    gpu: Number | None = None,
    disk: Number | None = None,
    memory: Number = 4096,
    shared_memory: Number | None = None,
) -> Callable[[F], F]: ...
def resources(function: object = None, **options: Any) -> Any:
    """Say what the step needs; see Resources."""
    return decorate(Resources, function, options)
