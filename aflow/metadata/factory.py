"""Which URL means which metadata store, and what stands beside it. A backend is imported when a URL
asks for it (see aflow/_core/lazy.py), since some need a package of an extra.

sqlite:////path/metadata.db     metadata.sqlite
memory:                         metadata.sqlite, in memory
https://host/prefix             metadata.http; metadata.metaflow.service for Metaflow's own service
store+s3://bucket/prefix        metadata.object_store; with #http://host registered there
postgresql://host/database      metadata.postgres
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import aflow.metadata as metadata_stores  # `aflow.metadata` is a function, too
from aflow import storage
from aflow._core.clock import SystemClock
from aflow._core.secret import as_mentioned
from aflow._core.settings import Settings, at_endpoint, looked_up, path_at
from aflow.errors import InvalidSetting, MetadataUnavailable, StoreUnavailable
from aflow.metadata import metaflow
from aflow.storage.factory import open_store

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from aflow.metadata.base import MetadataStore
    from aflow.metadata.metaflow.history import MetaflowHistory
    from aflow.metadata.metaflow.together import Beside
    from aflow.metadata.object_store import StoreMetadata
    from aflow.storage.base import ObjectStore

_REMEMBER = 10.0  # seconds for which a server does not read lists of Metaflow's again


def open_metadata(
    url: str, durability: str = "power", *, read_only: bool = False, own: bool = False
) -> MetadataStore:
    """Return the metadata store at `url`. A service is asked whether it is Metaflow's, unless it is
    known to be aflow's `own`.

    Args:
        url: The URL of the metadata store.
        durability: What committed data survive: a crash (`process`) or a power cut (`power`).
        read_only: Whether nothing is to be written.
        own: Whether a service is known to be aflow's; else it is asked whether it is Metaflow's.

    Raises:
        InvalidSetting: The kind of URL is not known.
    """
    scheme = url.partition(":")[0]
    if scheme == "sqlite":
        return metadata_stores.sqlite.SqliteMetadata(
            path_at(url), durability=durability, read_only=read_only
        )
    if scheme == "memory":
        return metadata_stores.sqlite.SqliteMetadata(":memory:", durability=durability)
    if url.startswith("store+"):
        return _in_store(url)
    if scheme in ("http", "https"):
        return _own_service(url) if own else _service(url, durability, read_only)
    if scheme in ("postgresql", "postgres"):
        return metadata_stores.postgres.PostgresMetadata(url, read_only)
    raise InvalidSetting(
        f"{scheme!r} is not a kind of metadata store that aflow knows: use sqlite:///path, "
        "postgresql://host/database, the http(s)://host of a metadata service, or memory:."
    )


def open_to_read(url: str, durability: str = "power") -> MetadataStore:
    """Return the metadata at `url`, to be read, with what Metaflow has recorded beside it; see
    `histories_of`.

    Args:
        url: The URL of the metadata store.
        durability: What committed data survive: a crash (`process`) or a power cut (`power`).
    """
    scheme = url.partition(":")[0]
    if scheme == "sqlite" and not path_at(url).exists():
        own: MetadataStore = metadata_stores.sqlite.SqliteMetadata(":memory:")
    else:
        own = open_metadata(url, durability, read_only=True)
    others: list[Beside] = [*recorded_by_jobs(own), *histories_of(url, own)]
    if others and scheme in ("postgresql", "postgres"):
        try:
            own.flows()
        except MetadataUnavailable:  # Metaflow alone has used the database
            own.close()
            own = metadata_stores.sqlite.SqliteMetadata(":memory:")
    return _together(own, others)


def open_all_own(url: str, durability: str = "power", *, read_only: bool = False) -> MetadataStore:
    """Return the metadata at `url`, with what jobs have recorded in the object store.

    Args:
        url: The URL of the metadata store.
        durability: What committed data survive: a crash (`process`) or a power cut (`power`).
        read_only: Whether nothing is to be written.
    """
    own = open_metadata(url, durability, read_only=read_only)
    return _together(own, recorded_by_jobs(own))


def _together(own: MetadataStore, others: Sequence[Beside]) -> MetadataStore:
    if not others:
        return own
    return cast("MetadataStore", metaflow.together.WithHistory(own, others))


def recorded_by_jobs(own: MetadataStore) -> list[StoreMetadata]:
    """Return where jobs of deployed flows record runs, if the `own` metadata is registered in a
    service of Metaflow's, which cannot keep that: the object store, if there are any.

    Args:
        own: The metadata store of aflow itself.
    """
    url = Settings.load().storage_url
    if not isinstance(own, metaflow.service.RegisteringMetadata) or not url.startswith("s3://"):
        return []
    found = metadata_stores.object_store.StoreMetadata(open_store(url))
    if found.has_runs:
        return [found]
    found.close()
    return []


def has_runs(url: str) -> bool:
    """Return whether there may be runs in the metadata at `url`, or beside it: of a server that has
    to be asked.

    Args:
        url: The URL of the metadata store.
    """
    scheme = url.partition(":")[0]
    return scheme != "sqlite" or path_at(url).exists() or bool(histories_of(url))


def history_folder(url: str) -> Path | None:
    """Return the folder of Metaflow's local metadata beside aflow's; None where there is none.

    Args:
        url: The URL of the metadata store.
    """
    scheme = url.partition(":")[0]
    if scheme != "sqlite" or looked_up("HISTORY") is not None:
        return None
    database = path_at(url)
    found = database.parent.parent / ".metaflow"
    return found if database.parent.name == ".aflow" and found.is_dir() else None


def open_to_serve(own: MetadataStore, url: str) -> MetadataStore:
    """Return the `own` metadata of a server, at `url`, with what Metaflow has recorded beside it.

    Lists are read every few seconds at most. Of folders only those are opened that settings name:
    elsewhere a record would decide which files of this machine a server reads.

    Args:
        own: The metadata store of aflow itself.
        url: The URL of the metadata store.
    """
    return _together(own, histories_of(url, own, to_serve=True))


def histories_of(
    url: str, own: MetadataStore | None = None, *, to_serve: bool = False
) -> list[MetaflowHistory]:
    """Return what Metaflow has recorded beside the metadata: in the folder `.metaflow`, in the
    service, in the tables of its service in the same database. AFLOW_HISTORY names other places,
    separated by commas, or `none`.

    Args:
        url: The URL of the metadata store.
        own: The metadata store at the URL, if it is open.
        to_serve: Whether a server asks, which opens only folders that settings name.

    Raises:
        InvalidSetting: A place in AFLOW_HISTORY is not one of these.
    """
    named = looked_up("HISTORY")
    if named is not None:
        places = [each.strip() for each in named.split(",") if each.strip() not in ("", "none")]
    elif url.startswith(("http://", "https://", "postgresql://", "postgres://")):
        places = [url]
    else:
        folder = history_folder(url)
        places = [] if folder is None else [str(folder)]
    folders = [_folder_of(each) for each in places if "://" not in each] if to_serve else None
    found = [_history(each, own if each == url else None, folders) for each in places]
    return [each for each in found if each is not None]


def _folder_of(place: str) -> Path:
    folder = Path(place).expanduser().absolute()
    if folder.name != ".metaflow" and (folder / ".metaflow").is_dir():
        folder /= ".metaflow"
    return folder


def _history(
    place: str, own: MetadataStore | None, folders: Sequence[Path] | None
) -> MetaflowHistory | None:
    """The history at a place; None where there is none beside aflow's `own` metadata. A server
    reads values in these `folders` alone."""
    # A service may keep its registrations in a folder, and lists aflow's runs among the others.
    history_of = partial(
        metaflow.history.MetaflowHistory,
        open_place=partial(_place_of_theirs, folders=folders),
        now=SystemClock.now,
        left_out=_is_of_aflow,
        remember=0.0 if folders is None else _REMEMBER,
    )
    if place.startswith(("http://", "https://")):
        service = metaflow.sources.ServiceSource(
            place, metadata_stores.tokens.headers_for(place), SystemClock()
        )
        if isinstance(own, metadata_stores.http.ServiceMetadata):
            service.registered = "_registered=1"
        return history_of(service)
    if place.startswith(("postgresql://", "postgres://")):
        tables = metaflow.tables.TablesSource(place)
        if not tables.is_there and own is not None:
            tables.close()
            return None
        if not tables.is_there:
            raise InvalidSetting(f"AFLOW_HISTORY: {tables.url} has no table flows_v3.")
        return history_of(tables)
    folder = _folder_of(place)
    if not folder.is_dir():
        raise InvalidSetting(
            f"AFLOW_HISTORY: there is no folder {as_mentioned(str(folder))}: name a folder "
            ".metaflow, the http(s):// of a metadata service, or the postgresql:// of its database."
        )
    return history_of(metaflow.sources.FolderSource(folder))


def _is_of_aflow(row: Mapping[str, Any]) -> bool:
    """Whether a registered run is one of aflow's, which are listed from aflow's own metadata."""
    return str(row.get("run_number")).startswith("aflow-") or any(
        str(tag).startswith("aflow_version:") for tag in row.get("system_tags") or ()
    )


def _place_of_theirs(root: str, folders: Sequence[Path] | None = None) -> ObjectStore:
    """The datastore of Metaflow's at a place in S3 or a folder: one of `folders`, where these are
    given."""
    if root.startswith("s3://"):
        return open_store(at_endpoint(root, Settings.load().s3_endpoint))
    if not root:
        raise StoreUnavailable("Metaflow has not recorded where the values of this run are.")
    if folders is not None and Path(root) not in folders:
        raise StoreUnavailable(
            f"The values of this run are in {root}, which a server does not read: name the folder "
            "in AFLOW_HISTORY."
        )
    return storage.local.LocalStore(Path(root))


def _service(url: str, durability: str, read_only: bool) -> MetadataStore:
    """The service's own metadata; or this folder's, registered there, where the service is
    Metaflow's."""
    registry = metaflow.service.Registry(
        url, metadata_stores.tokens.headers_for(url), SystemClock()
    )
    if not registry.is_one():
        registry.close()
        return _own_service(url)
    local = Settings.load().local_metadata_url
    path = path_at(local)
    if read_only and not path.exists():  # nothing has run here: what is registered is read
        return metaflow.service.RegisteringMetadata(":memory:", durability, False, registry)
    return metaflow.service.RegisteringMetadata(
        path, durability, read_only, registry, _open_to_copy
    )


def _open_to_copy(url: str) -> ObjectStore | None:
    """The store of a run, which this program has recorded itself."""
    return None if url.startswith("memory:") else open_store(url)


def _in_store(url: str) -> MetadataStore:
    """Metadata in the store at `store+URL`, registered in the service behind a `#`, if there is
    one."""
    place, _, service = url.removeprefix(metadata_stores.object_store.SCHEME).partition("#")
    if not service:
        return metadata_stores.object_store.StoreMetadata(open_store(place))
    # A job has no time to wait for it, and what it records is in the store.
    registry = metaflow.service.Registry(
        service, metadata_stores.tokens.headers_for(service), SystemClock(), patience=20.0
    )
    return metaflow.service.RegisteringStoreMetadata(open_store(place), registry)


def _own_service(url: str) -> MetadataStore:
    return metadata_stores.http.ServiceMetadata(
        url, metadata_stores.tokens.headers_for(url), SystemClock()
    )
