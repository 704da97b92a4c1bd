"""Opens metadata stores by URL, together with the histories next to them. A backend is imported
when a URL requires it (see aflow/_core/lazy.py), since some need packages of an extra.

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

_REMEMBER = 10.0  # seconds for which a server caches lists of Metaflow's


def open_metadata(
    url: str, durability: str = "power", *, read_only: bool = False, own: bool = False
) -> MetadataStore:
    """Return the metadata store at `url`. An HTTP service is probed whether it is Metaflow's or
    aflow's, unless `own` is set.

    Args:
        url: A URL of one of the kinds in the module docstring.
        durability: What committed data must survive: a crash (`process`) or a power failure
            (`power`).
        read_only: Whether to open the store for reading only.
        own: Whether an HTTP service is known to be aflow's.

    Raises:
        InvalidSetting: If the kind of URL is unknown.
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
    """Return the metadata at `url` for reading, combined with what jobs have recorded in the object
    store and what Metaflow has recorded next to it; see `recorded_by_jobs` and `histories_of`.

    Args:
        url: The URL of aflow's metadata; see `open_metadata`.
        durability: See `open_metadata`.
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
        except MetadataUnavailable:  # only Metaflow has used the database
            own.close()
            own = metadata_stores.sqlite.SqliteMetadata(":memory:")
    return _together(own, others)


def open_all_own(url: str, durability: str = "power", *, read_only: bool = False) -> MetadataStore:
    """Return the metadata at `url`, combined with what jobs have recorded in the object store.

    Args:
        url: The URL of aflow's metadata; see `open_metadata`.
        durability: See `open_metadata`.
        read_only: Whether to open the store for reading only.
    """
    own = open_metadata(url, durability, read_only=read_only)
    return _together(own, recorded_by_jobs(own))


def _together(own: MetadataStore, others: Sequence[Beside]) -> MetadataStore:
    if not others:
        return own
    return cast("MetadataStore", metaflow.together.WithHistory(own, others))


def recorded_by_jobs(own: MetadataStore) -> list[StoreMetadata]:
    """Return the metadata in the object store, where jobs of deployed flows record their runs if
    `own` is registered in a service of Metaflow's, which cannot store them. Empty if there are no
    such runs.

    Args:
        own: aflow's metadata store.
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
    """Return whether there may be runs in the metadata at `url` or next to it. Only SQLite files
    and their histories are checked; the result is True for all other URLs.

    Args:
        url: The URL of aflow's metadata; see `open_metadata`.
    """
    scheme = url.partition(":")[0]
    return scheme != "sqlite" or path_at(url).exists() or bool(histories_of(url))


def history_folder(url: str) -> Path | None:
    """Return the folder of Metaflow's local metadata next to aflow's, or None if there is none or
    AFLOW_HISTORY is set.

    Args:
        url: The URL of aflow's metadata; see `open_metadata`.
    """
    scheme = url.partition(":")[0]
    if scheme != "sqlite" or looked_up("HISTORY") is not None:
        return None
    database = path_at(url)
    found = database.parent.parent / ".metaflow"
    return found if database.parent.name == ".aflow" and found.is_dir() else None


def open_to_serve(own: MetadataStore, url: str) -> MetadataStore:
    """Return the `own` metadata of a server combined with what Metaflow has recorded next to it.

    Lists are cached for a few seconds. Only folders that settings name are opened: otherwise a
    record could make the server read any file of this machine.

    Args:
        own: aflow's metadata store, which the server has opened.
        url: Its URL.
    """
    return _together(own, histories_of(url, own, to_serve=True))


def histories_of(
    url: str, own: MetadataStore | None = None, *, to_serve: bool = False
) -> list[MetaflowHistory]:
    """Return what Metaflow has recorded next to aflow's metadata: in the folder `.metaflow`, in the
    service, or in the tables of its service in the same database. AFLOW_HISTORY overrides the
    places: a comma-separated list, or `none`.

    Args:
        url: The URL of aflow's metadata; see `open_metadata`.
        own: The metadata store at the URL, if it is open.
        to_serve: Whether the caller is a server, which opens only folders that settings name, and
            caches lists.

    Raises:
        InvalidSetting: If a place in AFLOW_HISTORY is not one of these.
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
    """Return the history at a place, or None if it is in the database of `own` and there are no
    tables of Metaflow's. With `folders`, values are read only in these."""
    # A service may store its registrations in a folder, and lists aflow's runs with the others.
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
    """Return whether a registered run is aflow's; those are listed from aflow's own metadata."""
    return str(row.get("run_number")).startswith("aflow-") or any(
        str(tag).startswith("aflow_version:") for tag in row.get("system_tags") or ()
    )


def _place_of_theirs(root: str, folders: Sequence[Path] | None = None) -> ObjectStore:
    """Return Metaflow's datastore at an S3 URL or in a folder, one of `folders` if given."""
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
    """Return the metadata of the service at `url` if it is aflow's; if it is Metaflow's, the local
    metadata, whose runs are registered there."""
    registry = metaflow.service.Registry(
        url, metadata_stores.tokens.headers_for(url), SystemClock()
    )
    if not registry.is_one():
        registry.close()
        return _own_service(url)
    local = Settings.load().local_metadata_url
    path = path_at(local)
    if read_only and not path.exists():  # nothing has run here: only registered runs are read
        return metaflow.service.RegisteringMetadata(":memory:", durability, False, registry)
    return metaflow.service.RegisteringMetadata(
        path, durability, read_only, registry, _open_to_copy
    )


def _open_to_copy(url: str) -> ObjectStore | None:
    """Return the datastore of a run that this program has recorded; None if it is in memory."""
    return None if url.startswith("memory:") else open_store(url)


def _in_store(url: str) -> MetadataStore:
    """Return metadata in the object store at `store+URL`, registered in the service after `#`."""
    place, _, service = url.removeprefix(metadata_stores.object_store.SCHEME).partition("#")
    if not service:
        return metadata_stores.object_store.StoreMetadata(open_store(place))
    # A short patience: a job must not wait for the service, as its records are in the store.
    registry = metaflow.service.Registry(
        service, metadata_stores.tokens.headers_for(service), SystemClock(), patience=20.0
    )
    return metaflow.service.RegisteringStoreMetadata(open_store(place), registry)


def _own_service(url: str) -> MetadataStore:
    return metadata_stores.http.ServiceMetadata(
        url, metadata_stores.tokens.headers_for(url), SystemClock()
    )
