"""The flow's state in one attempt: the inputs that the step reads and the artifacts it sets."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING, Any

from aflow._core.ids import PARAMETERS_TASK
from aflow._core.process import start_helper
from aflow._core.records import NamedTuple
from aflow.errors import ArtifactNotFound, MergeArtifactsError
from aflow.flow.graph import Kind
from aflow.flow.merge import Merge
from aflow.flow.spec import left_artifacts
from aflow.scheduler.messages import FromBranches, FromForeach, FromTask, Inputs
from aflow.storage.artifacts import Entry, ForeachFrame, Manifest, digest, unchanged
from aflow.storage.items import ItemWriter
from aflow.task.inputs import InputTask, JoinInputs, Manifests, TaskArtifacts

if TYPE_CHECKING:
    from aflow._core.clock import Clock
    from aflow.flow.definition import FlowDefinition
    from aflow.flow.graph import Node
    from aflow.flow.spec import FlowSpec
    from aflow.storage.artifacts import ArtifactReader, PackingWriter
    from aflow.storage.blobs import BlobStore
    from aflow.storage.items import Item, ItemReader
    from aflow.task.spec import AttemptSpec


class Loaded(NamedTuple):
    """An artifact that the step has loaded: the task that set it, its entry, and its value."""

    origin: int
    entry: Entry
    value: Any


class StepContext:
    """The context that a flow instance is bound to while its step runs.

    Artifacts are loaded when the step first uses them. Unused and unchanged artifacts are inherited
    by key, without storing them again.
    """

    def __init__(
        self,
        definition: FlowDefinition,
        spec: AttemptSpec,
        inputs: Inputs,
        manifests: Manifests,
        blobs: BlobStore,
        reader: ArtifactReader,
        items: ItemReader,
    ) -> None:
        self.flow_name = definition.name
        self.step_name = spec.step
        self.definition = definition
        self._spec = spec
        self._inputs = inputs
        self._manifests = manifests
        self._blobs = blobs
        self._reader = reader
        self._items = items
        self._own_item: Item | None = None
        self._item_values: dict[int, Any] = {}  # by the task that opened the foreach
        self._loaded: dict[str, Loaded] = {}
        self._merged: dict[str, tuple[int, Entry]] = {}
        parent = inputs.task if isinstance(inputs, FromTask) else PARAMETERS_TASK
        self._source = TaskArtifacts(parent, manifests.of(parent), manifests, reader)
        # The names that no step may set: parameters and class constants.
        self.read_only = frozenset((*definition.parameters, *definition.constants))
        self._stack: tuple[ForeachFrame, ...] | None = None

    # ------------------------------------------------------------ inputs

    def load(self, name: str) -> Any:
        """Return the value of an artifact of an earlier step; raises ArtifactNotFound."""
        found = self._merged.get(name) or self._source.find(name)
        if found is None:
            raise ArtifactNotFound(name)
        origin, entry = found
        value = self._reader.load(name, entry)
        self._reader.start_verification()
        if name not in self.read_only:
            self._loaded[name] = Loaded(origin, entry, value)
        return value

    def names(self) -> set[str]:
        """Return the names of all artifacts that the step can read."""
        return self._source.manifest.names() | self._merged.keys()

    @property
    def index(self) -> int | None:
        """The index of the task in the innermost foreach around it; None outside of any."""
        return self._spec.split_index

    @property
    def passes(self) -> int | None:
        """How often the step has run before, if it is its own successor; None for other steps."""
        if self.step_name not in self.node.next:
            return None
        before = self._source.manifest
        return before.passes + 1 if before.step == self.step_name else 0

    @property
    def input(self) -> Any:
        """The item of the innermost foreach around the task; None outside of any."""
        stack = self.stack
        return self._item(stack[-1]) if stack else None

    def foreach_stack(self) -> list[tuple[int, int | None, Any]]:
        """Return the levels of foreach around the task, outermost first: index, splits, item."""
        return [(frame.index, frame.num_splits, self._item(frame)) for frame in self.stack]

    def _item(self, frame: ForeachFrame) -> Any:
        # Loaded once, like an artifact: a step may change its item in place and read it again.
        if frame.split not in self._item_values:
            self._item_values[frame.split] = self._loaded_item(frame)
        return self._item_values[frame.split]

    def _loaded_item(self, frame: ForeachFrame) -> Any:
        # The foreach may have grown since this process has read its manifest for an earlier task.
        items = self._manifests.with_item(frame.split, frame.index).items
        if items is None:
            # Members of a gang have no items; their input is their index, as in Metaflow.
            kind = self.definition.graph[frame.step].kind
            return frame.index if kind is Kind.PARALLEL else None
        if self._own_item is not None and frame.split == self._spec.split:
            return self._own_item.value(self._blobs, self._reader.names)
        return self._items.read(items, frame.index).value(self._blobs, self._reader.names)

    @property
    def node(self) -> Node:
        """The node of the step in the graph."""
        return self.definition.graph.nodes[self.step_name]

    @property
    def stack(self) -> tuple[ForeachFrame, ...]:
        """The frames of the foreach levels around the task, outermost first."""
        if self._stack is None:
            self._stack = self._find_stack()
        return self._stack

    def _find_stack(self) -> tuple[ForeachFrame, ...]:
        inputs = self._inputs
        if isinstance(inputs, FromForeach):
            return self._manifests.of(inputs.split).stack
        if isinstance(inputs, FromBranches):
            return self._manifests.of(inputs.tasks[0]).stack
        if not isinstance(inputs, FromTask):
            return ()
        opener = self._manifests.of(inputs.task)
        if not self._spec.opens_index:
            return opener.stack
        return (*opener.stack, self._new_frame(inputs.task, opener))

    def _new_frame(self, split: int, opener: Manifest) -> ForeachFrame:
        index, count = self._spec.split_index or 0, self._spec.splits
        if opener.items is not None:
            opener = self._manifests.with_item(split, index)
            self._own_item = self._items.read(opener.items, index)
        text = "" if self._own_item is None else self._own_item.text
        split_step = self.definition.graph[self.step_name].splits[-1]
        return ForeachFrame(
            step=split_step,
            var=opener.transition[1] or "",
            num_splits=count,
            index=index,
            value=text,
            split=split,
        )

    # ------------------------------------------------------------ joins

    def join_inputs(self) -> JoinInputs:
        """Return the `inputs` argument of a join."""
        inputs = self._inputs
        if isinstance(inputs, FromForeach):
            foreach = inputs  # for the closure: mypy forgets the narrowed type
            return JoinInputs(foreach.count, lambda start: self._page(foreach, start))
        tasks = inputs.tasks if isinstance(inputs, FromBranches) else ()
        manifests = [(task, self._manifests.of(task)) for task in tasks]
        branches = [self._input(task, manifest.step, manifest) for task, manifest in manifests]
        return JoinInputs(len(branches), lambda start: branches)

    def _page(self, inputs: FromForeach, start: int) -> list[InputTask]:
        page = self._manifests.page(inputs, start)
        return [self._input(task, step, manifest) for _, task, step, manifest in page]

    def _input(self, task: int, step: str, manifest: Manifest) -> InputTask:
        artifacts = TaskArtifacts(task, manifest, self._manifests, self._reader)
        return InputTask(step, artifacts, self._loaded_item)

    def merge(
        self,
        flow: FlowSpec,
        inputs: Any,
        exclude: Collection[str] | None,
        include: Collection[str] | None,
    ) -> None:
        """Copy, by key, artifacts that are equal in all inputs; see FlowSpec.merge_artifacts."""
        if not self.definition.steps[self.step_name].takes_inputs:
            raise MergeArtifactsError(
                f"merge_artifacts was called in step {self.step_name!r}, which is not a join: "
                "only a step with the arguments (self, inputs) has artifacts to merge."
            )
        merge = Merge(left_artifacts(flow).keys(), exclude or (), include or (), self.read_only)
        first: dict[str, tuple[int, Entry]] = {}
        for each in inputs:
            entries = each._aflow_artifacts.entries(without=self.read_only)
            merge.add(
                f"{each._aflow_step}/{each._aflow_artifacts.task}",
                {name: digest(entry) for name, (_, entry) in entries.items()},
            )
            for name, found in entries.items():
                first.setdefault(name, found)
        for name in merge.plan():
            self._merged[name] = first[name]

    # ------------------------------------------------------------ outputs

    def manifest(self, left: dict[str, Any], writer: PackingWriter) -> Manifest:
        """Return the manifest, with new and changed values stored and others inherited by key.

        Args:
            left: The attributes that the step has set on the flow, by name.
            writer: Stores the values that are new or have changed.

        Raises:
            ArtifactNotPicklable: If a value cannot be pickled; the error names the artifact.
            StoreUnavailable: If the datastore does not respond.
        """
        manifest = Manifest(step=self.step_name, stack=self.stack, passes=self.passes or 0)
        for name, value in left.items():
            entry = self._changed(name, value, writer)
            if entry is not None:
                manifest.artifacts[name] = entry
        writer.finish(manifest.artifacts)
        manifest.inherited = self._passed_on(manifest.artifacts.keys())
        return manifest

    def verify_mapped(self) -> None:
        """Wait until all memory-mapped data is verified; raises CorruptBlob."""
        self._reader.verify_pending()

    def _changed(self, name: str, value: Any, writer: PackingWriter) -> Entry | None:
        """Store a value that is new or changed, and return its entry; None if it is unchanged."""
        loaded = self._loaded.get(name)
        if loaded is None:
            return writer.save(name, value)
        if value is loaded.value and unchanged(
            value, loaded.entry, self._blobs, self._reader.names
        ):
            return None
        entry = writer.save(name, value)
        return None if digest(entry) == digest(loaded.entry) else entry

    def _passed_on(self, own: Collection[str]) -> dict[int, list[str]]:
        joins = isinstance(self._inputs, FromBranches | FromForeach)
        passed: dict[int, list[str]] = (
            {PARAMETERS_TASK: sorted(self._source.manifest.artifacts)}
            if joins
            else self._source.passed_on()
        )
        for name, (origin, _) in self._merged.items():
            passed.setdefault(origin, []).append(name)
        if own:
            passed = {
                task: [name for name in names if name not in own] for task, names in passed.items()
            }
        return {task: names for task, names in passed.items() if names}


# Items of a foreach whose tasks may start while the step still generates items.
#
# The step's thread stores items; another thread reports their number. The first reports follow
# immediately. The pause between reports grows with the elapsed time, so that even a step that
# generates items for a day causes only some hundred reports.


PAUSE = 0.02  # minimum seconds between two reports
SHARE = 0.02  # of the elapsed time: the pause later on

Announce = Callable[[Any, int], None]
"""Called with `Manifest.items` and the number of items so far."""


def write_streamed(
    items: Iterable[Any], blobs: BlobStore, limit: int, clock: Clock, announce: Announce
) -> tuple[Any, int]:
    """Store the items, and report them from another thread.

    Args:
        items: The items of the foreach; they are iterated once, possibly for a long time.
        blobs: The blobs of the datastore, addressed by content.
        limit: How many items are allowed.
        clock: The source of the time.
        announce: Called with `Manifest.items` and the number of items so far, from another thread;
            never after this function has returned or raised.

    Returns:
        The result of `write_items`.
    """
    stream = _Stream(blobs, clock, announce)
    try:
        for count, item in enumerate(items):
            if count == limit:
                return None, count + 1
            stream.add(item)
        return stream.finish()
    finally:
        stream.stop()


class _Stream:
    """Stores the items of a foreach, with a thread that reports them."""

    def __init__(self, blobs: BlobStore, clock: Clock, announce: Announce) -> None:
        self._writer = ItemWriter(blobs)
        self._announce = announce
        self._clock = clock
        self._begun_at = clock.monotonic()
        self._news = threading.Condition()
        self._announced = 0
        self._over = False
        self._problem: BaseException | None = None
        self._thread: threading.Thread | None = None

    def add(self, item: Any) -> None:
        with self._news:
            if self._problem is not None:
                raise self._problem
            self._writer.add(item)
            if self._writer.count == 1:
                self._thread = start_helper(self._announce_new, "aflow-items")
            self._news.notify()

    def _announce_new(self) -> None:
        with self._news:
            while not self._over:
                if self._writer.count == self._announced:
                    self._news.wait()
                    continue
                try:
                    self._announce(self._writer.cut(), self._writer.count)
                except BaseException as error:  # noqa: BLE001 -- raised again when the next item is added
                    self._problem = error
                    return
                self._announced = self._writer.count
                self._pause()

    def _pause(self) -> None:
        """Wait before the next report; new items do not shorten the pause."""
        until = self._clock.monotonic()
        until += max(PAUSE, SHARE * (until - self._begun_at))
        while not self._over and (left := until - self._clock.monotonic()) > 0:
            self._news.wait(left)

    def finish(self) -> tuple[Any, int]:
        with self._news:
            if self._problem is not None:
                raise self._problem
            return self._writer.finish()

    def stop(self) -> None:
        with self._news:
            self._over = True
            self._news.notify()
        if self._thread is not None:
            self._thread.join()
