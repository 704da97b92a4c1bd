"""The object store on a disk of this machine (or one that many machines mount).

An object is a file. It is written under a name of its own in `<root>/.tmp` and then renamed (for
`put_if_absent`: linked) to its place, so that no reader ever sees a part of it and a writer that
is killed leaves nothing but a temporary file, which `sweep` removes.

With `durable=True` the order is: write, fsync the file, make the folders, rename, fsync the
folder and each folder above it that this process has not yet fsynced. Who holds the name of the
object after the call can count on its bytes after a power cut.

A durable `batch` does each of these for all of its objects before it does the next: so the disk is
asked for everything at once, and a file system with a journal commits it twice rather than twice an
object. No name is there before its bytes are on the disk, as with single objects, and all names are
on the disk when the batch has ended. A power cut before that leaves some of the objects, each
whole, that no manifest names.

Files and folders are made with the umask of the process, so that a team can share a root.
"""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from aflow._core.private_folders import make_private
from aflow._core.system import reserve, start_sync, sync
from aflow.errors import ObjectNotFound, StoreUnavailable
from aflow.storage.base import Buffer, Put, check_name, check_prefix

# From here on `get` gives a private copy-on-write mapping. Below it a copy is quick, and a
# mapping would cost a file descriptor as long as the value lives.
MAP_FROM = 16 << 20
# Larger writes than this are slower on ext4: they fall out of the processor's cache.
_WRITE_SIZE = 8 << 20
# From here on the space is reserved first: on ext4 that halves the time of the writes, and a disk
# that is too full says so before anything is written.
_RESERVE_FROM = 8 << 20
_JOIN_BELOW = 1 << 20
# A batch is brought to its end, and goes on with another one, when it has so many files, or so many
# bytes, that are perhaps not on the disk.
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
    """Objects as files below a folder, which is made when the first object is put."""

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
        """Write the parts, one after the other, as one object."""
        self._write(name, parts, durable, _rename)

    @contextmanager
    def batch(self, *, durable: bool = False) -> Iterator[Put]:
        """Put several objects; see the port, and above."""
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
        """The same where no such object is; True if this call wrote it."""
        return self.size(name) is None and self._write(name, parts, durable, _link)

    def get(self, name: str, start: int = 0, length: int | None = None) -> Buffer:
        """The bytes from `start`: a bytearray, or from 16 MiB on a private writable mapping."""
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
            if error.errno == errno.ENXIO:  # a socket stands there
                raise self._missing(name) from None
            raise self._unavailable(error, "read") from error

    def size(self, name: str) -> int | None:
        """How many bytes the object has; None where there is no such object."""
        try:
            status = os.stat(self._path(name))
        except _NOT_THERE:
            return None
        except OSError as error:
            raise self._unavailable(error, "read") from error
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def list(self, prefix: str) -> Iterator[str]:
        """The names that begin with `prefix`, sorted; folders are read as the caller goes on."""
        return self._walk(check_prefix(prefix).rpartition("/")[0], prefix)

    def delete(self, name: str) -> None:
        """Remove the object, if it is there. Its folders stay."""
        try:
            os.unlink(self._path(name))
        except (*_NOT_THERE, IsADirectoryError):
            return
        except OSError as error:
            raise self._unavailable(error, "written") from error

    def touch(self, name: str) -> bool:
        """Say that the object is wanted: its time of modification becomes now."""
        try:
            os.utime(self._path(name))
        except _NOT_THERE:
            return False
        except OSError as error:
            raise self._unavailable(error, "written") from error
        return True

    def remove_untouched(self, name: str, since: float, *, dry_run: bool = False) -> int | None:
        """Remove the object if it was neither written nor touched since then; see the port."""
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
        """Move the file away first: who touches it from then on learns that it is gone, and who
        was quicker gets it back."""
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
        """Remove what killed writers left: temporary files last written more than `older_than_s`
        seconds before `now` (seconds since the epoch). Gives how many were removed."""
        removed = 0
        try:
            with os.scandir(self._temporary) as entries:
                for entry in entries:
                    if entry.stat().st_mtime < now - older_than_s:
                        _remove(entry.path)
                        removed += 1
        except FileNotFoundError:  # nothing was ever written, or the writer was quicker
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
        """A new temporary file that holds the parts, and its descriptor."""
        # The process id tells people whose file it is; the random part keeps apart what
        # processes of several machines write on one share.
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
        # Another process may have made the folders above without fsync: do it for them, once.
        while folder not in self._synced:
            self._synced.add(folder)
            folder = os.path.dirname(folder)
            if len(folder) < len(self._root):
                _sync_if_readable(folder)
                break
            _sync(folder)

    def _walk(self, folder: str, prefix: str) -> Iterator[str]:
        for entry in self._entries(folder):
            name = f"{folder}/{entry}" if folder else entry
            if not entry.endswith("/"):
                if name.startswith(prefix):
                    yield name
            elif name.startswith(prefix) or prefix.startswith(name):
                yield from self._walk(name[:-1], prefix)

    def _entries(self, folder: str) -> Sequence[str]:
        """What a folder holds; folders end in `/`, so that sorting them sorts whole names."""
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
    """Objects that are written, and have neither been synced nor renamed."""

    def __init__(self, store: LocalStore) -> None:
        self._store = store
        self._files: list[tuple[str, str]] = []  # temporary name, path
        self._size = 0

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        """Write an object, and have the disk begin with it."""
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
        """Wait until everything that was put is in its place, and on the disk."""
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
        """Remove what is not in its place. May be called twice."""
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
    try:
        os.unlink(temporary)
    except FileNotFoundError:  # it has been renamed
        return


def _sync(path: str) -> None:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        sync(file)
    finally:
        os.close(file)


def _sync_if_readable(folder: str) -> None:
    # A folder that we may not read is not one in which we have just made the root.
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
