"""Spinning: one step runs again, alone, on what a task of an earlier run had as its inputs.

The new run is of kind SPIN, which no list shows. It holds the records of the input tasks, taken
over by key with the numbers that they have in the origin, and one task that runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from aflow._core import ids
from aflow._core.ids import PARAMETERS_TASK
from aflow._core.records import NamedTuple, replace
from aflow.errors import InvalidInput, NotFound
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

# A spin is to show what the step does, at once: not a second attempt, not a result of
# before, not a failure that is turned into an artifact.
_LEFT_OUT = ("cache", "catch", "retry")


class Settled(NamedTuple):
    """A task that is recorded as finished before the run begins."""

    task: TaskRecord
    attempt: AttemptRecord


class Spin(NamedTuple):
    """What a spin begins with. `parameters` is the manifest of task 0."""

    parameters: bytes
    inputs: list[Settled]
    launch: LaunchAttempt


def alone(definition: FlowDefinition, step: str, *, bare: bool = False) -> FlowDefinition:
    """Return the flow with the step as it is spun: without decorators that have no place there, or
    (with `bare`) without any.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        step: The name of the step that is spun.
        bare: Whether all decorators are left out.
    """
    spun = definition.steps[step]
    kept = tuple(
        each for each in spun.decorators if not bare and each.decorator_name not in _LEFT_OUT
    )
    steps = {**definition.steps, step: replace(spun, decorators=kept)}
    return replace(definition, steps=steps)


# ------------------------------------------------------------ which task


def find_task(metadata: MetadataStore, flow: str, options: SpinOptions) -> tuple[RunRecord, int]:
    """Return the run and the number of the task to spin: of several the first that failed, else the
    first.

    Args:
        metadata: The metadata store that has the earlier run.
        flow: The name of the flow.
        options: What to run, and with which inputs.

    Raises:
        NotFound: There is no such run, or it has no task of the step.
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


# ------------------------------------------------------------ what it begins with


def prepare(
    metadata: MetadataStore,
    writer: ArtifactWriter,
    definition: FlowDefinition,
    origin: RunRecord,
    task: int,
    artifacts: Mapping[str, Any],
) -> Spin:
    """Return the inputs of the task, and its launch. `artifacts` take the place of those of its
    inputs: values by name, for a join {pathspec of the input task: values by name}.

    Args:
        metadata: The metadata store that has the earlier run.
        writer: Stores the artifacts that replace others.
        definition: The flow: its class, steps, parameters and decorators.
        origin: The record of the earlier run.
        task: The number of the task within its run.
        artifacts: The artifacts that replace those of the inputs, by name.

    Raises:
        InvalidInput: The step has changed so that the inputs no longer fit.
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
    found = dict(input_manifests(inputs, manifests))
    _replace_artifacts(origin, found, artifacts, joins, writer)
    launch = _launch(view, manifests)
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
    """Let the task have left other values."""
    for name, value in values.items():
        manifest.artifacts[name] = writer.save(name, value)
    manifest.inherited = {
        owner: [name for name in names if name not in values]
        for owner, names in manifest.inherited.items()
    }
