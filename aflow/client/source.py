"""One run as the client reads it: what all objects of the run share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from aflow.client.missing import missing_run
from aflow.errors import StorageError
from aflow.flow.graph import Graph
from aflow.scheduler.states import TERMINAL_RUN_STATES
from aflow.storage.artifacts import ArtifactReader, Entry, Manifest

if TYPE_CHECKING:
    from aflow.client.where import ClientStores
    from aflow.metadata.base import MetadataStore, RunRecord
    from aflow.storage.blobs import BlobStore
    from aflow.storage.names import Names

_CACHED_MANIFESTS = 1024


class RunSource:
    """A run's record, as last read, and the manifests that its tasks pass artifacts on from."""

    def __init__(self, place: ClientStores, record: RunRecord) -> None:
        self.place = place
        self.record = record
        self._graph: Graph | None = None
        self._manifests: dict[int, Manifest] = {}

    @classmethod
    def find(cls, place: ClientStores, flow: str, run: str) -> RunSource:
        """Return the run.

        Args:
            place: The stores to read from, which the run keeps open.
            flow: The name of the flow.
            run: The id of the run.

        Raises:
            NotFound: There is no such run; the error says what there is.
        """
        record = place.metadata.run(flow, run)
        if record is None:
            raise missing_run(place, flow, run)
        return cls(place, record)

    def of_run(self, run: str) -> RunSource | None:
        """Return another run of the same flow, in the same place; None where it is not there.

        Args:
            run: The id of the other run.
        """
        record = self.metadata.run(self.record.flow, run)
        return None if record is None else RunSource(self.place, record)

    @property
    def key(self) -> int:
        """The store's own number for the run."""
        return self.record.key

    @property
    def pathspec(self) -> str:
        """Flow and run."""
        return f"{self.record.flow}/{self.record.run}"

    @property
    def metadata(self) -> MetadataStore:
        """The store to read from."""
        return self.place.metadata

    @property
    def is_over(self) -> bool:
        """Whether the run had ended when it was last looked at: nothing of it changes then, but
        for its tags."""
        return self.record.state in TERMINAL_RUN_STATES

    def refresh(self) -> RunRecord:
        """Return the record as it is now; read again unless the run was over."""
        if not self.is_over:
            self._read()
        return self.record

    def _read(self) -> None:
        record = self.metadata.run(self.record.flow, self.record.run)
        if record is not None:
            self.record = record

    @property
    def graph(self) -> Graph:
        """The graph that the run began with."""
        if self._graph is None:
            if not self.record.graph:  # listings leave it out
                self._read()
            self._graph = Graph.from_dict(self.record.graph)
        return self._graph

    @property
    def tags(self) -> frozenset[str]:
        """All tags of the run, as last read."""
        return frozenset(self.record.tags) | frozenset(self.record.system_tags)

    def change_tags(self, add: Iterable[str], remove: Iterable[str]) -> None:
        """Remove, then add user tags, in one step.

        Args:
            add: User tags to add; after the others were removed.
            remove: User tags to remove; system tags cannot be.
        """
        tags = self.place.change_tags(self.key, list(add), list(remove))
        self.record = self.record._replace(tags=tags)

    def setting(self, name: str) -> Any:
        """Return what the run was started with; None where it was not recorded.

        Args:
            name: The name of the setting, as the run's record has it.
        """
        return self.record.settings.get(name)

    @property
    def blobs(self) -> BlobStore:
        """The blobs that the run has left."""
        return self.place.blobs(self.setting("storage") or "")

    @cached_property
    def names(self) -> Names:
        """Finds the classes of the run's values, in this program or in the code of the run."""
        from aflow.client.code import names_of  # as few values need it

        return names_of(self)

    def manifest(self, task: int, more: Callable[[], Iterable[int]]) -> Manifest:
        """Return the manifest of a task that others have inherited from. Where it has to be read,
        those of `more()` are read in the same query.

        Args:
            task: The number of the task within its run.
            more: The numbers of other tasks whose manifests are read at the same time.

        Raises:
            StorageError: If it is not there.
        """
        found = self._manifests.get(task)
        if found is None:
            tasks = {task, *more()} - self._manifests.keys()
            read = self.metadata.manifests(self.key, sorted(tasks))
            manifests = {each: Manifest.decode(data) for each, data in read.items()}
            self._remember(manifests)
            found = manifests.get(task)
        if found is None:
            raise StorageError(
                f"Task {task} of run {self.pathspec!r} has left no artifacts, though a later task "
                "reads them from it: the metadata is damaged. Run the flow again."
            )
        return found

    def _remember(self, manifests: dict[int, Manifest]) -> None:
        if len(self._manifests) + len(manifests) > _CACHED_MANIFESTS:
            self._manifests = {}
        self._manifests.update(manifests)

    def load(self, name: str, entry: Entry) -> Any:
        """Return the value of an artifact, verified; a new object each time. Raises
        ArtifactNotLoadable, CorruptBlob, StoreUnavailable.

        Args:
            name: The name of the artifact, for errors.
            entry: What the manifest says of it: type, size and blobs.
        """
        reader = ArtifactReader(self.blobs, self.names)
        value = reader.load(name, entry)
        reader.verify_pending()
        return value
