"""Which URL means which object store. A backend is imported when a URL asks for it (see
aflow/_core/lazy.py), since some need a package of an extra.

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
        InvalidSetting: The URL is of another kind, or cannot be used.
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
    """Return the object store that the record of a run names; see `open_store`. The S3 endpoint
    that is set here counts, not the one at which the run's writer has reached it.

    Args:
        url: The URL in the run's settings.
    """
    return open_store(as_reached_here(url, Settings.load()) if url.startswith("s3:") else url)


def store_to_copy(url: str) -> ObjectStore | None:
    """Return the object store at `url`, which a record of a run names, for a service that copies
    artifacts of the run for Metaflow's client; None for one that the service does not write to.

    Everybody with access can write a record: so a folder has to exist and to belong to the user of
    this program, and a bucket to be the one of this program's settings.

    Args:
        url: The URL in the run's settings, which is not trusted.
    """
    scheme = url.partition(":")[0]
    if scheme == "file":
        try:
            status = path_at(url).stat()
        except (OSError, InvalidSetting):  # it is on another machine
            return None
        return open_store(url) if status.st_uid == os.geteuid() else None
    ours = Settings.load().storage_url
    if scheme == "s3" and url.partition("?")[0] == ours.partition("?")[0]:
        return open_store(ours)
    return None


def _folder_name(url: str) -> str:
    """A name that differs for different URLs."""
    return "".join(each if each.isalnum() else "-" for each in url)[-100:]
