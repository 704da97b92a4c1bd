"""The port of the object store: the one thing that a storage backend implements.

An object store holds named bytes. Names are relative paths of `[A-Za-z0-9_.-]` parts joined by
`/`, made by this package alone from checked ids and digests (`check_name` refuses all else). No
name is a folder of another: where `a/b` is an object, `a` is none.

What every backend promises, and tests/contracts/test_storage.py checks:

- `put` is atomic: a reader sees the whole object or none, whatever is killed when. Putting a
  name again replaces it.
- what is put in one `batch` is all there when the batch has ended; before that, and where an error
  has ended it, each of its objects is whole or not there.
- `put_if_absent` writes only where nothing is, and says whether it wrote; of many at the same
  time exactly one wins.
- `get` gives the bytes, or a range of them; ObjectNotFound where there is no such object.
- `list` gives the names under a prefix, sorted, without reading the objects.
- `delete` of what is not there is fine.
- A store that is missing, full, read-only or refuses raises StoreUnavailable: one sentence with
  the place, the reason and what to do.
- No backend retries, caches, limits or logs: wrappers do that.

Calls block and are safe from many threads at once: a task's process needs no event loop to use
them, and asyncio programs call them in a thread. What is put with `durable=True` survives a power
cut once the call returns; else it survives any crash but that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from aflow.errors import InvalidName

Buffer = bytes | bytearray | memoryview
Put = Callable[[str, Sequence[Buffer]], None]  # puts the parts under a name

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*(/[A-Za-z0-9_][A-Za-z0-9_.\-]*)*\Z")


def check_name(name: str) -> str:
    """Return the name, if it can name an object.

    Args:
        name: The name: parts of letters, digits, `_`, `-` and `.`, separated by `/`.

    Raises:
        InvalidName: The name is too long, or could lead out of the store.
    """
    if len(name) > 1000 or not _NAME.match(name) or ".." in name:
        raise InvalidName(f"{name[:80]!r} cannot be the name of an object.")
    return name


def check_prefix(prefix: str) -> str:
    """Return the prefix, if names can begin with it (the empty one: all).

    Args:
        prefix: What the names begin with; empty for all.

    Raises:
        InvalidName: The name is not allowed.
    """
    if prefix:
        check_name(prefix.removesuffix("/"))
    return prefix


class ObjectStore(Protocol):
    """Named bytes; see the module's text for what is promised. A backend may derive from it."""

    @property
    def url(self) -> str:
        """Where it is, for people and for other processes."""

    def put(self, name: str, parts: Sequence[Buffer], *, durable: bool = False) -> None:
        """Write the parts, one after the other, as one object.

        Args:
            name: The name of the object; an existing one is replaced as a whole.
            parts: The bytes, in parts, one after the other.
            durable: Whether the object has to survive a power cut when this returns.
        """

    def batch(self, *, durable: bool = False) -> AbstractContextManager[Put]:
        """Put several objects for less than as many calls of `put` cost. The context belongs to one
        thread. The memory of the parts may be reused after each call.

        Args:
            durable: Whether the object has to survive a power cut when this returns.

        Returns:
            A context manager that gives the function to put an object with. Here it is `put`, for
            backends in which several objects cost as much as one after the other.
        """
        return nullcontext(self.put)

    def put_if_absent(self, name: str, parts: Sequence[Buffer], *, durable: bool = False) -> bool:
        """Write the parts as one object, unless an object has this name.

        Args:
            name: The name of the object.
            parts: The bytes, in parts, one after the other.
            durable: Whether the object has to survive a power cut when this returns.

        Returns:
            Whether this call wrote it.
        """

    def get(self, name: str, start: int = 0, length: int | None = None) -> Buffer:
        """Return the bytes from `start`, `length` of them or up to the end (fewer past the end).

        A backend may give a private copy-on-write mapping instead of bytes.

        Args:
            name: The name of the object; ObjectNotFound where there is none.
            start: The position of the first byte.
            length: How many bytes; None for all up to the end.
        """

    def size(self, name: str) -> int | None:
        """Return how many bytes the object has; None where there is no such object.

        Args:
            name: The name of the object.
        """

    def list(self, prefix: str) -> Iterator[str]:
        """Return the names that begin with `prefix`, sorted.

        Args:
            prefix: What the names begin with; empty for all.
        """

    def delete(self, name: str) -> None:
        """Remove the object, if it is there.

        Args:
            name: The name of the object.
        """

    def touch(self, name: str) -> bool:
        """Keep `remove_untouched` from removing an object for a while.

        Args:
            name: The name of the object.

        Returns:
            False where there is no such object.
        """
        ...

    def remove_untouched(self, name: str, since: float, *, dry_run: bool = False) -> int | None:
        """Remove the object if it was neither written nor touched since then (seconds since the
        epoch). A touch at the same time either keeps the object, or says that it is gone. With
        `dry_run` it stays in any case.

        Args:
            name: The name of the object.
            since: The time, in seconds since the epoch, after which a write or a touch keeps the
                object.
            dry_run: Whether only to say what would be done.

        Returns:
            How many bytes it had, None if it stays or was not there.
        """
        ...

    def sweep(self, older_than_s: float, now: float) -> int:
        """Remove what writers that died have left behind, if it was last touched longer than
        `older_than_s` seconds before `now`.

        Args:
            older_than_s: For how many seconds it was not touched.
            now: The present time, in seconds since the epoch.

        Returns:
            How many things that were.
        """
        return 0
