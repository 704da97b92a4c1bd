"""Spin: run one step again, alone, with the inputs of a task of an earlier run (the origin).

The new run is of kind SPIN, which lists of runs do not show. It contains the records of the input
tasks, which share the origin's blobs and keep the task numbers of the origin, and one task that
runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from aflow._core import ids
from aflow._core.ids import PARAMETERS_TASK
from aflow._core.records import NamedTuple, replace
from aflow.errors import InvalidInput, NotFound, StorageError
from aflow.flow.graph import Kind
from aflow.metadata.base import AttemptRecord, TaskRecord
from aflow.runs.cache.history import LOOK_BACK
from aflow.runs.cache.key import input_manifests
from aflow.scheduler.messages import (
    FromBranches,
    FromForeach,
    FromTask,
    LaunchAttempt,
    decode_inputs,
)
from aflow.scheduler.states import AttemptState, TaskState
from aflow.storage.artifacts import Manifest
from aflow.task.inputs import Manifests

if TYPE_CHECKING:
    from aflow._core.settings import SpinOptions
    from aflow.flow.definition import FlowDefinition
    from aflow.metadata.base import MetadataStore, RunRecord, TaskView
    from aflow.storage.artifacts import ArtifactWriter

# A spin should show the behavior of the step immediately: without retries, cached results, or
# exceptions that @catch turns into artifacts.
_LEFT_OUT = ("cache", "catch", "retry")


class Settled(NamedTuple):
    """A task that is recorded as finished before the run starts."""

    task: TaskRecord
    attempt: AttemptRecord


class Spin(NamedTuple):
    """The contents of a spin: the encoded manifest of task 0, the input tasks, and the launch."""

    parameters: bytes
    inputs: list[Settled]
    launch: LaunchAttempt


def alone(definition: FlowDefinition, step: str, *, bare: bool = False) -> FlowDefinition:
    """Return the flow with the step's decorators removed that must not apply to a spin: @cache,
    @catch and @retry, or all of them if `bare`.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        step: The name of the step to spin.
        bare: Whether to remove all decorators of the step.
    """
    spun = definition.steps[step]
    kept = tuple(
        each for each in spun.decorators if not bare and each.decorator_name not in _LEFT_OUT
    )
    steps = {**definition.steps, step: replace(spun, decorators=kept)}
    return replace(definition, steps=steps)


# ------------------------------------------------------------ which task


def find_task(metadata: MetadataStore, flow: str, options: SpinOptions) -> tuple[RunRecord, int]:
    """Return the run and the number of the task to spin: the first failed task of the step, or its
    first task if none has failed.

    Args:
        metadata: The metadata store that has the origin.
        flow: The name of the flow.
        options: The step, and optionally the run and the task.

    Raises:
        NotFound: If there is no such run, or it has no task of the step.
    """
    if options.run is None:
        runs = metadata.runs(flow, limit=LOOK_BACK)
        missing = (
            f"the latest run of {flow} has not"
            if len(runs) == 1
            else f"none of the latest {len(runs)} runs of {flow} has"
        )
    else:
        run = metadata.run(flow, ids.run_id(options.run))
        if run is None:
            raise NotFound(f"There is no run {flow}/{options.run} in {metadata.url}.")
        runs = [run]
        missing = f"{flow}/{options.run} has not"
    for run in runs:
        views = [*metadata.tasks(run.key, step=options.step, light=True)]
        if options.task is not None:
            views = [view for view in views if view.task.task == options.task]
        if views:
            failed = (view for view in views if view.state is TaskState.FAILED)
            return run, next(failed, views[0]).task.task
    which = options.step if options.task is None else f"{options.step}/{options.task}"
    raise NotFound(f"There is no task {which} to spin: {missing} got as far. Run the flow first.")


# ------------------------------------------------------------ the inputs of the task


def prepare(
    metadata: MetadataStore,
    writer: ArtifactWriter,
    definition: FlowDefinition,
    origin: RunRecord,
    task: int,
    artifacts: Mapping[str, Any],
) -> Spin:
    """Return the inputs of the task and its launch command.

    Args:
        metadata: The metadata store that has the origin.
        writer: Stores the replacement artifacts.
        definition: The flow: its class, steps, parameters and decorators.
        origin: The record of the origin.
        task: The number of the task in the origin.
        artifacts: Values that replace artifacts of the inputs, by name; for a join by the pathspec
            of the input task, then by name.

    Raises:
        InvalidInput: If the step has become a join, or is no longer one, since the origin; if it
            belongs to a gang; if a task that it reads has failed; or if `artifacts` is invalid.
    """
    view = metadata.task(origin.key, task)
    assert view is not None, "the task was found a moment ago"
    step = view.task.step
    inputs = decode_inputs(view.task.inputs)
    joins = isinstance(inputs, FromBranches | FromForeach)
    if joins is not definition.steps[step].takes_inputs:
        raise InvalidInput(
            f"{origin.flow}/{origin.run}/{step}/{task} cannot be spun: step {step!r} was "
            f"{'a' if joins else 'no'} join in that run, and is {'none' if joins else 'one'} now."
        )
    manifests = Manifests(lambda: metadata, origin.key)
    try:
        found = dict(input_manifests(inputs, manifests))
        launch = _launch(view, manifests)
    except StorageError as error:  # a generator has failed after the tasks of its first items began
        raise InvalidInput(
            f"{origin.flow}/{origin.run}/{step}/{task} cannot be spun without the results that it "
            f"reads: {error}"
        ) from error
    _replace_artifacts(origin, found, artifacts, joins, writer)
    around = definition.graph.nodes[step].splits
    if around and definition.graph.nodes[around[-1]].kind is Kind.PARALLEL:
        raise InvalidInput(f"Step {step!r} is a member of a gang, which cannot be spun alone.")
    parameters = found.pop(int(PARAMETERS_TASK), None) or manifests.of(int(PARAMETERS_TASK))
    if type(inputs) is FromForeach:
        found.setdefault(inputs.split, manifests.of(inputs.split))
    for owner in {owner for each in found.values() for owner in each.inherited}:
        if owner != PARAMETERS_TASK:
            found.setdefault(owner, manifests.of(owner))
    settled = [*_settled(metadata, origin, found)]
    return Spin(parameters.encode(), settled, launch)


def _launch(view: TaskView, manifests: Manifests) -> LaunchAttempt:
    task, inputs = view.task, decode_inputs(view.task.inputs)
    opens = type(inputs) is FromTask and inputs.task == task.split
    count = None if task.split is None else manifests.of(task.split).transition[2]
    return LaunchAttempt(
        task=task.task,
        step=task.step,
        attempt=0,
        inputs=inputs,
        split=task.split,
        index=task.index,
        count=count,
        opens_index=opens,
    )


def _settled(
    metadata: MetadataStore, origin: RunRecord, manifests: Mapping[int, Manifest]
) -> Iterator[Settled]:
    for number, manifest in sorted(manifests.items()):
        view = metadata.task(origin.key, number)
        assert view is not None, "a task with a manifest has a record"
        assert view.attempt is not None, "and it has an attempt"
        come_from = view.task.origin or f"{origin.run}/{view.task.step}/{number}"
        times = view.attempt.started_at, view.attempt.finished_at
        yield Settled(
            view.task._replace(origin=come_from, cache_key=None),
            AttemptRecord(number, 0, AttemptState.SUCCEEDED, *times, manifest=manifest.encode()),
        )


def _replace_artifacts(
    origin: RunRecord,
    found: Mapping[int, Manifest],
    artifacts: Mapping[str, Any],
    joins: bool,
    writer: ArtifactWriter,
) -> None:
    if not joins:
        _put(next(iter(found.values())), artifacts, writer)
        return
    run = f"{origin.flow}/{origin.run}"
    numbers = {f"{run}/{each.step}/{number}": number for number, each in found.items()}
    for pathspec, values in artifacts.items():
        number = numbers.get(pathspec)
        if number is None or not isinstance(values, Mapping):
            raise InvalidInput(
                f"ARTIFACTS of a join are {{pathspec: {{name: value}}}}, and {pathspec!r} is none "
                f"of its inputs. They are: {', '.join(numbers)}."
            )
        _put(found[number], values, writer)


def _put(manifest: Manifest, values: Mapping[str, Any], writer: ArtifactWriter) -> None:
    """Replace artifacts of the task by other values."""
    for name, value in values.items():
        manifest.artifacts[name] = writer.save(name, value)
    manifest.inherited = {
        owner: [name for name in names if name not in values]
        for owner, names in manifest.inherited.items()
    }
