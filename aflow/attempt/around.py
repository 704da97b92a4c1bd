"""What decorators do around a step, inside the process of its task.

A decorator that acts there names a class of this kind in `StepDecorator.around`. One object is made
for each attempt. The outermost decorator comes first before the step, and last after it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aflow.attempt.spec import AttemptSpec, RunContext
    from aflow.clock import Clock
    from aflow.flow.decorators.base import StepDecorator
    from aflow.flow.definition import FlowDefinition, StepDefinition
    from aflow.flow.spec import FlowSpec
    from aflow.storage.blobs import BlobStore
    from aflow.storage.manifest import Manifest


@dataclass(slots=True)
class Scene:
    """What an attempt has around it.

    `inputs` is the second argument of a join's step, None for others. `values` are what `current`
    gives: names may be added. `shared` is for what several decorators of an attempt have in common.
    """

    definition: FlowDefinition
    step: StepDefinition
    flow: FlowSpec
    inputs: Any
    spec: AttemptSpec
    context: RunContext
    blobs: BlobStore
    clock: Clock
    values: dict[str, Any]
    shared: dict[str, Any] = field(default_factory=dict)


class Around:
    """The part of a decorator that acts. Every method does nothing unless it is overridden."""

    def __init__(self, decorator: StepDecorator, scene: Scene) -> None:
        self.decorator = decorator
        self.scene = scene

    def before(self) -> None:
        """The flow is bound and `current` is set. What it raises fails the step."""

    def call(self, step: Callable[[], object]) -> object:
        """Run the step, and all that is inside of this decorator."""
        return step()

    async def call_async(self, step: Callable[[], Awaitable[object]]) -> object:
        """The same for a coroutine step."""
        return await step()

    def after(self, error: BaseException | None) -> None:
        """The step is over, with this error or none; what is set on the flow now is stored still.
        Called whenever `before` was. What it raises fails the step."""

    def stored(self, manifest: Manifest) -> None:
        """The step has succeeded and all that it left is stored, but nobody knows yet."""

    def failed(self, error: BaseException) -> None:
        """The attempt has failed."""


Makers = tuple[tuple[type[Around], "StepDecorator"], ...]


def makers_of(step: StepDefinition) -> Makers:
    """The classes of what acts around the step, outermost first."""
    return tuple((_class_of(each.around), each) for each in step.decorators if each.around)


def _class_of(path: str) -> type[Around]:
    module, _, name = path.partition(":")
    found: type[Around] = getattr(import_module(module), name)
    return found


def call_through(arounds: list[Around], step: Callable[[], object]) -> None:
    """Run the step inside of all of them."""
    for each in reversed(arounds):
        step = _inside(each, step)
    step()


def _inside(around: Around, step: Callable[[], object]) -> Callable[[], object]:
    return lambda: around.call(step)


async def await_through(arounds: list[Around], step: Callable[[], Awaitable[object]]) -> None:
    """The same for a coroutine step."""
    for each in reversed(arounds):
        step = _inside_async(each, step)
    await step()


def _inside_async(
    around: Around, step: Callable[[], Awaitable[object]]
) -> Callable[[], Awaitable[object]]:
    return lambda: around.call_async(step)
