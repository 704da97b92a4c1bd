"""The recorded runs of a flow, in which to find an earlier task by its position."""

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
    """The position of a task, comparable between runs of a flow: its step, the index in every
    enclosing foreach (outermost first), and the iteration of a step in a loop, from 1."""

    step: str
    position: tuple[int, ...]
    turn: int


class TaskPositions:
    """Computes the positions of tasks, which must be given in the order of their numbers."""

    def __init__(self) -> None:
        self._positions: dict[int, tuple[int, ...]] = {}
        self._turns: Counter[tuple[str, tuple[int, ...]]] = Counter()

    def of(self, task: int, step: str, split: int | None, index: int | None) -> TaskPosition:
        """Return the position of the next task. Call in the order of the task numbers.

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
    """One recorded run, read lazily from the metadata store."""

    def __init__(self, metadata: MetadataStore, blobs: BlobStore, record: RunRecord) -> None:
        self.record = record
        self._metadata = metadata
        self._manifests = Manifests(lambda: metadata, record.key)
        self._reader = ArtifactReader(blobs)
        self._items = ItemReader(blobs, hold=True)

    def tasks(self) -> Iterator[tuple[TaskPosition, TaskView]]:
        """Yield every task with its position, in the order of the numbers, without manifests."""
        places = TaskPositions()
        for view in self._metadata.tasks(self.record.key, light=True):
            task = view.task
            if task.step != PARAMETERS_STEP:
                yield places.of(task.task, task.step, task.split, task.index), view

    @cached_property
    def succeeded(self) -> dict[TaskPosition, TaskView]:
        """The finished tasks of the run by their positions."""
        return {place: view for place, view in self.tasks() if view.state is TaskState.SUCCEEDED}

    @cached_property
    def code(self) -> CodeFingerprints | None:
        """The fingerprints of the code that the run was started with; None if not recorded."""
        return recorded_code(self._metadata, self.record.key)

    def key_inputs(self, task: TaskRecord) -> KeyInputs:
        """Return the inputs of the cache key of one of the run's tasks.

        Args:
            task: The record of the task in this run.
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
            task: The record of the task in this run.
        """
        return f"{self.record.flow}/{self.record.run}/{task.step}/{task.task}"


def item_value(reader: ItemReader, items: object, index: int) -> Value:
    """Return the digest and the preview of an item of a foreach.

    Args:
        reader: Reads single items from the datastore.
        items: The items of the foreach, as in the manifest.
        index: The index of the item within the foreach.
    """
    item = reader.read(items, index)
    return Value(item.digest, item.text)


class History:
    """The latest LOOK_BACK runs of a flow, newest first; each is read when it is searched."""

    def __init__(
        self, metadata: MetadataStore, blobs: BlobStore, runs: Iterable[RunRecord]
    ) -> None:
        self._runs = [RecordedRun(metadata, blobs, run) for run in runs][:LOOK_BACK]

    def find(self, place: TaskPosition) -> tuple[RecordedRun, TaskRecord] | None:
        """Return the latest finished task in this position, and its run; None if there is none.

        Args:
            place: The position of the task.
        """
        for run in self._runs:
            view = run.succeeded.get(place)
            if view is not None:
                return run, view.task
        return None
