"""Actions of decorators around a step, inside the process of its task.

Such a decorator names its subclass of StepHook in `StepDecorator.hook_class`. One object is created
for each attempt. The outermost decorator acts first before the step, and last after it.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from aflow._core.records import dataclass, field
from aflow.errors import InvalidDecorator, InvalidTransition
from aflow.flow.graph import Kind
from aflow.task.environment import Variables

if TYPE_CHECKING:
    from aflow._core.clock import Clock
    from aflow.flow.custom import UserStepDecorator
    from aflow.flow.decorators.base import StepDecorator
    from aflow.flow.definition import FlowDefinition, StepDefinition
    from aflow.flow.spec import FlowSpec
    from aflow.storage.artifacts import Manifest
    from aflow.storage.blobs import BlobStore
    from aflow.task.spec import AttemptSpec, RunContext


@dataclass(slots=True)
class Scene:
    """The environment of an attempt.

    `inputs` is the second argument of a join's step, None for others. `values` are those of
    `current`; hooks may add names. `shared` is for state that several decorators of an attempt
    share.
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


class StepHook:
    """The part of a decorator that acts around a step. Methods do nothing unless overridden."""

    def __init__(self, decorator: StepDecorator, scene: Scene) -> None:
        self.decorator = decorator
        self.scene = scene

    def before(self) -> None:
        """Run before the step: the flow is bound and `current` is set. Exceptions fail the step."""

    def call(self, step: Callable[[], object]) -> object:
        """Run the step, and all hooks inside of this one.

        Args:
            step: Runs the step and the hooks inside of this one.
        """
        return step()

    async def call_async(self, step: Callable[[], Awaitable[object]]) -> object:
        """Run a coroutine step, and all hooks inside of this one.

        Args:
            step: Runs the coroutine step and the hooks inside of this one.
        """
        return await step()

    def after(self, error: BaseException | None) -> None:
        """Run after the step. Called whenever `before` was; exceptions fail the step.

        Attributes that are set on the flow are still stored.

        Args:
            error: The exception of the step; None if it has succeeded.
        """

    def stored(self, manifest: Manifest) -> None:
        """Run when the artifacts of a successful attempt are stored, before it is reported.

        Args:
            manifest: The type, size and blob of each artifact.
        """

    def failed(self, error: BaseException) -> None:
        """Run when an attempt has failed.

        Args:
            error: The exception that ended the attempt.
        """


HookClasses = tuple[tuple[type[StepHook], "StepDecorator"], ...]


def hook_classes(step: StepDefinition) -> HookClasses:
    """Return the hook classes of a step with their decorators, outermost first.

    Args:
        step: The step, with its decorators.
    """
    return tuple((_class_of(each.hook_class), each) for each in step.decorators if each.hook_class)


def _class_of(path: str) -> type[StepHook]:
    module, _, name = path.partition(":")
    found: type[StepHook] = getattr(import_module(module), name)
    return found


def call_through(hooks: list[StepHook], step: Callable[[], object]) -> None:
    """Run the step inside of all hooks.

    Args:
        hooks: The hooks of the step's decorators, the outermost first.
        step: Runs the step.
    """
    for each in reversed(hooks):
        step = partial(each.call, step)
    step()


async def await_through(hooks: list[StepHook], step: Callable[[], Awaitable[object]]) -> None:
    """Run a coroutine step inside of all hooks.

    Args:
        hooks: The hooks of the step's decorators, the outermost first.
        step: Runs the coroutine step.
    """
    for each in reversed(hooks):
        step = partial(each.call_async, step)
    await step()


# Custom step decorators: actions before, instead of and after the step.


class CustomHook(StepHook):
    """One custom decorator, in one attempt."""

    def __init__(self, decorator: Any, scene: Scene) -> None:
        super().__init__(decorator, scene)
        self._custom: UserStepDecorator = copy.copy(decorator)  # copied, since it may keep state

    def call(self, step: Callable[[], object]) -> object:
        """Run `pre_step`, the step or its replacement, and `post_step`."""
        error, follow = None, None
        body = self._body(step)
        try:
            follow = body() or None
        except Exception as raised:  # noqa: BLE001 -- the decorator decides how to handle it
            error = raised
        self._conclude(error, follow)
        return None

    async def call_async(self, step: Callable[[], Awaitable[object]]) -> object:
        """Do the same for a coroutine step, whose replacement may be a coroutine, too."""
        error, follow = None, None
        body = self._body(step)
        try:
            result = body()
            follow = (await result if inspect.isawaitable(result) else result) or None
        except Exception as raised:  # noqa: BLE001 -- the decorator decides how to handle it
            error = raised
        self._conclude(error, follow)
        return None

    def _body(self, step: Callable[[], object]) -> Callable[[], object]:
        """Call `pre_step`; return the step, or what replaces it and returns what follows."""
        instead = self._pre_step()
        if self._custom.skip_step:
            return lambda: self._custom.skip_step
        return step if instead is None else lambda: instead(*self._arguments)

    @property
    def _arguments(self) -> tuple[Any, ...]:
        scene = self.scene
        return (scene.flow, scene.inputs) if scene.step.takes_inputs else (scene.flow,)

    def _pre_step(self) -> Any:
        return self._custom.pre_step(self.scene.step.name, self.scene.flow, self.scene.inputs)

    def _conclude(self, error: Exception | None, follow: Any) -> None:
        result = self._post_step(error)
        if isinstance(result, tuple) and len(result) == 2:
            result, follow = result
        if isinstance(result, Exception):
            raise result
        if result is not None:
            raise InvalidDecorator(
                f"@{self._custom.decorator_name}: post_step gave {type(result).__name__}: it has "
                "to give an exception, None, or a pair of that and what self.next() takes."
            )
        if error is not None or (follow is not None and follow is not False):
            self._go_on(follow)

    def _post_step(self, error: Exception | None) -> Any:
        try:
            return self._custom.post_step(self.scene.step.name, self.scene.flow, error)
        except Exception as raised:  # noqa: BLE001 -- it is the outcome of the step
            return raised

    def _go_on(self, follow: Any) -> None:
        """Call self.next() for a step that did not, with the arguments of its source.

        If `follow` is a non-empty dict, it contains other options.
        """
        flow, step = self.scene.flow, self.scene.step
        node = self.scene.definition.graph[step.name]
        if not node.next:
            return
        flow.__dict__.pop("_aflow_next", None)
        steps = [getattr(flow, name) for name in node.next]
        if isinstance(follow, dict) and follow:
            flow.next(*steps, **follow)
        elif node.kind is Kind.PARALLEL:
            raise InvalidDecorator(
                f"@{self._custom.decorator_name}: step {step.name!r} starts a gang, whose size is "
                'not known if it does not run: skip it with {"num_parallel": ...}.'
            )
        elif node.kind is Kind.SWITCH:
            cases = {case: getattr(flow, name) for case, name in node.cases}
            flow.next(cases, condition=node.condition)
        else:
            flow.next(*steps, foreach=node.foreach)


# Gangs: `current.parallel` describes the gang to its members.


_VARIABLES = Variables("pytorch_parallel")
_PORTS = 51_000, 10_000  # the first port, and the number of ports: above the usual ephemeral range


class Gang(NamedTuple):
    """The place of a member in its gang.

    The address of member 0, the number of members, the index of this member, and the task of member
    0.
    """

    main_ip: str
    num_nodes: int
    node_index: int
    control_task_id: str


class ParallelHook(StepHook):
    """Provides `current.parallel` to a member of a gang."""

    def before(self) -> None:
        """Set `current.parallel`.

        Raises:
            InvalidTransition: If the step is not in a gang.
        """
        spec = self.scene.spec
        if not spec.opens_index or spec.split_index is None or spec.splits is None:
            raise InvalidTransition(
                f"Step {spec.step!r} has @{self.decorator.decorator_name}, and was not started "
                f"with self.next(self.{spec.step}, num_parallel=...)."
            )
        # Members start together, so their tasks have consecutive numbers.
        control = str(spec.task - spec.split_index)
        address = spec.address or self.scene.context.address
        self.gang = Gang(address, spec.splits, spec.split_index, control)
        self.scene.values["parallel"] = self.gang


class PytorchHook(ParallelHook):
    """Provides `current.parallel` and the variables of torch.distributed."""

    _found: Mapping[str, str] = {}

    def before(self) -> None:
        """Set `current.parallel` and the variables of torch.distributed."""
        super().before()
        decorator: Any = self.decorator
        run = "".join(filter(str.isdigit, self.scene.context.run)) or "0"
        first, count = _PORTS
        port = decorator.master_port or first + int(run) % count
        found = {
            "MASTER_ADDR": self.gang.main_ip,
            "MASTER_PORT": str(int(port)),
            "NODE_RANK": str(self.gang.node_index),
            "NUM_NODES": str(self.gang.num_nodes),
            "WORLD_SIZE": str(self.gang.num_nodes),
        }
        _VARIABLES.take(found)
        self._found = found

    def after(self, error: BaseException | None) -> None:
        """Restore the variables.

        Args:
            error: The exception of the step; None if it has succeeded.
        """
        _VARIABLES.release(self._found)
        self._found = {}
