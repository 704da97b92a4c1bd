"""GC roots: objects in the datastore that protect blobs to which no run refers.

A root is the object `roots/<kind>/<holder>`: JSON with the keys of blobs and an expiry time. Roots
are stored next to the blobs, so that `gc` finds them with any metadata store, and even if it cannot
reach the holder (a state machine in AWS, the schedules of a server). A holder declares its root
before it relies on the blobs, and withdraws it after it has released them: if the holder is killed
in between, a superfluous root remains, but none is missing.

A root of an unknown kind still protects its blobs. An unreadable root stops `gc`, since its blobs
are unknown.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from aflow._core import ids
from aflow.errors import CorruptBlob, InvalidName, ObjectNotFound

if TYPE_CHECKING:
    from aflow.storage.base import ObjectStore

FOLDER = "roots/"


class GcRoot(NamedTuple):
    """The keys of the protected blobs. The root expires at `until` (seconds since the epoch), or
    never if that is None. `about` describes the holder."""

    blobs: tuple[str, ...]
    about: str
    until: float | None = None

    def has_expired(self, now: float) -> bool:
        """Return whether the root protects nothing any more at this time.

        Args:
            now: The current time, in seconds since the epoch.
        """
        return self.until is not None and self.until <= now


def root_name(kind: str, *holder: str) -> str:
    """Return the object name of a holder's root.

    Args:
        kind: The kind of holder, such as `schedule`, which becomes part of the name.
        *holder: The parts of the holder's name, in any characters; they are hashed together.
    """
    digest = hashlib.blake2b("\0".join(holder).encode(), digest_size=16).hexdigest()
    return f"{FOLDER}{kind}/{digest}"


def declare(store: ObjectStore, name: str, root: GcRoot) -> None:
    """Store a root, and replace an existing root of this name.

    Args:
        store: The datastore of the blobs.
        name: The name that `root_name` returned.
        root: The blobs to protect, and the expiry time.
    """
    data = {"blobs": list(root.blobs), "about": root.about, "until": root.until}
    store.put(name, [json.dumps(data).encode()], durable=True)


def declared(store: ObjectStore, name: str) -> GcRoot | None:
    """Return the root of this name; None if there is none.

    Args:
        store: The datastore.
        name: The name that `root_name` returned.

    Raises:
        CorruptBlob: If the root is malformed.
    """
    try:
        return _read(name, bytes(store.get(name)), store.url)
    except ObjectNotFound:
        return None


def withdraw(store: ObjectStore, name: str) -> None:
    """Remove a root if it exists.

    Args:
        store: The datastore.
        name: The name that `root_name` returned.
    """
    store.delete(name)


def roots(store: ObjectStore) -> Iterator[tuple[str, GcRoot]]:
    """Yield all roots with their names.

    Args:
        store: The datastore.

    Raises:
        CorruptBlob: If a root is malformed; the error names it.
    """
    for name in store.list(FOLDER):
        root = declared(store, name)
        if root is not None:  # otherwise it has just been withdrawn
            yield name, root


def _read(name: str, data: bytes, where: str) -> GcRoot:
    try:
        record = json.loads(data)
        until = record.get("until")
        if until is not None:
            until = float(until)
        return GcRoot(
            tuple(map(ids.blob_key, record["blobs"])), str(record.get("about", "")), until
        )
    except (ValueError, KeyError, TypeError, AttributeError, InvalidName) as error:
        raise CorruptBlob(
            f"The root {name} in {where} cannot be read, so that nobody knows what it keeps: "
            "restore it, or delete it if whatever made it is gone."
        ) from error
