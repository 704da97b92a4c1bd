"""The metadata store and the namespace that the client reads from.

Both are chosen for the whole program. By default the client reads where `aflow run` would record
runs, given the current working directory, and shows the runs of the user.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from aflow._core import ids
from aflow._core.secret import revealed, sealed
from aflow._core.settings import (
    FOLDER,
    Settings,
    expanded,
    path_in,
    with_own_passwords,
)
from aflow.errors import InvalidInput, MetadataUnavailable, NotFound
from aflow.flow.current import current
from aflow.metadata.base import FIRST_KEY, MARK, SPIN
from aflow.metadata.factory import history_folder, open_metadata, open_to_read
from aflow.metadata.metaflow.together import store_of_history
from aflow.storage.blobs import BlobStore
from aflow.storage.factory import open_recorded_store

if TYPE_CHECKING:
    from aflow.metadata.base import MetadataStore
    from aflow.storage.base import ObjectStore

_LOCAL = "local@"
_SQLITE = "sqlite:///"
_SERVICE = "service@"
_POSTGRES = ("postgresql://", "postgres://")


class ClientStores:
    """A metadata store, and the object stores of its runs.

    `open_metadata(read_only)` opens the store, or returns one that is already open. `database` is
    the file of a local store; None if there is no file. `storage` is an object store, or the URL of
    the one next to the metadata, if there is one.
    """

    def __init__(
        self,
        description: str,
        open_metadata: Callable[[bool], MetadataStore],
        storage: str | ObjectStore | None,
        database: Path | None = None,
        borrowed: bool = False,
    ) -> None:
        self.description = description
        self._open_metadata = open_metadata
        self._storage = storage
        self._database = database
        self._borrowed = borrowed
        self._opened: dict[int, MetadataStore] = {}  # by process id: a store must not cross a fork
        self._blobs: dict[str, BlobStore] = {}

    @property
    def has_begun(self) -> bool:
        """Whether any run has been recorded here."""
        if self._database is None or self._database.exists():
            return True
        return bool(history_folder(f"{_SQLITE}{self._database}"))

    @property
    def metadata(self) -> MetadataStore:
        """The store to read from; raises NotFound if no run has been recorded yet."""
        if not self.has_begun:
            raise NotFound(
                f"Nothing has run here yet: there is no {self._database}. Run a flow, or call "
                "metadata('local@/path') to look elsewhere."
            )
        store = self._opened.get(os.getpid())
        if store is None:
            store = self._opened[os.getpid()] = self._open_metadata(True)
        return store

    def change_tags(self, run_key: int, add: list[str], remove: list[str]) -> tuple[str, ...]:
        """Change a run's tags and return the new ones. Opens the store for writing only for this
        call. Raises InvalidInput for a run of Metaflow."""
        if run_key >= FIRST_KEY:  # of another store, such as Metaflow's, that is read as well
            return self.metadata.change_tags(run_key, add, remove)
        with self.writing() as store:
            return store.change_tags(run_key, add, remove)

    @contextmanager
    def writing(self) -> Iterator[MetadataStore]:
        """Yield the store, open for writing; it is closed at the end of the block."""
        store = self._open_metadata(False)
        try:
            yield store
        finally:
            if not self._borrowed:  # a borrowed store belongs to the caller
                store.close()

    def blobs(self, url: str) -> BlobStore:
        """Return the blobs in an object store.

        Args:
            url: The URL of the store, as recorded in the run's settings.
        """
        found = self._blobs.get(url)
        if found is None:
            found = self._blobs[url] = BlobStore(self._store(url))
        return found

    def _store(self, url: str) -> ObjectStore:
        theirs = store_of_history(self.metadata, url) if MARK in url else None
        if theirs is not None:  # the store of a run of Metaflow
            return theirs
        if self._storage is not None and not isinstance(self._storage, str):
            return self._storage
        # A folder that was moved, or is mounted elsewhere, still has its data next to its
        # metadata.
        moved = url.startswith("file:") and not os.path.isdir(path_in(url.removeprefix("file://")))
        return open_recorded_store(self._storage if moved and self._storage else url)


_places: dict[str, ClientStores] = {}
_chosen: ClientStores | None = None
_kind = ""  # the kind of runs in listings
_namespace: str | None = None
_namespace_is_chosen = False


# ------------------------------------------------------------------ metadata


def place() -> ClientStores:
    """Return the stores that the client reads from now."""
    return _chosen or _inside() or _set()


def place_at(description: str) -> ClientStores:
    """Return the stores for a description that `get_metadata` returned.

    Args:
        description: The URL of a metadata store; `TYPE@PLACE` in Metaflow.

    Raises:
        MetadataUnavailable: If the store was in the memory of another process.
    """
    found = _places.get(description)
    if found is not None:
        return found
    try:
        return _described(description)
    except InvalidInput as error:
        raise MetadataUnavailable(
            f"The metadata {description!r} belongs to another process and cannot be read here."
        ) from error


def metadata(description: str) -> str:
    """Read runs from another store: `local@/path` is an `.aflow` folder or its parent folder,
    `sqlite:////path/file.db` a database, `postgresql://user@host/database` one on a server,
    `https://host` or `service@https://host` a metadata service, `local` the folder where `aflow
    run` would record runs.

    Args:
        description: The URL of a metadata store; `TYPE@PLACE` in Metaflow.

    Returns:
        The description that `get_metadata` returns from now on.

    Raises:
        InvalidInput: If the description is none of these.
    """
    global _chosen, _kind
    _chosen, _kind = _described(description), ""
    return _chosen.description


def inspect_spin(datastore_root: str = ".") -> None:
    """Read from this folder, and list the runs of `spin` instead of those of whole flows, until
    `metadata` or `default_metadata` is called. Other runs can still be read by their ids.

    Args:
        datastore_root: The root of the datastore of spun tasks.
    """
    global _kind
    metadata(f"{_LOCAL}{datastore_root}")
    _kind = SPIN


def listed_kind() -> str:
    """Return the kind of the runs that listings show."""
    return _kind


def get_metadata() -> str:
    """Return the description of the current store, such as `local@/path/.aflow` or the URL of a
    metadata service."""
    return place().description


def default_metadata() -> str:
    """Undo the choice of `metadata`, and read where `aflow run` would record runs.

    Returns:
        The description of the store, as `metadata` returns it.
    """
    global _chosen, _kind
    _chosen, _kind = None, ""
    return get_metadata()


def connect_to(metadata_store: MetadataStore, store: ObjectStore) -> str:
    """Read from open stores, such as those in memory of a test, until `metadata` or
    `default_metadata` is called. The client does not close them.

    Args:
        metadata_store: An open metadata store; the caller closes it.
        store: An open datastore; the caller closes it.

    Returns:
        The description of the store, as `metadata` returns it.
    """
    global _chosen
    description = f"{metadata_store.url}#{id(metadata_store)}"
    _chosen = _places[description] = ClientStores(
        description, lambda read_only: metadata_store, store, borrowed=True
    )
    return description


def _described(description: str) -> ClientStores:
    if description == "local":
        return _local()
    address = description.removeprefix(_SERVICE)
    if address.startswith(("http://", "https://")):
        return _stores(address, partial(_open_url, address))
    if description.startswith(_LOCAL) and description != _LOCAL:
        return _local(description.removeprefix(_LOCAL))
    if description.startswith(_SQLITE) and description != _SQLITE:
        database = Path(path_in(description.removeprefix(_SQLITE)))
        return _stores(description, partial(_open_url, description), database=database)
    if description.startswith(_POSTGRES):
        return _server(description)
    raise InvalidInput(
        f"{description!r} is not a metadata store that aflow knows: write local@/path, "
        "sqlite:////path, "
        "postgresql://user@host/database, https://host of a metadata service, or local."
    )


def _inside() -> ClientStores | None:
    """Return the store of the running task's run, if this is a task and the runtime set it."""
    url = current.get("metadata_url") if current.is_running_flow else None
    if url is None or not url.startswith("postgres"):
        return None if url is None else place_at(url)
    # On another machine the URL has no password; the settings there have it.
    return place_at(with_own_passwords(revealed(url), Settings.load()))


def _set() -> ClientStores:
    """Return the store where `aflow run` would record runs."""
    settings = Settings.load()
    return _local() if settings.metadata == "local" else _described(settings.metadata_url)


def _stores(
    description: str,
    opened: Callable[[bool], MetadataStore],
    storage: str | None = None,
    database: Path | None = None,
) -> ClientStores:
    """Return the stores with this description: the same object each time."""
    found = _places.get(description)
    if found is None:
        found = _places[description] = ClientStores(description, opened, storage, database)
    return found


def _server(url: str) -> ClientStores:
    """Return the stores of metadata on a server. A description contains no password: that of the
    settings is used if they name the same server, otherwise libpq looks for one (PGPASSWORD,
    ~/.pgpass)."""
    url = sealed(url)
    shown = str(url)
    found = _places.get(shown)
    if found is None or revealed(url) != shown:
        ours = Settings.load().metadata
        if revealed(url) == shown == ours:
            url = ours
        found = _places[shown] = ClientStores(shown, partial(_open_url, url), None)
    return found


def _open_url(url: str, read_only: bool, durability: str = "power") -> MetadataStore:
    return open_to_read(url, durability) if read_only else open_metadata(url, durability)


def _local(path: str | None = None) -> ClientStores:
    root = None if path is None else _root_in(path)
    settings = Settings.load(datastore_root=root, metadata="local")
    return _stores(
        f"{_LOCAL}{settings.root}",
        lambda read_only: _open_url(settings.local_metadata_url, read_only, settings.durability),
        settings.storage_url,
        settings.root / "metadata.db",
    )


def _root_in(path: str) -> str:
    folder = expanded(path).absolute()
    has_one = (folder / FOLDER).is_dir() and not (folder / "metadata.db").exists()
    return str(folder / FOLDER if has_one else folder)


# ------------------------------------------------------------------ namespace


def namespace(tag: str | None) -> str | None:
    """Show only the runs that have a tag.

    Args:
        tag: The tag; None to show the runs of all users.

    Returns:
        The tag.

    Raises:
        InvalidName: If the tag is not allowed.
    """
    global _namespace, _namespace_is_chosen
    _namespace = None if tag is None else ids.tag(tag)
    _namespace_is_chosen = True
    return _namespace


def get_namespace() -> str | None:
    """Return the tag that a run must have to be shown; None if all runs are shown.

    By default it is the namespace of the run inside of a task, otherwise AFLOW_NAMESPACE or
    `user:<name>`."""
    if _namespace_is_chosen:
        return _namespace
    if current.is_running_flow:
        inside: str | None = current.namespace
        return inside
    return Settings.load().default_namespace


def default_namespace() -> str | None:
    """Undo the choice of `namespace`.

    Returns:
        The namespace that `get_namespace` returns from now on.
    """
    global _namespace_is_chosen
    _namespace_is_chosen = False
    return get_namespace()
