"""The port of the object store: the interface that every storage backend implements.

An object store holds named bytes. Names are relative paths of `[A-Za-z0-9_.-]` parts joined by
`/`. Only this package builds them, from validated ids and digests (`check_name` rejects all other
names). No name is also a folder of other names: if `a/b` is an object, `a` is not.

The contract of every backend, checked by tests/contracts/test_storage.py:

- `put` is atomic: a reader sees the whole object or none, even if the writer is killed. Putting an
  existing name replaces the object.
- All objects of a `batch` are stored when its context exits. Before that, or if the context exits
  with an error, each of them is either complete or missing.
- `put_if_absent` writes only if there is no object of that name, and returns whether it wrote. Of
  several concurrent calls exactly one wins.
- `get` returns the bytes or a range of them; it raises ObjectNotFound if there is no such object.
- `list` returns the names under a prefix, sorted, without reading the objects.
- `delete` ignores missing objects.
- If the store is missing, full, read-only or denies access, it raises StoreUnavailable, with one
  sentence that contains the location, the reason and the remedy.
- No backend retries, caches, limits or logs: wrappers do that.

Calls block and are thread-safe: the process of a task can use them without an event loop, and
asyncio programs call them in a thread. An object put with `durable=True` survives a power failure
once the call returns; otherwise it survives any crash except a power failure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from aflow.errors import InvalidName

Buffer = bytes | bytearray | memoryview
Put = Callable[[str, Sequence[Buffer]], None]  # stores the parts as the object of a name

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*(/[A-Za-z0-9_][A-Za-z0-9_.\-]*)*\Z")


def check_name(name: str) -> str:
    """Return the name if it is a valid object name.

    Args:
        name: The name: parts of letters, digits, `_`, `-` and `.`, separated by `/`.

    Raises:
        InvalidName: If the name is too long or malformed, or could escape from the store.
    """
    if len(name) > 1000 or not _NAME.match(name) or ".." in name:
        raise InvalidName(f"{name[:80]!r} cannot be the name of an object.")
    return name


def check_prefix(prefix: str) -> str:
    """Return the prefix if it is a valid prefix of object names.

    Args:
        prefix: The prefix; empty for all names.

    Raises:
        InvalidName: If no object name can have this prefix.
    """
    if prefix:
        check_name(prefix.removesuffix("/"))
    return prefix


class ObjectStore(Protocol):
    """Named bytes. The docstring of the module has the contract; backends may inherit from this."""

    @property
    def url(self) -> str:
        """The URL of the store, for messages and for other processes."""

    def put(self, name: str, parts: Sequence[Buffer], *, durable: bool = False) -> None:
        """Write the concatenated parts as one object.

        Args:
            name: The name of the object; an existing object is replaced atomically.
            parts: The bytes, in consecutive parts.
            durable: Whether the object must survive a power failure once this returns.
        """

    def batch(self, *, durable: bool = False) -> AbstractContextManager[Put]:
        """Put several objects at a lower cost than separate calls of `put`. The context must be
        used by one thread only. The caller may reuse the memory of the parts after each call.

        Args:
            durable: Whether the objects must survive a power failure once the context exits.

        Returns:
            A context manager that yields the function to put one object. The default is `put`, for
            backends in which a batch is not cheaper.
        """
        return nullcontext(self.put)

    def put_if_absent(self, name: str, parts: Sequence[Buffer], *, durable: bool = False) -> bool:
        """Write the concatenated parts as one object unless an object of this name exists.

        Args:
            name: The name of the object.
            parts: The bytes, in consecutive parts.
            durable: Whether the object must survive a power failure once this returns.

        Returns:
            Whether this call wrote it.
        """

    def get(self, name: str, start: int = 0, length: int | None = None) -> Buffer:
        """Return `length` bytes from `start` on; fewer if the object ends before.

        A backend may return a private copy-on-write mapping instead of bytes.

        Args:
            name: The name of the object; if it is missing, ObjectNotFound is raised.
            start: The offset of the first byte.
            length: The number of bytes; None for all up to the end.
        """

    def size(self, name: str) -> int | None:
        """Return the size of the object in bytes; None if there is no such object.

        Args:
            name: The name of the object.
        """

    def list(self, prefix: str) -> Iterator[str]:
        """Return the names that begin with `prefix`, sorted.

        Args:
            prefix: The prefix of the names; empty for all.
        """

    def delete(self, name: str) -> None:
        """Remove the object if it exists.

        Args:
            name: The name of the object.
        """

    def touch(self, name: str) -> bool:
        """Set the object's time of last use to now, so that `remove_untouched` keeps it.

        Args:
            name: The name of the object.

        Returns:
            False if there is no such object.
        """
        ...

    def remove_untouched(self, name: str, since: float, *, dry_run: bool = False) -> int | None:
        """Remove the object if it was neither written nor touched after `since`. A concurrent touch
        either keeps the object or returns False.

        Args:
            name: The name of the object.
            since: A time in seconds since the epoch; a later write or touch keeps the object.
            dry_run: Whether to keep the object and only return what would be removed.

        Returns:
            The size of the removed object in bytes; None if it was kept or did not exist.
        """
        ...

    def sweep(self, older_than_s: float, now: float) -> int:
        """Remove leftovers of killed writers that were last modified more than `older_than_s`
        seconds before `now`.

        Args:
            older_than_s: The minimum age of leftovers in seconds.
            now: The current time, in seconds since the epoch.

        Returns:
            The number of leftovers removed.
        """
        return 0
