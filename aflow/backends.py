"""URL -> concrete backend: the one module that names them all.

file:///path/.aflow             storage.local
s3://bucket/prefix              storage.s3, with copies of blobs on disk (cached) and retries
memory:                         storage.memory, metadata.sqlite (in memory)
sqlite:////path/metadata.db     metadata.sqlite; as a queue: queue.sqlite
https://host/prefix             metadata.service; service.registering for Metaflow's own service
postgresql://host/database      metadata.postgres
redis://host:6379/0             queue.redis; redis+sentinel://host:26379/name for a primary
                                that sentinels know
postgresql://host/database      queue.postgres
sqs://region/prefix             queue.sqs; sqs+http(s)://host/prefix for others than AWS
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from aflow.config_files import path_in
from aflow.errors import InvalidSetting

if TYPE_CHECKING:
    from aflow.metadata.base import MetadataStore
    from aflow.queue.base import Queue
    from aflow.storage.base import ObjectStore

# Imports are inside the functions: a run pays for the backends that it uses, and no others.


def open_store(url: str) -> ObjectStore:
    """The object store at `url`; raises InvalidSetting for a kind that is not known."""
    scheme, _, rest = url.partition(":")
    if scheme == "file":
        from aflow.storage.local import LocalStore

        return LocalStore(_path(url, rest))
    if scheme == "memory":
        from aflow.storage.memory import MemoryStore

        return MemoryStore()
    if scheme == "s3":
        from aflow.config import Settings
        from aflow.storage.cached import CachedStore
        from aflow.storage.retrying import RetryingStore
        from aflow.storage.s3 import S3Store

        settings = Settings.load()
        folder = settings.cache / "objects" / _folder_name(url)
        return CachedStore(RetryingStore(S3Store(url)), folder, settings.cache_size << 20)
    raise InvalidSetting(
        f"{url!r} is no datastore that aflow knows: use file:///path, "
        "s3://bucket/prefix or memory:."
    )


def open_recorded_store(url: str) -> ObjectStore:
    """The object store that the record of a run names; see `open_store`. The S3 endpoint that is
    set here counts, not the one at which the run's writer has reached it."""
    from aflow.config import Settings, as_reached_here

    return open_store(as_reached_here(url, Settings.load()) if url.startswith("s3:") else url)


def store_to_copy(url: str) -> ObjectStore | None:
    """The object store at `url`, which a record of a run names, for a service that copies artifacts
    of the run for Metaflow's client; None for one that the service does not write to.

    A record is written by whoever may: so a folder has to be there and to belong to the user of
    this program, and a bucket to be the one of this program's settings."""
    from aflow.config import Settings

    scheme, _, rest = url.partition(":")
    if scheme == "file":
        try:
            status = _path(url, rest).stat()
        except (OSError, InvalidSetting):  # it is on another machine
            return None
        return open_store(url) if status.st_uid == os.geteuid() else None
    ours = Settings.load().storage_url
    if scheme == "s3" and url.partition("?")[0] == ours.partition("?")[0]:
        return open_store(ours)
    return None


def open_metadata(
    url: str, durability: str = "power", *, read_only: bool = False, own: bool = False
) -> MetadataStore:
    """The metadata store at `url`; raises InvalidSetting for a kind that is not known. A service is
    asked whether it is Metaflow's, unless it is known to be aflow's `own`."""
    scheme, _, rest = url.partition(":")
    if scheme == "sqlite":
        from aflow.metadata.sqlite import SqliteMetadata

        return SqliteMetadata(_path(url, rest), durability=durability, read_only=read_only)
    if scheme == "memory":
        from aflow.metadata.sqlite import SqliteMetadata

        return SqliteMetadata(":memory:", durability=durability)
    if scheme in ("http", "https"):
        return _own_service(url) if own else _service(url, durability, read_only)
    if scheme in ("postgresql", "postgres"):
        from aflow.metadata.postgres import PostgresMetadata

        return PostgresMetadata(url, read_only)
    raise InvalidSetting(
        f"{scheme!r} is no kind of metadata that aflow knows: use sqlite:///path, "
        "postgresql://host/database, the http(s)://host of a metadata service, or memory:."
    )


def _service(url: str, durability: str, read_only: bool) -> MetadataStore:
    """The service's own metadata; or this folder's, registered there, where the service is
    Metaflow's."""
    from aflow.clock import SystemClock
    from aflow.config import Settings
    from aflow.service.registering import RegisteringMetadata, Registry
    from aflow.tokens import headers_for

    registry = Registry(url, headers_for(url), SystemClock())
    if not registry.is_one():
        registry.close()
        return _own_service(url)
    local = Settings.load().local_metadata_url
    return RegisteringMetadata(
        _path(local, local.partition(":")[2]), durability, read_only, registry
    )


def _own_service(url: str) -> MetadataStore:
    from aflow.clock import SystemClock
    from aflow.metadata.service import ServiceMetadata
    from aflow.tokens import headers_for

    return ServiceMetadata(url, headers_for(url), SystemClock())


def open_queue(url: str) -> Queue:
    """The queue at `url`; raises InvalidSetting for a kind that is not known. It belongs to the
    event loop in which it is first used."""
    scheme, _, rest = url.partition(":")
    if scheme == "memory":
        from aflow.queue.memory import MemoryQueue

        return MemoryQueue()
    if scheme == "sqlite":
        from aflow.queue.sqlite import SqliteQueue

        return SqliteQueue(_path(url, rest))
    if scheme in ("redis", "rediss", "redis+sentinel"):
        from aflow.queue.redis import RedisQueue

        return RedisQueue(url)
    if scheme in ("postgresql", "postgres"):
        from aflow.queue.postgres import PostgresQueue

        return PostgresQueue(url)
    if scheme in ("sqs", "sqs+http", "sqs+https"):
        from aflow.queue.sqs import SqsQueue

        return SqsQueue(url, open_store=open_store)
    raise InvalidSetting(
        f"{scheme!r} is no kind of queue that aflow knows: use sqlite:///path, redis://host, "
        "postgresql://host/database, sqs://region/prefix or memory:."
    )


def _folder_name(url: str) -> str:
    """A name that differs for different URLs."""
    return "".join(each if each.isalnum() else "-" for each in url)[-100:]


def _path(url: str, rest: str) -> Path:
    if not rest.startswith("//"):
        raise InvalidSetting(f"{url!r} names no path: write three slashes, as in file:///data.")
    path = path_in(rest[2:])
    # sqlite:////abs and file:///abs both name /abs; sqlite:///abs is what SQLAlchemy users write.
    return Path("/" + path.lstrip("/"))
