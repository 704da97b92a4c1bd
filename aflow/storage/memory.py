"""The in-memory object store, for tests and throwaway runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from aflow._core.clock import SystemClock
from aflow.errors import ObjectNotFound
from aflow.storage.base import Buffer, ObjectStore, check_name, check_prefix


class MemoryStore(ObjectStore):
    """Objects in a dictionary, which exist as long as the store does. `durable` is ignored."""

    url = "memory:"

    def __init__(self) -> None:
        self._objects: dict[str, bytes] = {}
        self._touched: dict[str, float] = {}
        self._lock = threading.Lock()

    def put(self, name: str, parts: Sequence[Buffer], *, durable: bool = False) -> None:
        """Write the concatenated parts as one object; see the port."""
        data = b"".join(parts)
        with self._lock:
            self._objects[check_name(name)] = data
            self._touched[name] = SystemClock.now()

    def put_if_absent(self, name: str, parts: Sequence[Buffer], *, durable: bool = False) -> bool:
        """Write an object unless it exists; see the port."""
        data = b"".join(parts)
        with self._lock:
            self._touched.setdefault(check_name(name), SystemClock.now())
            if name in self._objects:
                return False
            self._objects[name] = data
            return True

    def get(self, name: str, start: int = 0, length: int | None = None) -> Buffer:
        """Return `length` bytes from `start` on, or all up to the end; see the port."""
        try:
            data = self._objects[check_name(name)]
        except KeyError:
            raise ObjectNotFound(f"There is no object {name!r} in {self.url}") from None
        return data[start : None if length is None else start + length]

    def size(self, name: str) -> int | None:
        """Return the size of the object in bytes; None if there is no such object."""
        data = self._objects.get(check_name(name))
        return None if data is None else len(data)

    def list(self, prefix: str) -> Iterator[str]:
        """Return the names that begin with `prefix`, sorted."""
        check_prefix(prefix)
        with self._lock:
            names = sorted(name for name in self._objects if name.startswith(prefix))
        return iter(names)

    def delete(self, name: str) -> None:
        """Remove the object if it exists."""
        with self._lock:
            self._objects.pop(check_name(name), None)
            self._touched.pop(name, None)

    def touch(self, name: str) -> bool:
        """Set the object's time of last use to now; see the port."""
        with self._lock:
            there = check_name(name) in self._objects
            if there:
                self._touched[name] = SystemClock.now()
        return there

    def remove_untouched(self, name: str, since: float, *, dry_run: bool = False) -> int | None:
        """Remove the object if it was neither written nor touched after `since`; see the port."""
        with self._lock:
            data = self._objects.get(check_name(name))
            if data is None or self._touched[name] >= since:
                return None
            if not dry_run:
                del self._objects[name], self._touched[name]
        return len(data)
