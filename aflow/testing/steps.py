"""Test a step of a flow by running it as a function, without a run.

    from aflow.testing import run_step

    def test_training_lowers_the_loss():
        done = run_step(MyFlow.train, inputs={"data": [1, 2]}, parameters={"lr": 0.1})
        assert done.artifacts["loss"] < 1
        assert done.next == ("evaluate",)

Nothing is written to disk: artifacts are kept in memory, pickled and unpickled as in a real run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from aflow._core.clock import SystemClock
from aflow._core.ids import PARAMETERS_STEP, PARAMETERS_TASK
from aflow._core.process import outer_loop_paused
from aflow.errors import InvalidInput
from aflow.flow.spec import FlowSpec
from aflow.runs.create import included, parameter_values
from aflow.runs.spin import alone
from aflow.scheduler.messages import (
    FromBranches,
    FromForeach,
    FromTask,
    Inputs,
    NoInputs,
    encode_inputs,
)
from aflow.storage.artifacts import ArtifactReader, ArtifactWriter, Manifest
from aflow.storage.blobs import BlobStore
from aflow.storage.items import ItemReader, write_items
from aflow.storage.memory import MemoryStore
from aflow.task.config_binding import configured
from aflow.task.inputs import KnownManifests, TaskArtifacts, no_metadata
from aflow.task.runner import AttemptRunner, Execution
from aflow.task.spec import NO_RUN, AttemptSpec

if TYPE_CHECKING:
    from aflow.flow.definition import FlowDefinition, StepDefinition
    from aflow.task.spec import AttemptReport

__all__ = ["StepResult", "run_step"]

_NOTHING = object()
_BEFORE = 1  # number of the task before this one, or of the task that opened the foreach
_THIS = 2  # number of the task itself; the inputs of a join have the following numbers


class StepResult(NamedTuple):
    """The result of a step.

    `artifacts` are all artifacts that the next step can read, by name, with parameters and class
    constants. `next` are the next steps; empty for the last step. `items` are the items of the
    foreach that the step opens; None if it opens none.
    """

    artifacts: dict[str, Any]
    next: tuple[str, ...]
    items: list[Any] | None


def run_step(
    step: Callable[..., Any],
    *,
    inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]] = (),
    parameters: Mapping[str, Any] | None = None,
    input: Any = _NOTHING,
    index: int = 0,
    flow: type[FlowSpec] | None = None,
) -> StepResult:
    """Run one step, as in `run_step(MyFlow.train, inputs={"x": 1})`. Exceptions of the step are
    raised unchanged: @retry, @catch and @cache do not apply. Errors that would fail the task are
    raised too: InvalidParameter, InvalidTransition, ArtifactNotPicklable, TaskTimedOut.

    Args:
        step: The step.
        inputs: The artifacts of the previous step, by name. For a join those of each input: a list
            for a foreach, {step: artifacts} for branches.
        parameters: The values of parameters, by attribute; the others have their defaults.
        input: The item of the foreach, `self.input`.
        index: The index of the item, `self.index`.
        flow: The flow; needed only for a step that several flows inherit.

    Returns:
        The artifacts and the transition of the step.

    Raises:
        InvalidInput: If the step cannot have these inputs.
    """
    flow = flow or _flow_of(step)
    definition = alone(configured(flow), step.__name__)
    return _Bench(definition, parameters or {}).run(step.__name__, inputs, input, index)


def _flow_of(step: Callable[..., Any]) -> type[FlowSpec]:
    """Return the flow class whose body defines the step."""
    name = getattr(step, "__name__", "")
    found = [each for each in _subclasses(FlowSpec) if vars(each).get(name) is step]
    if len(found) != 1:
        raise InvalidInput(
            f"{step!r} is not a step of a flow: give run_step a step by its class, as in "
            "run_step(MyFlow.train)."
        )
    return found[0]


def _subclasses(cls: type[FlowSpec]) -> Iterable[type[FlowSpec]]:
    for each in cls.__subclasses__():
        yield each
        yield from _subclasses(each)


class _Bench:
    """An in-memory environment for one step of a flow."""

    def __init__(self, definition: FlowDefinition, parameters: Mapping[str, Any]) -> None:
        self._definition = definition
        self._blobs = BlobStore(MemoryStore())
        self._writer = ArtifactWriter(self._blobs)
        resolved = parameter_values(definition, parameters, user="test", ds_type="memory")
        values = included(definition.parameters, resolved)
        first = self._manifest(PARAMETERS_STEP, {**definition.constants, **values})
        self._read_only = sorted(first.artifacts)
        self._manifests = KnownManifests(first)

    def run(self, name: str, inputs: Any, item: Any, index: int) -> StepResult:
        """Run the step and return its result."""
        step = self._definition.steps[name]
        flow, project = self._definition.name, self._definition.project
        current_facts = None if project is None else project.place(flow, NO_RUN.user)
        context = NO_RUN._replace(flow=flow, current_facts=current_facts)
        spec = self._spec(step, inputs, item, index)
        runner = _Runner(context, self._blobs, no_metadata, SystemClock())
        runner.definition = self._definition
        runner.manifests = self._manifests
        if step.is_async:
            import asyncio

            with outer_loop_paused():  # of a notebook, or of an asynchronous test
                report = asyncio.run(runner.run_async(spec))
        else:
            report = runner.run(spec)
        return self._result(report)

    # ------------------------------------------------------------ inputs

    def _spec(self, step: StepDefinition, inputs: Any, item: Any, index: int) -> AttemptSpec:
        found = (
            self._join(step, inputs) if step.takes_inputs else self._line(step, inputs, item, index)
        )
        opens = item is not _NOTHING
        return AttemptSpec(
            step=step.name,
            task=_THIS,
            attempt=0,
            inputs=encode_inputs(found),
            split=_BEFORE if opens else None,
            split_index=index if opens else None,
            splits=index + 1 if opens else None,
            opens_index=opens,
            final=True,
            fallback=False,
            manifests={},
        )

    def _line(self, step: StepDefinition, inputs: Any, item: Any, index: int) -> Inputs:
        """Return the input of a step that is not a join."""
        if inputs and not isinstance(inputs, Mapping):
            raise InvalidInput(
                f"Step {step.name!r} is not a join: its inputs are a mapping of artifacts by name."
            )
        node = self._definition.graph[step.name]
        before = node.previous[0] if node.previous else PARAMETERS_STEP
        manifest = self._manifest(before, dict(inputs), inherits=True)
        if item is not _NOTHING:
            if not node.splits:
                raise InvalidInput(f"Step {step.name!r} is in no foreach: it has no self.input.")
            if index < 0:
                raise InvalidInput(f"The index of an item is 0 or more, not {index}.")
            manifest.items, count = write_items(
                [item] * (index + 1), self._blobs, NO_RUN.max_num_splits
            )
            manifest.transition = (
                (step.name,),
                self._definition.graph[node.splits[-1]].foreach,
                count,
            )
        self._manifests.add(_BEFORE, manifest, before)
        if step.name == self._definition.graph.start and not inputs:
            return NoInputs()
        return FromTask(_BEFORE)

    def _join(self, step: StepDefinition, inputs: Any) -> Inputs:
        node = self._definition.graph[step.name]
        self._manifests.add(_BEFORE, self._manifest(node.previous[0], {}, inherits=True), "")
        if isinstance(inputs, Mapping):
            return self._branches(step, inputs)
        for place, artifacts in enumerate(inputs):
            manifest = self._manifest(node.previous[0], dict(artifacts), inherits=True)
            number = _THIS + 1 + place
            self._manifests.add(number, manifest, node.previous[0], _BEFORE, place)
        return FromForeach(_BEFORE, (node.previous[0],), len(inputs))

    def _branches(self, step: StepDefinition, inputs: Mapping[str, Any]) -> Inputs:
        numbers = []
        for place, (name, artifacts) in enumerate(inputs.items()):
            if name not in self._definition.graph[step.name].previous:
                raise InvalidInput(
                    f"{name!r} does not lead to step {step.name!r}: the inputs of a join are "
                    "{step: artifacts}, or for a foreach a list of artifacts."
                )
            numbers.append(_THIS + 1 + place)
            manifest = self._manifest(name, dict(artifacts), inherits=True)
            self._manifests.add(numbers[-1], manifest, name)
        return FromBranches(tuple(numbers))

    def _manifest(self, step: str, values: Mapping[str, Any], inherits: bool = False) -> Manifest:
        entries = {name: self._writer.save(name, value) for name, value in values.items()}
        inherited = {int(PARAMETERS_TASK): self._read_only} if inherits else {}
        return Manifest(step, entries, inherited)

    # ------------------------------------------------------------ results

    def _result(self, report: AttemptReport) -> StepResult:
        assert report.manifest is not None, "a step that did not raise has left something"
        manifest = Manifest.decode(report.manifest)
        reader = ArtifactReader(self._blobs)
        entries = TaskArtifacts(_THIS, manifest, self._manifests, reader).entries()
        values = {name: reader.load(name, entry) for name, (_, entry) in sorted(entries.items())}
        steps, foreach, count = manifest.transition
        if foreach is None or count is None:
            return StepResult(values, tuple(steps), None)
        items = ItemReader(self._blobs)
        each = [items.read(manifest.items, place).value(self._blobs) for place in range(count)]
        return StepResult(values, tuple(steps), each)


class _Runner(AttemptRunner):
    """Raises the error of an attempt instead of reporting it."""

    def _fail(self, execution: Execution) -> AttemptReport:
        assert execution.error is not None, "an attempt fails with an error"
        raise execution.error
