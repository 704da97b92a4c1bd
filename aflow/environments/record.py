"""Record the environments of a run in its settings: by step, the id of the environment and the key
of the blob with its lock."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aflow.environments.lock import Lock
from aflow.storage.blobs import BlobStore

if TYPE_CHECKING:
    from aflow.storage.base import ObjectStore

FIELD = "environments"  # the key in the settings of a run


def recorded(locks: Mapping[str, Lock], blobs: BlobStore) -> dict[str, dict[str, str]]:
    """Return the value to record in a run's settings, after storing the locks in the datastore.
    Raises StorageError.

    Args:
        locks: The locked environments, by step.
        blobs: The blobs of the datastore, addressed by content.
    """
    every = {lock.digest: lock for lock in locks.values()}
    stored = {digest: str(blobs.put(lock.encode())) for digest, lock in every.items()}
    return {name: {"id": lock.digest, "lock": stored[lock.digest]} for name, lock in locks.items()}


def recorded_locks(settings: Mapping[str, Any], store: ObjectStore) -> dict[str, Lock]:
    """Return the locks that the settings of a run refer to, by step. Raises StorageError and
    InvalidLock.

    Args:
        settings: The settings in the record of the run.
        store: The datastore of the run, which has the locks as blobs.
    """
    found: Mapping[str, Mapping[str, str]] = settings.get(FIELD) or {}
    blobs = BlobStore(store)
    locks = {key: Lock.decode(bytes(blobs.get(key))) for key in blobs_of(settings)}
    return {name: locks[each["lock"]] for name, each in found.items()}


def blobs_of(settings: Mapping[str, Any]) -> set[str]:
    """Return the keys of the blobs with the locks of a run.

    Args:
        settings: The settings in the record of the run.
    """
    found: Mapping[str, Mapping[str, str]] = settings.get(FIELD) or {}
    return {each["lock"] for each in found.values()}
