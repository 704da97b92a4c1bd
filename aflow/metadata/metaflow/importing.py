"""Imports a run of Metaflow's into aflow's own metadata and datastore, so that it can be resumed.

Pickles are copied unchanged. Only the values that foreachs iterate over are unpickled, since aflow
stores items individually.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aflow._core.ids import PARAMETERS_TASK
from aflow.errors import AflowError, InvalidInput
from aflow.metadata.base import Batch, RunUpdate
from aflow.storage import codecs
from aflow.storage.artifacts import ENCODING, Entry, Manifest
from aflow.storage.codecs import gunzipped
from aflow.storage.items import write_items

if TYPE_CHECKING:
    from collections.abc import Collection

    from aflow.metadata.base import AttemptRecord, MetadataStore, RunRecord
    from aflow.storage.base import ObjectStore
    from aflow.storage.blobs import BlobStore

PAGE = 200  # tasks per commit
IMPORTED = "imported_from"
"""The name of the setting of an imported run that contains its origin."""

_INLINE, _INLINE_TOTAL = 4096, 32768
_MOST_ITEMS = 1 << 40


def import_run(
    history: MetadataStore,
    found: RunRecord,
    place: ObjectStore,
    own: MetadataStore,
    blobs: BlobStore,
) -> RunRecord:
    """Record a run of Metaflow's in aflow's own metadata, so that it can be resumed.

    Args:
        history: The history that contains the run.
        found: The record of the run in the history.
        place: Metaflow's datastore, from which values are copied.
        own: aflow's metadata store, in which the run is recorded.
        blobs: aflow's datastore, to which values are copied.

    Returns:
        The new record.

    Raises:
        InvalidInput: If the items of a foreach cannot be read.
        StorageError: If a value cannot be read or written.
        MetadataError: If the record cannot be written.
    """
    taking = _Taking(found, place, blobs)
    settings = {
        **found.settings, "storage": blobs.store.url, IMPORTED: found.settings.get("metaflow"),
    }  # fmt: skip
    first = history.task(found.key, 0)
    parameters = Manifest("_parameters")
    if first is not None and first.attempt is not None and first.attempt.manifest is not None:
        parameters = taking.manifest(first.attempt.manifest, ())
    known = set(parameters.artifacts)
    made = own.create_run(found._replace(settings=settings), parameters.encode())
    version, batch = 0, Batch()
    for view in history.tasks(found.key):
        if view.task.task == 0:
            continue
        batch.tasks.append(view.task)
        attempts = history.attempts(found.key, view.task.task)
        batch.attempts += [taking.attempt(each, known) for each in attempts]
        batch.metadata += history.metadata(found.key, view.task.task)
        if len(batch.tasks) >= PAGE:
            version, batch = own.commit(made.key, version, batch), Batch()
    batch.run = RunUpdate(found.state, found.finished_at, found.reason)
    own.commit(made.key, version, batch)
    return made


class _Taking:
    """Copies the results of the tasks of one run."""

    def __init__(self, run: RunRecord, place: ObjectStore, blobs: BlobStore) -> None:
        self._run = run
        self._place = place
        self._blobs = blobs
        self._known: dict[str, Entry] = {}

    def attempt(self, attempt: AttemptRecord, known: Collection[str]) -> AttemptRecord:
        """Return the attempt, with its artifacts copied to aflow's datastore."""
        if attempt.manifest is None:
            return attempt
        return attempt._replace(manifest=self.manifest(attempt.manifest, known).encode())

    def manifest(self, data: bytes, known: Collection[str]) -> Manifest:
        """Return the manifest, with its artifacts copied to aflow's datastore: without Metaflow's
        own artifacts, and without the `known` ones, which are the parameters."""
        theirs = Manifest.decode(data)
        left = _INLINE_TOTAL
        ours: dict[str, Entry] = {}
        for name, entry in theirs.artifacts.items():
            if name.startswith("_") or name == "name" or name in known:
                continue
            ours[name] = self._copied(entry, min(left, _INLINE))
            left -= len(ours[name].inline or b"")
        if theirs.transition[2] is not None:
            theirs.items = self._items(theirs)
        theirs.artifacts = ours
        if known:
            theirs.inherited = {PARAMETERS_TASK: sorted(known)}
        return theirs

    def _pickle(self, entry: Entry) -> bytes:
        name = entry.blobs[0][0]
        return gunzipped(self._place.get(name), f"{name} in {self._place.url}")

    def _copied(self, entry: Entry, inline: int) -> Entry:
        key = entry.blobs[0][0]
        if key in self._known:
            return self._known[key]
        data = self._pickle(entry)
        made = Entry(ENCODING, len(data), entry.type, preview={}, inline=data)
        if len(data) > inline:
            blob = (str(self._blobs.put(data)), len(data))
            made = self._known[key] = made._replace(inline=None, blobs=(blob,))
        return made

    def _items(self, manifest: Manifest) -> Any:
        """Return the items of a foreach; None for a gang, which has no items."""
        over = manifest.transition[1]
        if over is None or over not in manifest.artifacts:
            return None
        where = f"{self._run.flow}/{self._run.run}/{manifest.step}"
        try:
            value = codecs.load(f"Artifact {over!r}", self._pickle(manifest.artifacts[over]))
            items, _ = write_items(value, self._blobs, _MOST_ITEMS)
        except AflowError as error:
            raise InvalidInput(
                f"{self._run.flow}/{self._run.run} cannot be resumed: {over}, which the foreach of "
                f"{where} goes over, cannot be read here. {error}"
            ) from error
        return items
