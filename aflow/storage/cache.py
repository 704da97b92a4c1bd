"""A wrapper of an object store that caches blobs on a local disk.

Blobs never change, so a cached copy never becomes stale. The size of the cache is limited: the
least recently used copies are evicted. Several processes may share the folder. Each copy ends with
a checksum, and a damaged copy is fetched again. Large blobs are not cached: they would evict all
others.
"""

from __future__ import annotations

import os
import struct
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from aflow._core.private_folders import read_regular
from aflow.storage.base import Buffer, ObjectStore, Put, check_name

LARGEST = 64 << 20  # bytes of the largest blob that is cached
_PREFIX = "blobs/"
_CHECK = struct.Struct("<4sIQ")
_MAGIC = b"AFC1"
_LOOK_AFTER = 16  # the folder is scanned each time 1/16 of the limit was added


class CachedStore:
    """Wraps a store and caches up to `limit` bytes of blobs in a folder."""

    def __init__(self, store: ObjectStore, folder: Path, limit: int) -> None:
        self._store = store
        self._folder = folder
        self._limit = limit
        self._added = limit  # so that the first copy scans the folder

    @property
    def url(self) -> str:
        """The URL of the store."""
        return self._store.url

    def put(self, name: str, parts: Sequence[Buffer], *, durable: bool = False) -> None:
        """Write an object, and cache it if it is a blob: its reader may be on this machine."""
        self._store.put(name, parts, durable=durable)
        self._keep(name, parts)

    @contextmanager
    def batch(self, *, durable: bool = False) -> Iterator[Put]:
        """Put several objects, and cache those that are blobs; see the port."""
        with self._store.batch(durable=durable) as put:

            def put_and_keep(name: str, parts: Sequence[Buffer]) -> None:
                put(name, parts)
                self._keep(name, parts)

            yield put_and_keep

    def put_if_absent(self, name: str, parts: Sequence[Buffer], *, durable: bool = False) -> bool:
        """Write an object unless it exists; see the port."""
        return self._store.put_if_absent(name, parts, durable=durable)

    def get(self, name: str, start: int = 0, length: int | None = None) -> Buffer:
        """Read an object, or its cached copy; see the port."""
        copy = self._copy(name)
        if copy is not None:
            return copy[start:] if length is None else copy[start : start + length]
        data = self._store.get(name, start, length)
        if start == 0 and length is None:
            self._keep(name, [data])
        return data

    def size(self, name: str) -> int | None:
        """Return the size of the object in the store; see the port."""
        return self._store.size(name)

    def list(self, prefix: str) -> Iterator[str]:
        """Return the names that begin with `prefix`; see the port."""
        return self._store.list(prefix)

    def delete(self, name: str) -> None:
        """Remove an object and its cached copy; see the port."""
        self._store.delete(name)
        self._forget(name)

    def touch(self, name: str) -> bool:
        """Set the object's time of last use to now; see the port."""
        return self._store.touch(name)

    def remove_untouched(self, name: str, since: float, *, dry_run: bool = False) -> int | None:
        """Remove an unused object and its cached copy; see the port."""
        size = self._store.remove_untouched(name, since, dry_run=dry_run)
        if size is not None and not dry_run:
            self._forget(name)
        return size

    def sweep(self, older_than_s: float, now: float) -> int:
        """Remove leftovers of killed writers; see the port."""
        return self._store.sweep(older_than_s, now)

    # ------------------------------------------------------------------ copies

    def _path(self, name: str) -> Path:
        return self._folder / check_name(name)

    def _copy(self, name: str) -> memoryview | None:
        if not name.startswith(_PREFIX):
            return None
        path = self._path(name)
        try:
            data = read_regular(path)
            body = memoryview(data)[: -_CHECK.size]
            if _CHECK.unpack(data[-_CHECK.size :]) != (_MAGIC, zlib.crc32(body), body.nbytes):
                raise struct.error
            os.utime(path)
        except (OSError, struct.error):  # missing or damaged: the blob is fetched again
            return None
        return body

    def _keep(self, name: str, parts: Sequence[Buffer]) -> None:
        """Cache a blob. If that fails, the next read goes to the store again."""
        size = sum(memoryview(part).nbytes for part in parts)
        if not name.startswith(_PREFIX) or size > min(LARGEST, self._limit):
            return
        path = self._path(name)
        check = 0
        try:
            self._make_room(size)
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, made = tempfile.mkstemp(dir=path.parent, prefix=".")
            try:
                with os.fdopen(descriptor, "wb") as file:
                    for part in parts:
                        check = zlib.crc32(part, check)
                        file.write(part)
                    file.write(_CHECK.pack(_MAGIC, check, size))
                os.replace(made, path)
            except BaseException:
                os.unlink(made)  # otherwise it would occupy the rest of a full disk
                raise
        except OSError:  # for example a full disk or missing permissions: the cache is optional
            return

    def _forget(self, name: str) -> None:
        if name.startswith(_PREFIX):
            self._path(name).unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        self._added += size
        if self._added * _LOOK_AFTER < self._limit:
            return
        self._added = 0
        found = sorted(self._copies())
        total = sum(each for _, each, _ in found) + size
        for _, each, path in found:
            if total <= self._limit:
                return
            with suppress(OSError):  # of another user
                path.unlink(missing_ok=True)
                total -= each

    def _copies(self) -> Iterator[tuple[float, int, Path]]:
        for path in self._folder.glob("blobs/*/*"):
            try:
                found = path.stat()
            except OSError:  # another process has just evicted it
                continue
            yield found.st_mtime, found.st_size, path
