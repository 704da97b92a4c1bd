"""The runs of a flow as they were recorded, to find in them the task that stood in a place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from aflow._core.ids import PARAMETERS_STEP
from aflow.runs.cache.key import CodeFingerprints, KeyInputs, Value, key_inputs_of, recorded_code
from aflow.scheduler.messages import FromTask, decode_inputs
from aflow.scheduler.states import TaskState
from aflow.storage.artifacts import ArtifactReader
from aflow.storage.items import ItemReader
from aflow.task.inputs import Manifests

if TYPE_CHECKING:
    from aflow.metadata.base import MetadataStore, RunRecord, TaskRecord, TaskView
    from aflow.storage.blobs import BlobStore

LOOK_BACK = 20  # earlier runs that are searched for a task


class TaskPosition(NamedTuple):
    """Where a task stands in any run of a flow: its step, the index in every foreach around it
    (outermost first), and for a step that a switch leads back to, which time it is."""

    step: str
    position: tuple[int, ...]
    turn: int


class TaskPositions:
    """Gives tasks their places; they come in the order of their numbers."""

    def __init__(self) -> None:
        self._positions: dict[int, tuple[int, ...]] = {}
        self._turns: Counter[tuple[str, tuple[int, ...]]] = Counter()

    def of(self, task: int, step: str, split: int | None, index: int | None) -> TaskPosition:
        """Return the position of the next task; tasks have to come in the order of their numbers.

        Args:
            task: The number of the task within its run.
            step: The name of the step.
            split: The task that opened the foreach; None outside of one.
            index: The index in the foreach; None outside of one.
        """
        position = () if split is None else self._positions.get(split, ())
        if index is not None:
            position = (*position, index)
        self._positions[task] = position
        self._turns[step, position] += 1
        return TaskPosition(step, position, self._turns[step, position])


class RecordedRun:
    """One run, read from the metadata as far as it is asked for."""

    def __init__(self, metadata: MetadataStore, blobs: BlobStore, record: RunRecord) -> None:
        self.record = record
        self._metadata = metadata
        self._manifests = Manifests(lambda: metadata, record.key)
        self._reader = ArtifactReader(blobs)
        self._items = ItemReader(blobs, hold=True)

    def tasks(self) -> Iterator[tuple[TaskPosition, TaskView]]:
        """Yield every task with its place, in the order of their numbers; no manifests are read."""
        places = TaskPositions()
        for view in self._metadata.tasks(self.record.key, light=True):
            task = view.task
            if task.step != PARAMETERS_STEP:
                yield places.of(task.task, task.step, task.split, task.index), view

    @cached_property
    def succeeded(self) -> dict[TaskPosition, TaskView]:
        """Its finished tasks by their places."""
        return {place: view for place, view in self.tasks() if view.state is TaskState.SUCCEEDED}

    @cached_property
    def code(self) -> CodeFingerprints | None:
        """The code that it was started with."""
        return recorded_code(self._metadata, self.record.key)

    def key_inputs(self, task: TaskRecord) -> KeyInputs:
        """Return what the result of one of its tasks rests on.

        Args:
            task: The task, as the run has recorded it.
        """
        inputs = decode_inputs(task.inputs)
        item = None
        if type(inputs) is FromTask and inputs.task == task.split and task.index is not None:
            items = self._manifests.of(inputs.task).items
            item = None if items is None else item_value(self._items, items, task.index)
        return key_inputs_of(task.step, inputs, item, self.code, self._manifests, self._reader)

    def pathspec(self, task: TaskRecord) -> str:
        """Return the pathspec of a task of the run.

        Args:
            task: The task, as the run has recorded it.
        """
        return f"{self.record.flow}/{self.record.run}/{task.step}/{task.task}"


def item_value(reader: ItemReader, items: object, index: int) -> Value:
    """Return the item of a foreach, to be compared and shown.

    Args:
        reader: Reads single items from the datastore.
        items: The items of the foreach, as the manifest has them.
        index: The index of the item within the foreach.
    """
    item = reader.read(items, index)
    return Value(item.digest, item.text)


class History:
    """The latest runs of a flow, newest first; each is read when a task is looked for in it."""

    def __init__(
        self, metadata: MetadataStore, blobs: BlobStore, runs: Iterable[RunRecord]
    ) -> None:
        self._runs = [RecordedRun(metadata, blobs, run) for run in runs][:LOOK_BACK]

    def find(self, place: TaskPosition) -> tuple[RecordedRun, TaskRecord] | None:
        """Return the latest finished task in this place, and its run.

        Args:
            place: The place of the task in the run.
        """
        for run in self._runs:
            view = run.succeeded.get(place)
            if view is not None:
                return run, view.task
        return None
