"""Open the object store of a URL. A backend is imported only when a URL needs it (see
aflow/_core/lazy.py), since some backends need packages of an extra.

file:///path/.aflow     storage.local
s3://bucket/prefix      storage.s3, with copies of blobs on disk (cache.py) and retries (retry.py)
memory:                 storage.memory
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from aflow import storage
from aflow._core.secret import as_mentioned
from aflow._core.settings import Settings, as_reached_here, path_at
from aflow.errors import InvalidSetting

if TYPE_CHECKING:
    from aflow.storage.base import ObjectStore


def open_store(url: str) -> ObjectStore:
    """Return the object store at `url`.

    Args:
        url: `file:///folder`, `memory:` or `s3://bucket/prefix`.

    Raises:
        InvalidSetting: If the scheme is unknown or the URL is invalid.
    """
    scheme = url.partition(":")[0]
    if scheme == "file":
        return storage.local.LocalStore(path_at(url))
    if scheme == "memory":
        return storage.memory.MemoryStore()
    if scheme == "s3":
        settings = Settings.load()
        folder = settings.cache / "objects" / _folder_name(url)
        return storage.cache.CachedStore(
            storage.retry.RetryingStore(storage.s3.S3Store(url)), folder, settings.cache_size << 20
        )
    raise InvalidSetting(
        f"{as_mentioned(url)!r} is not a datastore that aflow knows: use file:///path, "
        "s3://bucket/prefix or memory:."
    )


def open_recorded_store(url: str) -> ObjectStore:
    """Return the object store of the URL in a run's record; see `open_store`. For S3, the endpoint
    of this process's settings is used instead of the recorded one.

    Args:
        url: The URL in the run's record.
    """
    return open_store(as_reached_here(url, Settings.load()) if url.startswith("s3:") else url)


def store_to_copy(url: str) -> ObjectStore | None:
    """Return the object store of the URL in a run's record, for a service that copies the run's
    artifacts for Metaflow's client; None if the service must not write to it.

    Every user of the service can write a record. Therefore a folder must exist and belong to the
    user of this process, and a bucket must be the one in this process's settings.

    Args:
        url: The URL in the run's record, which is untrusted.
    """
    scheme = url.partition(":")[0]
    if scheme == "file":
        try:
            status = path_at(url).stat()
        except (OSError, InvalidSetting):  # the folder is on another machine
            return None
        return open_store(url) if status.st_uid == os.geteuid() else None
    ours = Settings.load().storage_url
    if scheme == "s3" and url.partition("?")[0] == ours.partition("?")[0]:
        return open_store(ours)
    return None


def _folder_name(url: str) -> str:
    """Return the name of the cache folder for a URL."""
    return "".join(each if each.isalnum() else "-" for each in url)[-100:]
