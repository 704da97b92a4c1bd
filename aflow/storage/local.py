"""The object store in a local folder, or in a folder that several machines mount.

An object is a file. It is written to a unique temporary name in `<root>/.tmp` and then renamed (for
`put_if_absent`: linked) to its final name. So no reader ever sees a partial object, and a killed
writer leaves only a temporary file, which `sweep` removes.

With `durable=True` the order is: write, fsync the file, create the folders, rename, fsync the
folder and each parent folder that this process has not yet fsynced. Once the call has returned, the
object survives a power failure.

A durable `batch` performs each of these steps for all of its objects before the next step, so that
the disk can work on all of them in parallel, and a journaling file system commits twice per batch
instead of twice per object. As with single objects, no name exists before its bytes are on disk.
All names are on disk when the context exits. A power failure before that leaves some complete
objects that no manifest refers to.

A new root has mode 0700. Files and folders below the root are created with the umask of the
process, so that a team can share an existing root.
"""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from aflow._core.private_folders import make_private
from aflow._core.system import reserve, start_sync, sync
from aflow.errors import ObjectNotFound, StoreUnavailable
from aflow.storage.base import Buffer, Put, check_name, check_prefix

# Bytes from which `get` returns a private copy-on-write mapping. Copying less is fast, and a
# mapping needs a file descriptor as long as the value exists.
MAP_FROM = 16 << 20
# Larger writes are slower on ext4, since they exceed the processor's cache.
_WRITE_SIZE = 8 << 20
# Bytes from which the space is reserved first: on ext4 that halves the time of the writes, and a
# full disk is reported before anything is written.
_RESERVE_FROM = 8 << 20
_JOIN_BELOW = 1 << 20
# A batch is finished, and another one started, after this many files or bytes, to limit how much is
# not on disk yet.
_MOST_FILES = 1024
_MOST_BYTES = 64 << 20

_NOT_THERE = (FileNotFoundError, NotADirectoryError)
_ADVICE = {
    errno.ENOSPC: "the disk that holds it is full. Free some space and resume the run",
    errno.EDQUOT: "your disk quota is used up. Free some space and resume the run",
    errno.EROFS: "it is mounted read-only. Mount it for writing, or choose another datastore",
    errno.EACCES: "permission denied. Check who owns it, or choose another datastore",
    errno.EPERM: "the system does not permit it. Check its owner and what file system it is on",
    errno.ENOENT: "the folder is not there. Check the path and that the disk is mounted",
    errno.ENOTDIR: "a part of the path is a file. Choose another datastore",
    errno.EIO: "the disk reports a fault. Check the disk before you resume the run",
    errno.EMFILE: "this process has too many open files. Raise the limit (ulimit -n)",
    errno.ENFILE: "this machine has too many open files. Close some programs",
    errno.ESTALE: "the network share was mounted again. Resume the run",
}


class LocalStore:
    """Objects as files below a folder, which is created when the first object is put."""

    def __init__(self, root: Path) -> None:
        self._root = os.path.abspath(root)
        self._temporary = os.path.join(self._root, ".tmp")  # no object's name begins with a dot
        self._synced: set[str] = set()
        self._numbers = itertools.count()

    @property
    def url(self) -> str:
        """`file:///absolute/path`."""
        return Path(self._root).as_uri()

    def put(self, name: str, parts: Sequence[Buffer], *, durable: bool = False) -> None:
        """Write the concatenated parts as one object; see the port."""
        self._write(name, parts, durable, _rename)

    @contextmanager
    def batch(self, *, durable: bool = False) -> Iterator[Put]:
        """Put several objects; see the port and the docstring of this module."""
        if not durable:
            yield self.put
            return
        batch = _Batch(self)
        try:
            yield batch.put
            batch.finish()
        finally:
            batch.abandon()

    def put_if_absent(self, name: str, parts: Sequence[Buffer], *, durable: bool = False) -> bool:
        """Write an object unless it exists; see the port."""
        return self.size(name) is None and self._write(name, parts, durable, _link)

    def get(self, name: str, start: int = 0, length: int | None = None) -> Buffer:
        """Return bytes of an object: a bytearray, or a private writable mapping from 16 MiB on."""
        try:
            file = os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                status = os.fstat(file)
                if not stat.S_ISREG(status.st_mode):
                    raise self._missing(name)
                there = max(0, status.st_size - start)
                wanted = there if length is None else min(length, there)
                return (_map if wanted >= MAP_FROM else _read)(file, start, wanted)
            finally:
                os.close(file)
        except _NOT_THERE as error:
            if not os.path.isdir(self._root):
                raise self._unavailable(error, "read") from error
            raise self._missing(name) from None
        except OSError as error:
            if error.errno == errno.ENXIO:  # the file is a socket
                raise self._missing(name) from None
            raise self._unavailable(error, "read") from error

    def size(self, name: str) -> int | None:
        """Return the size of the object in bytes; None if there is no such object."""
        try:
            status = os.stat(self._path(name))
        except _NOT_THERE:
            return None
        except OSError as error:
            raise self._unavailable(error, "read") from error
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def list(self, prefix: str) -> Iterator[str]:
        """Return the names that begin with `prefix`, sorted; folders are read lazily."""
        return self._walk(check_prefix(prefix).rpartition("/")[0], prefix)

    def delete(self, name: str) -> None:
        """Remove the object if it exists. Its folders stay."""
        try:
            os.unlink(self._path(name))
        except (*_NOT_THERE, IsADirectoryError):
            return
        except OSError as error:
            raise self._unavailable(error, "written") from error

    def touch(self, name: str) -> bool:
        """Set the object's time of last use, which is its modification time, to now."""
        try:
            os.utime(self._path(name))
        except _NOT_THERE:
            return False
        except OSError as error:
            raise self._unavailable(error, "written") from error
        return True

    def remove_untouched(self, name: str, since: float, *, dry_run: bool = False) -> int | None:
        """Remove the object if it was neither written nor touched after `since`; see the port."""
        path = self._path(name)
        try:
            status = os.stat(path)
            if status.st_mtime >= since or not stat.S_ISREG(status.st_mode):
                return None
            return status.st_size if dry_run else self._set_aside(path, since)
        except _NOT_THERE:
            return None
        except OSError as error:
            raise self._unavailable(error, "written") from error

    def _set_aside(self, path: str, since: float) -> int | None:
        """Remove a file by renaming it first: a later touch fails because the file is missing, and
        a touch before the rename is noticed and the file is moved back."""
        aside = os.path.join(self._temporary, f"{os.getpid()}-{next(self._numbers)}-removed")
        self._make_temporary()
        os.rename(path, aside)
        status = os.stat(aside)
        if status.st_mtime >= since:
            os.rename(aside, path)
            return None
        os.unlink(aside)
        return status.st_size

    def sweep(self, older_than_s: float, now: float) -> int:
        """Remove temporary files of killed writers that were last modified more than `older_than_s`
        seconds before `now`; see the port."""
        removed = 0
        try:
            with os.scandir(self._temporary) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):  # a writer has just renamed its file
                        if entry.stat().st_mtime < now - older_than_s:
                            os.unlink(entry.path)
                            removed += 1
        except FileNotFoundError:  # no folder yet
            return removed
        except OSError as error:
            raise self._unavailable(error, "written") from error
        return removed

    # ------------------------------------------------------------------ inside

    def _path(self, name: str) -> str:
        return f"{self._root}/{check_name(name)}"

    def _missing(self, name: str) -> ObjectNotFound:
        return ObjectNotFound(f"There is no object {name!r} in {self._root}.")

    def _unavailable(self, error: OSError, what: str) -> StoreUnavailable:
        advice = _ADVICE.get(error.errno or 0, error.strerror or type(error).__name__)
        return StoreUnavailable(f"The datastore {self._root} cannot be {what}: {advice}.")

    def _write(
        self,
        name: str,
        parts: Sequence[Buffer],
        durable: bool,
        place: Callable[[str, str], bool],
    ) -> bool:
        path = self._path(name)
        try:
            temporary = self._write_temporary(parts, durable)
            try:
                placed = self._place(temporary, path, place)
            finally:
                _remove(temporary)
            if durable:
                self._sync_folders(os.path.dirname(path))
        except OSError as error:
            raise self._unavailable(error, "written") from error
        return placed

    def _write_temporary(self, parts: Sequence[Buffer], durable: bool) -> str:
        path, file = self._written(parts)
        try:
            if durable:
                sync(file)
        except BaseException:
            _remove(path)
            raise
        finally:
            os.close(file)
        return path

    def _written(self, parts: Sequence[Buffer]) -> tuple[str, int]:
        """Write the parts to a new temporary file, and return its path and descriptor."""
        # The process id helps to find the writer; the random part makes the name unique among the
        # machines that mount the folder.
        number = f"{os.getpid()}-{next(self._numbers)}-{os.urandom(4).hex()}"
        path = os.path.join(self._temporary, number)
        try:
            file = _create(path)
        except FileNotFoundError:
            self._make_temporary()
            file = _create(path)
        try:
            _write_all(file, parts)
        except BaseException:
            os.close(file)
            _remove(path)
            raise
        return path, file

    def _make_temporary(self) -> None:
        make_private(Path(self._root))
        os.makedirs(self._temporary, exist_ok=True)

    def _place(self, temporary: str, path: str, place: Callable[[str, str], bool]) -> bool:
        try:
            return place(temporary, path)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            return place(temporary, path)

    def _sync_folders(self, folder: str) -> None:
        _sync(folder)
        # Another process may have created the parent folders without fsync: sync them once. They
        # are noted when they are on disk, since another thread may put an object meanwhile.
        done: dict[str, None] = {}
        while folder not in self._synced and folder not in done:
            done[folder] = None
            folder = os.path.dirname(folder)
            if len(folder) < len(self._root):
                _sync_if_readable(folder)
                break
            _sync(folder)
        self._synced.update(done)

    def _walk(self, folder: str, prefix: str) -> Iterator[str]:
        for entry in self._entries(folder):
            name = f"{folder}/{entry}" if folder else entry
            if not entry.endswith("/"):
                if name.startswith(prefix):
                    yield name
            elif name.startswith(prefix) or prefix.startswith(name):
                yield from self._walk(name[:-1], prefix)

    def _entries(self, folder: str) -> Sequence[str]:
        """Return the sorted entries of a folder. Folders end in `/`, so that the order is that of
        the complete names."""
        try:
            with os.scandir(f"{self._root}/{folder}") as entries:
                return sorted(
                    entry.name + "/" if entry.is_dir(follow_symlinks=False) else entry.name
                    for entry in entries
                    if not entry.name.startswith(".")
                )
        except _NOT_THERE:
            return ()
        except OSError as error:
            raise self._unavailable(error, "read") from error


class _Batch:
    """The objects of a durable batch: written to temporary files, not yet synced and renamed."""

    def __init__(self, store: LocalStore) -> None:
        self._store = store
        self._files: list[tuple[str, str]] = []  # temporary name, path
        self._size = 0

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        """Write an object to a temporary file, and start to flush it to disk."""
        path = self._store._path(name)
        try:
            temporary, file = self._store._written(parts)
        except OSError as error:
            raise self._store._unavailable(error, "written") from error
        self._files.append((temporary, path))
        start_sync(file)
        os.close(file)
        self._size += sum(map(_bytes_of, parts))
        if len(self._files) >= _MOST_FILES or self._size >= _MOST_BYTES:
            self.finish()

    def finish(self) -> None:
        """Sync and rename all files, and sync their folders."""
        try:
            for temporary, _ in self._files:
                _sync(temporary)
            for temporary, path in self._files:
                self._store._place(temporary, path, _rename)
            for folder in {os.path.dirname(path): None for _, path in self._files}:
                self._store._sync_folders(folder)
        except OSError as error:
            raise self._store._unavailable(error, "written") from error
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Remove the temporary files that were not renamed. May be called twice."""
        files, self._files, self._size = self._files, [], 0
        for temporary, _ in files:
            _remove(temporary)


def _create(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def _write_all(file: int, parts: Sequence[Buffer]) -> None:
    size = sum(map(_bytes_of, parts))
    if size >= _RESERVE_FROM:
        reserve(file, size)
    elif len(parts) > 1 and size < _JOIN_BELOW:
        parts = (b"".join(parts),)
    for part in parts:
        rest = memoryview(part).cast("B")
        while rest:
            rest = rest[os.write(file, rest[:_WRITE_SIZE]) :]


def _bytes_of(part: Buffer) -> int:
    return part.nbytes if isinstance(part, memoryview) else len(part)


def _rename(temporary: str, path: str) -> bool:
    os.replace(temporary, path)
    return True


def _link(temporary: str, path: str) -> bool:
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    return True


def _remove(temporary: str) -> None:
    with suppress(FileNotFoundError):  # it has been renamed
        os.unlink(temporary)


def _sync(path: str) -> None:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        sync(file)
    finally:
        os.close(file)


def _sync_if_readable(folder: str) -> None:
    # A folder cannot be opened for fsync without read permission. Skipping it is safe: it is a
    # parent of the root in which this process has most likely not created the root.
    if os.access(folder, os.R_OK):
        _sync(folder)


def _read(file: int, start: int, length: int) -> bytearray:
    data = bytearray(length)
    done = 0
    with memoryview(data) as view:
        while done < length:
            count = os.preadv(file, [view[done:]], start + done)
            if count == 0:  # the file is shorter than it was a moment ago
                break
            done += count
    del data[done:]
    return data


def _map(file: int, start: int, length: int) -> memoryview:
    before = start % mmap.ALLOCATIONGRANULARITY
    mapping = mmap.mmap(file, before + length, access=mmap.ACCESS_COPY, offset=start - before)
    return memoryview(mapping)[before:]
