"""Local files that are sent or fetched: read and written in parts, at any place."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, NoReturn

from aflow.data.objects import PutValue
from aflow.errors import S3DiskFull, S3Failed, S3InvalidObject, S3NotFound
from aflow.storage.s3_wire import BytesSource, Source


class FileSource:
    """The bytes of an open file, from its beginning."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._lock = threading.Lock()
        self.size = file.seek(0, os.SEEK_END)

    def read(self, start: int, length: int) -> bytes:
        """See Source."""
        with self._lock:
            self._file.seek(start)
            return self._file.read(length)


class FileSink:
    """A file that is made anew."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._descriptor: int | None = None

    def begin(self, size: int) -> None:
        """See Sink."""
        if self._descriptor is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            with _disk(self.path):
                self._descriptor = os.open(self.path, flags, 0o600)
        os.ftruncate(self._descriptor, 0)

    def write(self, at: int, data: bytes) -> None:
        """See Sink."""
        assert self._descriptor is not None, "it has begun"
        view = memoryview(data)
        with _disk(self.path):
            while view:
                written = os.pwrite(self._descriptor, view, at)
                at, view = at + written, view[written:]

    def close(self) -> None:
        """No more will come."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@contextmanager
def _disk(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        refuse_disk(path, error)


def refuse_disk(path: str, error: OSError) -> NoReturn:
    """Say what is wrong with a place on this machine."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise S3DiskFull(
            f"There is no room on the disk for {path}: make some, or give another tmproot=."
        ) from error
    raise S3Failed(f"{path} cannot be written: {error.strerror}.") from error


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Source]:
    """The bytes of the file at `path`; raises S3NotFound where there is none."""
    try:
        file = open(path, "rb")  # noqa: SIM115 -- closed below; only the opening may fail so
    except OSError as error:
        raise S3NotFound(f"The local file {path} cannot be read: {error.strerror}.") from error
    with file:
        yield FileSource(file)


def source_of(key: str, value: PutValue | None) -> Source:
    """The bytes of a value that is to be put; raises S3InvalidObject."""
    if isinstance(value, str):
        return BytesSource([value.encode()])
    if isinstance(value, bytes | bytearray | memoryview):
        return BytesSource([value])
    if value is None or not hasattr(value, "read") or not hasattr(value, "seekable"):
        raise S3InvalidObject(
            f"What is to be put as {key!r} is {type(value).__name__}: give a text, bytes or a file "
            "that is open for reading."
        )
    if hasattr(value, "encoding") or not value.readable() or not value.seekable():
        raise S3InvalidObject(
            f"The file that is to be put as {key!r} has to be open for reading bytes ('rb'), and "
            "allow to seek."
        )
    return FileSource(value)
