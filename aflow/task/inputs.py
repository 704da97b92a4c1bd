"""The inputs of a task: artifacts of its input tasks by name, loaded when the step uses them.

A manifest lists the artifacts that a task has set, and those that it has inherited, with the
earlier task that set them. Finding the entry of a name takes at most one more manifest. A join over
a foreach reads the manifests of its inputs in pages, in split order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any

from aflow._core.ids import PARAMETERS_TASK
from aflow.errors import ArtifactNotFound, StorageError
from aflow.scheduler.messages import FromForeach
from aflow.storage.artifacts import Entry, ForeachFrame, Manifest

if TYPE_CHECKING:
    from aflow.metadata.base import MetadataStore
    from aflow.storage.artifacts import ArtifactReader

PAGE = 1000  # manifests for each query of a join
_CACHED_MANIFESTS = 512


def no_metadata() -> MetadataStore:
    """Return the metadata for attempts that must not need it: raises if it is used."""
    raise AssertionError("what these tasks read is in memory, or came with them")


class Manifests:
    """The manifests of a run's tasks: sent with the spec, or read from the metadata."""

    def __init__(self, open_metadata: Callable[[], MetadataStore], run_key: int) -> None:
        self._open = open_metadata
        self._metadata: MetadataStore | None = None
        self._run_key = run_key
        self._cache: dict[int, Manifest] = {}

    @property
    def metadata(self) -> MetadataStore:
        """The metadata, opened on first use: most tasks never need it."""
        if self._metadata is None:
            self._metadata = self._open()
        return self._metadata

    def remember(self, task: int, manifest: Manifest) -> None:
        """Cache a manifest; the oldest one is evicted if the cache is full.

        Args:
            task: The number of the task within its run.
            manifest: The type, size and blob of each artifact of the task.
        """
        cache = self._cache
        if len(cache) >= _CACHED_MANIFESTS:
            del cache[next(iter(cache))]
        cache[task] = manifest

    def knows(self, task: int) -> bool:
        """Return whether the manifest is cached.

        Args:
            task: The number of the task within its run.
        """
        return task in self._cache

    def of(self, task: int) -> Manifest:
        """Return the manifest of a task that succeeded.

        Args:
            task: The number of the task within its run.

        Raises:
            StorageError: If the task has not succeeded.
        """
        manifest = self._cache.get(task)
        if manifest is None:
            data = self.metadata.manifests(self._run_key, [task]).get(task)
            if data is None:
                raise StorageError(f"Task {task} has no manifest: it has not succeeded.")
            manifest = Manifest.decode(data)
            self.remember(task, manifest)
        return manifest

    def with_item(self, task: int, index: int) -> Manifest:
        """Return the manifest of a task that opens a foreach, with the item at `index`.

        The cached manifest is replaced if it is older than the item, since the task may still
        generate items.

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
        """Return up to PAGE inputs of a foreach join, starting at split index `start`.

        Args:
            inputs: The foreach that is joined.
            start: The split index of the first input.
        """
        rows = self.metadata.split_manifests(self._run_key, inputs.split, inputs.steps, start, PAGE)
        return [(index, task, step, Manifest.decode(data)) for index, task, step, data in rows]


class KnownManifests(Manifests):
    """Manifests that are all in memory, for a run that is not in any metadata."""

    def __init__(self, parameters: Manifest) -> None:
        super().__init__(no_metadata, 0)
        self._cache[PARAMETERS_TASK] = parameters
        self._in_split: dict[int, dict[int, tuple[int, str]]] = {}

    def add(
        self,
        task: int,
        manifest: Manifest,
        step: str,
        split: int | None = None,
        index: int | None = None,
    ) -> None:
        """Add the manifest of a task; `split` and `index` are its place in the enclosing foreach.

        Args:
            task: The number of the task within its run.
            manifest: The type, size and blob of each artifact of the task.
            step: The name of the step.
            split: The task that opened the foreach.
            index: The index of the item in the foreach.
        """
        self._cache[task] = manifest  # not `remember`, which evicts others
        if split is not None and index is not None:
            self._in_split.setdefault(split, {})[index] = (task, step)

    def page(self, inputs: FromForeach, start: int) -> list[tuple[int, int, str, Manifest]]:
        """Return up to PAGE inputs of a foreach join, starting at split index `start`."""
        tasks = self._in_split.get(inputs.split, {})
        return [
            (index, task, step, self._cache[task])
            for index, (task, step) in sorted(tasks.items())
            if start <= index < start + PAGE
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
        """Return the task that set an artifact, and its entry; None if there is no such artifact.

        Args:
            name: The name of the artifact.
        """
        entry = self.manifest.artifacts.get(name)
        if entry is not None:
            return self.task, entry
        if self._origins is None:
            self._origins = self.manifest.origins()
        origin = self._origins.get(name)
        return None if origin is None else (origin, self._manifests.of(origin).artifacts[name])

    def entries(self, without: Collection[str] = ()) -> dict[str, tuple[int, Entry]]:
        """Return the task that set each artifact, and its entry, by name.

        Args:
            without: Names to exclude.
        """
        found = {name: (self.task, entry) for name, entry in self.manifest.artifacts.items()}
        for task, names in self.manifest.inherited.items():
            origin = self._manifests.of(task).artifacts
            found.update({name: (task, origin[name]) for name in names if name not in without})
        return {name: entry for name, entry in found.items() if name not in without}

    def passed_on(self) -> dict[int, list[str]]:
        """Return the names that a next task inherits, by the task that set each artifact."""
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
        """The index of the input in its innermost foreach; None outside of any."""
        stack = self._aflow_artifacts.manifest.stack
        return stack[-1].index if stack else None

    @property
    def input(self) -> Any:
        """The item of the innermost foreach that the input has processed; None outside of any."""
        stack = self._aflow_artifacts.manifest.stack
        return self._aflow_item(stack[-1]) if stack else None

    def foreach_stack(self) -> list[tuple[int, int | None, Any]]:
        """Return the levels of foreach around the input, outermost first: index, splits, item."""
        stack = self._aflow_artifacts.manifest.stack
        return [(frame.index, frame.num_splits, self._aflow_item(frame)) for frame in stack]

    def __repr__(self) -> str:
        return f"<input {self._aflow_step}/{self._aflow_artifacts.task}>"

    def __reduce__(self) -> Any:
        raise TypeError("an input of a join cannot be stored; store the values that you need of it")


class JoinInputs:
    """The `inputs` of a join: indexed by position, an attribute for each step, or iterated.

    Each iteration reads the manifests again; only one page of them is held in memory. Of several
    inputs from one step, the attribute is the last.
    """

    def __init__(self, count: int, page: Callable[[int], list[InputTask]]) -> None:
        self._count = count
        self._page = page
        self._held: tuple[int, list[InputTask]] | None = None
        self._by_step: dict[str, InputTask] | None = None

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
        if self._by_step is None:
            self._by_step = {each._aflow_step: each for each in self}
        if step not in self._by_step:
            raise ArtifactNotFound(
                f"The join has no input from a step {step!r}; its inputs come from: "
                f"{', '.join(self._by_step) or 'nowhere (the foreach had no items)'}."
            )
        return self._by_step[step]

    def __reduce__(self) -> Any:
        raise TypeError("inputs cannot be stored; store the values that you need of them")
