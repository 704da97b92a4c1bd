"""Roots keep blobs that no run refers to: declared in the store itself by whatever needs them.

A root is the object `roots/<kind>/<holder>`: the keys of blobs, as JSON, and until when they are
needed. It lies beside the blobs, so that `gc` finds it whichever metadata it is run with, and
whether it can reach the holder (a state machine in AWS, the schedules of a server) or not. A holder
declares its root before it relies on the blobs, and withdraws it after it has release them: what
is killed between the two leaves a root too many, and never one too few.

A root of a kind or form that is not known keeps what it names all the same; one that cannot be read
stops `gc`, since nobody knows what it keeps.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from aflow._core import ids
from aflow.errors import CorruptBlob, InvalidName, ObjectNotFound

if TYPE_CHECKING:
    from aflow.storage.base import ObjectStore

FOLDER = "roots/"


class GcRoot(NamedTuple):
    """Blobs that are kept, by their keys; `until` (seconds since the epoch) they are, None for as
    long as the root is there. `about` says for people whose they are."""

    blobs: tuple[str, ...]
    about: str
    until: float | None = None


def root_name(kind: str, *holder: str) -> str:
    """Return the name of the root of a holder of this kind, whatever characters its name has.

    Args:
        kind: What holds the blobs, as `schedule`: it becomes a part of the name.
        *holder: The parts of the holder's name; hashed together.
    """
    digest = hashlib.blake2b("\0".join(holder).encode(), digest_size=16).hexdigest()
    return f"{FOLDER}{kind}/{digest}"


def declare(store: ObjectStore, name: str, root: GcRoot) -> None:
    """Keep the blobs of a root from now on, in place of those that this name kept before.

    Args:
        store: The datastore that has the blobs.
        name: The name, as `root_name` makes it.
        root: The blobs to keep, and until when.
    """
    data = {"blobs": list(root.blobs), "about": root.about, "until": root.until}
    store.put(name, [json.dumps(data).encode()], durable=True)


def declared(store: ObjectStore, name: str) -> GcRoot | None:
    """Return the root of this name; None where nothing is declared.

    Args:
        store: The datastore.
        name: The name, as `root_name` makes it.

    Raises:
        CorruptBlob: The root cannot be read.
    """
    try:
        return _read(name, bytes(store.get(name)), store.url)
    except ObjectNotFound:
        return None


def withdraw(store: ObjectStore, name: str) -> None:
    """Remove a root, if it is declared.

    Args:
        store: The datastore.
        name: The name, as `root_name` makes it.
    """
    store.delete(name)


def roots(store: ObjectStore) -> Iterator[tuple[str, GcRoot]]:
    """Yield all roots with their names.

    Args:
        store: The datastore.

    Raises:
        CorruptBlob: A root cannot be read; the error names it.
    """
    for name in store.list(FOLDER):
        root = declared(store, name)
        if root is not None:  # else: withdrawn a moment ago
            yield name, root


def kept(found: Sequence[tuple[str, GcRoot]], now: float) -> set[str]:
    """Return the keys of the blobs that these roots keep at this time.

    Args:
        found: What `roots` has yielded.
        now: The present time, in seconds since the epoch.
    """
    return {
        key for _, root in found if root.until is None or root.until > now for key in root.blobs
    }


def expired(found: Sequence[tuple[str, GcRoot]], now: float) -> list[str]:
    """Return the names of the roots that keep nothing.

    Args:
        found: What `roots` has yielded.
        now: The present time, in seconds since the epoch.
    """
    return [name for name, root in found if root.until is not None and root.until <= now]


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
