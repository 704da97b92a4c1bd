"""The data of a run that all client objects of the run share."""

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
    """The last read record of a run, and a cache of manifests from which tasks inherit
    artifacts."""

    def __init__(self, place: ClientStores, record: RunRecord) -> None:
        self.place = place
        self.record = record
        self._manifests: dict[int, Manifest] = {}

    @classmethod
    def find(cls, place: ClientStores, flow: str, run: str) -> RunSource:
        """Return the run.

        Args:
            place: The stores to read from.
            flow: The name of the flow.
            run: The id of the run.

        Raises:
            NotFound: If the run does not exist; the message names runs that do.
        """
        record = place.metadata.run(flow, run)
        if record is None:
            raise missing_run(place, flow, run)
        return cls(place, record)

    def of_run(self, run: str) -> RunSource | None:
        """Return another run of the same flow in the same store; None if it does not exist.

        Args:
            run: The id of the other run.
        """
        record = self.metadata.run(self.record.flow, run)
        return None if record is None else RunSource(self.place, record)

    @property
    def key(self) -> int:
        """The number of the run in its metadata store."""
        return self.record.key

    @property
    def pathspec(self) -> str:
        """The flow's name and the run's id."""
        return f"{self.record.flow}/{self.record.run}"

    @property
    def metadata(self) -> MetadataStore:
        """The store to read from."""
        return self.place.metadata

    @property
    def is_over(self) -> bool:
        """Whether the run had ended when it was last read: from then on only its tags change."""
        return self.record.state in TERMINAL_RUN_STATES

    def refresh(self) -> RunRecord:
        """Return the current record; it is read again unless the run has ended."""
        if not self.is_over:
            self._read()
        return self.record

    def _read(self) -> None:
        record = self.metadata.run(self.record.flow, self.record.run)
        if record is not None:
            self.record = record

    @cached_property
    def graph(self) -> Graph:
        """The graph that the run was started with."""
        if not self.record.graph:  # listings leave it out
            self._read()
        return Graph.from_dict(self.record.graph)

    def change_tags(self, add: Iterable[str], remove: Iterable[str]) -> None:
        """Remove, then add user tags, in one transaction.

        Args:
            add: The user tags to add, after the removal.
            remove: The user tags to remove; system tags are not allowed.
        """
        tags = self.place.change_tags(self.key, list(add), list(remove))
        self.record = self.record._replace(tags=tags)

    def setting(self, name: str) -> Any:
        """Return a setting that the run was started with; None if it was not recorded.

        Args:
            name: The name of the setting in the run's record.
        """
        return self.record.settings.get(name)

    @property
    def blobs(self) -> BlobStore:
        """The blobs of the run."""
        return self.place.blobs(self.setting("storage") or "")

    @cached_property
    def names(self) -> Names:
        """Resolves the classes of the run's values, in this program or in the run's code
        package."""
        from aflow.client.code import names_of  # rarely needed

        return names_of(self)

    def manifest(self, task: int, more: Callable[[], Iterable[int]]) -> Manifest:
        """Return the manifest of a task from which others inherit artifacts. If it is not cached,
        those of `more()` are read in the same query.

        Args:
            task: The number of the task within its run.
            more: Returns the numbers of other tasks to read in the same query.

        Raises:
            StorageError: If the task has no manifest.
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
        """Return the verified value of an artifact, a new object each time. Raises
        ArtifactNotLoadable, CorruptBlob and StoreUnavailable.

        Args:
            name: The name of the artifact, for errors.
            entry: Its entry in the manifest: type, size and blobs.
        """
        reader = ArtifactReader(self.blobs, self.names)
        value = reader.load(name, entry)
        reader.verify_pending()
        return value
