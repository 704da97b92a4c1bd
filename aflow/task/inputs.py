"""What a task reads: its input tasks' artifacts, by name, when the step first touches them.

A manifest says which artifacts a task set itself and which it passes on from which earlier task.
So every name leads, over at most one more manifest, to an entry; the value is loaded from there.
A join over a foreach streams its inputs' manifests in pages, in split order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any

from aflow._core.ids import PARAMETERS_TASK
from aflow.errors import ArtifactNotFound, StorageError
from aflow.scheduler.messages import FromForeach, FromTask, Inputs, decode_inputs
from aflow.storage.artifacts import Entry, ForeachFrame, Manifest

if TYPE_CHECKING:
    from aflow.metadata.base import MetadataStore
    from aflow.storage.artifacts import ArtifactReader

PAGE = 1000  # manifests a query, when a join streams its inputs
_CACHED_MANIFESTS = 512


class Manifests:
    """The manifests of a run's tasks: handed over with the spec, else read from the metadata."""

    def __init__(self, open_metadata: Callable[[], MetadataStore], run_key: int) -> None:
        self._open = open_metadata
        self._metadata: MetadataStore | None = None
        self._run_key = run_key
        self._cache: dict[int, Manifest] = {}

    @property
    def metadata(self) -> MetadataStore:
        """The metadata, opened when it is first needed: most tasks never do."""
        if self._metadata is None:
            self._metadata = self._open()
        return self._metadata

    def remember(self, task: int, manifest: Manifest) -> None:
        """Keep a manifest; the oldest goes when there are too many.

        Args:
            task: The number of the task within its run.
            manifest: What the attempt has left: the type, size and blob of each artifact.
        """
        cache = self._cache
        if len(cache) >= _CACHED_MANIFESTS:
            del cache[next(iter(cache))]
        cache[task] = manifest

    def knows(self, task: int) -> bool:
        """Return whether the manifest is at hand.

        Args:
            task: The number of the task within its run.
        """
        return task in self._cache

    def of(self, task: int) -> Manifest:
        """Return the manifest of a task that succeeded.

        Args:
            task: The number of the task within its run.

        Raises:
            StorageError: The task has not succeeded.
        """
        manifest = self._cache.get(task)
        if manifest is None:
            data = self.metadata.manifests(self._run_key, [task]).get(task)
            if data is None:
                raise StorageError(f"Task {task} has no manifest: it has not succeeded.")
            manifest = Manifest.decode(data)
            self.remember(task, manifest)
        return manifest

    def passes(self, inputs: Inputs, step: str) -> int:
        """Return how many tasks of a step that leads back to itself came before one with these
        inputs.

        Args:
            inputs: Which tasks the inputs come from.
            step: The name of the step.
        """
        count = 0
        while isinstance(inputs, FromTask):
            found = self.metadata.task(self._run_key, inputs.task)
            if found is None or found.task.step != step:
                break
            count += 1
            inputs = decode_inputs(found.task.inputs)
        return count

    def with_item(self, task: int, index: int) -> Manifest:
        """Return the manifest of a task that opens a foreach, from when it had made the item at
        `index`: it may go on making them.

        Args:
            task: The number of the task within its run.
            index: The index of the item in the foreach.
        """
        manifest = self.of(task)
        if manifest.items is not None and index >= manifest.items[0]:
            self._cache.pop(task, None)
            manifest = self.of(task)
        return manifest

    def page(self, inputs: FromForeach, start: int) -> list[tuple[int, int, str, Manifest]]:
        """Return up to PAGE inputs of a foreach join from split index `start` on.

        Args:
            inputs: The foreach that is joined.
            start: The position of the first one.
        """
        rows = self.metadata.split_manifests(self._run_key, inputs.split, inputs.steps, start, PAGE)
        return [(index, task, step, Manifest.decode(data)) for index, task, step, data in rows]


class KnownManifests(Manifests):
    """Manifests that are all in memory, of a run that no metadata store knows."""

    def __init__(self, parameters: Manifest) -> None:
        self._by_task = {int(PARAMETERS_TASK): parameters}
        self._in_split: dict[int, dict[int, tuple[int, str]]] = {}

    def add(
        self,
        task: int,
        manifest: Manifest,
        step: str,
        split: int | None = None,
        index: int | None = None,
    ) -> None:
        """Note what a task has left; `split` and `index` are its place in the foreach around it.

        Args:
            task: The number of the task within its run.
            manifest: What the attempt has left: the type, size and blob of each artifact.
            step: The name of the step.
            split: The task that opened the foreach.
            index: The index of the item in the foreach.
        """
        self._by_task[task] = manifest
        if split is not None and index is not None:
            self._in_split.setdefault(split, {})[index] = (task, step)

    def knows(self, task: int) -> bool:
        """Whether the manifest is there."""
        return task in self._by_task

    def passes(self, inputs: Inputs, step: str) -> int:
        """None: the step runs by itself."""
        return 0

    def of(self, task: int) -> Manifest:
        """The manifest of a task."""
        return self._by_task[task]

    def with_item(self, task: int, index: int) -> Manifest:
        """The manifest of a task."""
        return self._by_task[task]

    def page(self, inputs: FromForeach, start: int) -> list[tuple[int, int, str, Manifest]]:
        """All inputs of a foreach join from split index `start` on."""
        tasks = self._in_split.get(inputs.split, {})
        return [
            (index, task, step, self._by_task[task])
            for index, (task, step) in sorted(tasks.items())
            if index >= start
        ]


class TaskArtifacts:
    """The artifacts that can be read from one finished task."""

    __slots__ = ("_manifests", "_origins", "manifest", "reader", "task")

    def __init__(
        self, task: int, manifest: Manifest, manifests: Manifests, reader: ArtifactReader
    ) -> None:
        self._origins: dict[str, int] | None = None
        self.task = task
        self.manifest = manifest
        self._manifests = manifests
        self.reader = reader

    def find(self, name: str) -> tuple[int, Entry] | None:
        """Return the entry of an artifact and the task that set it; None if there is no such
        artifact.

        Args:
            name: The name.
        """
        entry = self.manifest.artifacts.get(name)
        if entry is not None:
            return self.task, entry
        if self._origins is None:
            self._origins = self.manifest.origins()
        origin = self._origins.get(name)
        return None if origin is None else (origin, self._manifests.of(origin).artifacts[name])

    def entries(self, without: Collection[str] = ()) -> dict[str, tuple[int, Entry]]:
        """Return every artifact's entry and the task that set it, but for the names in `without`.

        Args:
            without: Names to leave out.
        """
        found = {name: (self.task, entry) for name, entry in self.manifest.artifacts.items()}
        for task, names in self.manifest.inherited.items():
            origin = self._manifests.of(task).artifacts
            found.update({name: (task, origin[name]) for name in names if name not in without})
        return {name: entry for name, entry in found.items() if name not in without}

    def passed_on(self) -> dict[int, list[str]]:
        """Return all its artifacts by the task that set them: what a task that follows inherits."""
        passed = {task: list(names) for task, names in self.manifest.inherited.items()}
        if self.manifest.artifacts:
            passed[self.task] = list(self.manifest.artifacts)
        return passed


class InputTask:
    """One input of a join: its artifacts are its attributes."""

    __slots__ = ("_aflow_artifacts", "_aflow_item", "_aflow_step")

    def __init__(
        self, step: str, artifacts: TaskArtifacts, item: Callable[[ForeachFrame], Any]
    ) -> None:
        self._aflow_step = step
        self._aflow_artifacts = artifacts
        self._aflow_item = item

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        artifacts = self._aflow_artifacts
        found = artifacts.find(name)
        if found is None:
            there = ", ".join(sorted(artifacts.manifest.names())) or "none"
            raise ArtifactNotFound(
                f"Input task {artifacts.task} of step {self._aflow_step!r} has no artifact "
                f"{name!r}; it has: {there}."
            )
        return artifacts.reader.load(name, found[1])

    @property
    def index(self) -> int | None:
        """The place of the input in its innermost foreach; None outside of any."""
        stack = self._aflow_artifacts.manifest.stack
        return stack[-1].index if stack else None

    @property
    def input(self) -> Any:
        """The item of the innermost foreach that the input worked on; None outside of any."""
        stack = self._aflow_artifacts.manifest.stack
        return self._aflow_item(stack[-1]) if stack else None

    def foreach_stack(self) -> list[tuple[int, int | None, Any]]:
        """The levels of foreach around the input, outermost first: index, splits, item."""
        stack = self._aflow_artifacts.manifest.stack
        return [(frame.index, frame.num_splits, self._aflow_item(frame)) for frame in stack]

    def __repr__(self) -> str:
        return f"<input {self._aflow_step}/{self._aflow_artifacts.task}>"

    def __reduce__(self) -> Any:
        raise TypeError("an input of a join cannot be stored; store the values that you need of it")


class JoinInputs:
    """The `inputs` of a join: by position, by step name, one after the other.

    Iterating again reads again; nothing but a page of manifests is held.
    """

    def __init__(
        self,
        count: int,
        page: Callable[[int], list[InputTask]],
        by_step: Callable[[], dict[str, InputTask]],
    ) -> None:
        self._count = count
        self._page = page
        self._by_step = by_step
        self._held: tuple[int, list[InputTask]] | None = None

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[InputTask]:
        for start in range(0, self._count, PAGE):
            yield from self._page_at(start)

    def __getitem__(self, position: int | slice) -> Any:
        if isinstance(position, slice):
            return [self[each] for each in range(*position.indices(self._count))]
        index = position + self._count if position < 0 else position
        if not 0 <= index < self._count:
            raise IndexError(f"input {position} of a join with {self._count} inputs")
        start = index - index % PAGE
        return self._page_at(start)[index - start]

    def _page_at(self, start: int) -> list[InputTask]:
        if self._held is None or self._held[0] != start:
            self._held = (start, self._page(start))
        return self._held[1]

    def __getattr__(self, step: str) -> InputTask:
        if step.startswith("_"):
            raise AttributeError(step)
        try:
            return self._by_step()[step]
        except KeyError:
            raise ArtifactNotFound(
                f"The join has no input from a step {step!r}; its inputs come from: "
                f"{', '.join(self._by_step()) or 'nowhere (the foreach had no items)'}."
            ) from None

    def __reduce__(self) -> Any:
        raise TypeError("inputs cannot be stored; store the values that you need of them")
