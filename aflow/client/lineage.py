"""Which tasks a task had as its inputs, and which had it as theirs.

Parents are written in a task's record. Children are found by looking at the tasks of the steps
that the task went to: inside of a foreach only at those of the same item.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby, takewhile
from typing import TYPE_CHECKING

from aflow.flow.graph import Kind
from aflow.scheduler.codec import decode_inputs
from aflow.scheduler.messages import FromBranches, FromForeach, FromTask

if TYPE_CHECKING:
    from aflow.client.source import RunSource
    from aflow.metadata.base import TaskView
    from aflow.storage.manifest import Manifest


def parents(source: RunSource, view: TaskView, light: bool = False) -> Iterator[TaskView]:
    """The input tasks: of branches as the split named them, of a foreach by index. `light` views
    have no manifests."""
    inputs = decode_inputs(view.task.inputs)
    if isinstance(inputs, FromForeach):
        all_views = source.metadata.tasks(
            source.key, split=inputs.split, steps=inputs.steps, light=light
        )
        # A switch that loops leaves several tasks for one item; the last one went on.
        for _, same in groupby(all_views, key=lambda each: each.task.index):
            *_, last = same
            yield last
        return
    if isinstance(inputs, FromBranches):
        wanted = inputs.tasks
    else:
        wanted = (inputs.task,) if isinstance(inputs, FromTask) else ()
    for task in wanted:
        found = source.metadata.task(source.key, task)
        if found is not None:
            yield found


def children(
    source: RunSource, view: TaskView, manifest: Manifest, light: bool = False
) -> Iterator[TaskView]:
    """The tasks that have begun with this one as an input. `manifest` is the task's own."""
    for step in manifest.transition[0]:
        for each in _candidates(source, view, manifest, step, light):
            if _reads(each, view):
                yield each


def _candidates(
    source: RunSource, view: TaskView, manifest: Manifest, step: str, light: bool
) -> Iterator[TaskView]:
    """The tasks of a step that can have this one as an input, few enough to be looked at."""
    tasks, key = source.metadata.tasks, source.key
    split, index = view.task.split, view.task.index
    if manifest.transition[2] is not None:
        return tasks(key, split=view.task.task, steps=(step,), light=light)
    if split is None or index is None or _closes_foreach(source, step):
        return tasks(key, step=step, light=light)
    from_here = tasks(key, split=split, steps=(step,), after=index - 1, light=light)
    return takewhile(lambda each: each.task.index == index, from_here)


def _closes_foreach(source: RunSource, step: str) -> bool:
    """Whether the step is the join of a foreach: then it stands outside of what it reads."""
    nodes = source.graph.nodes.values()
    return any(node.join == step and node.kind in (Kind.FOREACH, Kind.PARALLEL) for node in nodes)


def _reads(child: TaskView, parent: TaskView) -> bool:
    match decode_inputs(child.task.inputs):
        case FromTask(task):
            return task == parent.task.task
        case FromBranches(tasks):
            return parent.task.task in tasks
        case FromForeach(split, steps):
            return split == parent.task.split and parent.task.step in steps
        case _:
            return False
