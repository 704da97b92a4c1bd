"""Zstandard with the C library of the system, as far as aflow uses it.

Without that library data are stored uncompressed, and compressed data cannot be read.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from typing import Any

_NAMES = ("libzstd.so.1", "libzstd.1.dylib")


class ZstdError(Exception):
    """The data are not a zstd frame, or the C library is missing."""


def _library() -> Any:
    for name in (*_NAMES, ctypes.util.find_library("zstd")):
        try:
            found = ctypes.CDLL(name) if name else None
        except OSError:
            continue
        if found is not None:
            break
    else:
        return None
    size, pointer = ctypes.c_size_t, ctypes.c_void_p
    found.ZSTD_compressBound.argtypes, found.ZSTD_compressBound.restype = [size], size
    found.ZSTD_compress.argtypes = [pointer, size, pointer, size, ctypes.c_int]
    found.ZSTD_compress.restype = size
    found.ZSTD_decompress.argtypes = [pointer, size, pointer, size]
    found.ZSTD_decompress.restype = size
    found.ZSTD_isError.argtypes, found.ZSTD_isError.restype = [size], ctypes.c_uint
    found.ZSTD_getErrorName.argtypes = [size]
    found.ZSTD_getErrorName.restype = ctypes.c_char_p
    return found


_zstd = _library()


def _checked(result: int) -> int:
    if _zstd.ZSTD_isError(result):
        raise ZstdError(_zstd.ZSTD_getErrorName(result).decode())
    return result


def compress(data: Any, level: int = 3) -> bytes:
    """Return a zstd frame of the data. Without the C library, return the data unchanged; callers
    store data uncompressed if compression does not make it smaller.

    Args:
        data: The bytes, as any object with the buffer protocol.
        level: From 1 (fastest) to 22 (smallest).
    """
    source = bytes(data)
    if _zstd is None:
        return source
    room = _zstd.ZSTD_compressBound(len(source))
    result = ctypes.create_string_buffer(room)
    count = _checked(_zstd.ZSTD_compress(result, room, source, len(source), level))
    return result.raw[:count]


class _FrameWriter:
    """Collects data, and compresses them into one frame in `flush`."""

    def __init__(self, level: int) -> None:
        self._level = level
        self._data = bytearray()

    def compress(self, data: Any) -> bytes:
        """Add bytes. Returns nothing before `flush`."""
        self._data += memoryview(data).cast("B")
        return b""

    def flush(self) -> bytes:
        """Return the frame."""
        if _zstd is None:
            raise ZstdError("there is no zstd for this Python")
        return compress(self._data, self._level)


class ZstdCompressor:
    """Compresses at a level; `threads` is ignored."""

    def __init__(self, level: int = 3, threads: int = 0) -> None:
        self._level = level

    def compressobj(self, size: int = -1) -> _FrameWriter:
        """Return a writer of one frame.

        Args:
            size: Ignored: the size of the data is not needed.
        """
        return _FrameWriter(self._level)


class _FrameReader:
    """Reads one frame into a buffer that is large enough for its content."""

    def __init__(self, data: Any) -> None:
        self._data = bytes(data)
        self._is_read = False

    def __enter__(self) -> _FrameReader:
        return self

    def __exit__(self, *exc: object) -> None:
        """Do nothing: there are no resources to release."""

    def readinto(self, view: memoryview[int]) -> int:
        """Read the frame. Raises ZstdError if it is malformed or does not fit into the buffer."""
        if self._is_read:
            return 0
        if _zstd is None:
            raise ZstdError("there is no zstd for this Python: pip install zstandard")
        self._is_read = True
        room = (ctypes.c_char * len(view)).from_buffer(view)
        try:
            result = _zstd.ZSTD_decompress(room, len(view), self._data, len(self._data))
        finally:
            del room
        return _checked(result)

    def read(self, count: int) -> bytes:
        """Return no data: `readinto` has read all of the frame."""
        return b""


class ZstdDecompressor:
    """Decompresses frames."""

    def stream_reader(self, data: Any) -> _FrameReader:
        """Return a reader of one frame.

        Args:
            data: The bytes of the frame, as any object with the buffer protocol.
        """
        return _FrameReader(data)
