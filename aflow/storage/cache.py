"""A store with copies of its blobs on a disk of this machine.

Blobs never change, so a copy is as good as the original for as long as it is there. The copies are
bounded in bytes: when they are too many, those go that were not read for the longest time. Several
processes may share the folder. A copy has a checksum after it, and one that is damaged is fetched
again. Large ones are not copied: they would push all others out.
"""

from __future__ import annotations

import os
import struct
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from aflow._core.private_folders import read_regular
from aflow.storage.base import Buffer, ObjectStore, Put, check_name

LARGEST = 64 << 20  # bytes of a blob that is copied
_PREFIX = "blobs/"
_CHECK = struct.Struct("<4sIQ")
_MAGIC = b"AFC1"
_LOOK_AFTER = 16  # the folder is looked through when this share of the limit was added


class CachedStore:
    """Wraps a store; `limit` is how many bytes of copies are kept in the folder."""

    def __init__(self, store: ObjectStore, folder: Path, limit: int) -> None:
        self._store = store
        self._folder = folder
        self._limit = limit
        self._added = limit  # so that the first one looks

    @property
    def url(self) -> str:
        """Where the store is."""
        return self._store.url

    def put(self, name: str, parts: Sequence[Buffer], *, durable: bool = False) -> None:
        """Write an object, and keep a copy of a blob: its next reader may be on this machine."""
        self._store.put(name, parts, durable=durable)
        self._keep(name, parts)

    @contextmanager
    def batch(self, *, durable: bool = False) -> Iterator[Put]:
        """Put several objects, and keep copies of blobs; see the port."""
        with self._store.batch(durable=durable) as put:

            def put_and_keep(name: str, parts: Sequence[Buffer]) -> None:
                put(name, parts)
                self._keep(name, parts)

            yield put_and_keep

    def put_if_absent(self, name: str, parts: Sequence[Buffer], *, durable: bool = False) -> bool:
        """Write an object where none is; see the port."""
        return self._store.put_if_absent(name, parts, durable=durable)

    def get(self, name: str, start: int = 0, length: int | None = None) -> Buffer:
        """Read an object, or the copy of it; see the port."""
        copy = self._copy(name)
        if copy is not None:
            return copy[start:] if length is None else copy[start : start + length]
        data = self._store.get(name, start, length)
        if start == 0 and length is None:
            self._keep(name, [data])
        return data

    def size(self, name: str) -> int | None:
        """How many bytes the object has in the store; see the port."""
        return self._store.size(name)

    def list(self, prefix: str) -> Iterator[str]:
        """The names that begin with `prefix`; see the port."""
        return self._store.list(prefix)

    def delete(self, name: str) -> None:
        """Remove an object, and the copy of it; see the port."""
        self._store.delete(name)
        self._forget(name)

    def touch(self, name: str) -> bool:
        """Say that an object is wanted; see the port."""
        return self._store.touch(name)

    def remove_untouched(self, name: str, since: float, *, dry_run: bool = False) -> int | None:
        """Remove an object that nobody wants; see the port."""
        size = self._store.remove_untouched(name, since, dry_run=dry_run)
        if size is not None and not dry_run:
            self._forget(name)
        return size

    def sweep(self, older_than_s: float, now: float) -> int:
        """Remove what dead writers have left; see the port."""
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
        except (OSError, struct.error):  # there is none, or it is damaged: it is fetched again
            return None
        return body

    def _keep(self, name: str, parts: Sequence[Buffer]) -> None:
        """Keep a copy; where that cannot be, the store is read the next time, too."""
        size = sum(memoryview(part).nbytes for part in parts)
        if not name.startswith(_PREFIX) or size > min(LARGEST, self._limit):
            return
        self._make_room(size)
        path = self._path(name)
        check = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, made = tempfile.mkstemp(dir=path.parent, prefix=".")
            with os.fdopen(descriptor, "wb") as file:
                for part in parts:
                    check = zlib.crc32(part, check)
                    file.write(part)
                file.write(_CHECK.pack(_MAGIC, check, size))
            os.replace(made, path)
        except OSError:  # the disk is full, or the folder not ours: it is only a copy
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
            path.unlink(missing_ok=True)
            total -= each

    def _copies(self) -> Iterator[tuple[float, int, Path]]:
        for path in self._folder.glob("blobs/*/*"):
            try:
                found = path.stat()
            except OSError:  # another process has just removed it
                continue
            yield found.st_mtime, found.st_size, path
