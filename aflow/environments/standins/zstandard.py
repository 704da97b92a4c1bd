"""Zstandard by the C library of the system, as far as aflow uses it.

Where there is none, nothing is compressed, and what others have compressed cannot be read.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from typing import Any

_NAMES = ("libzstd.so.1", "libzstd.1.dylib")


class ZstdError(Exception):
    """Something is not a frame of zstd, or there is no library to read it."""


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
    """Return a frame of the data; the data itself where there is no library, which is not a gain.

    Args:
        data: The bytes, or the plain values that were decoded from JSON.
        level: From 1, the fastest, to 22, the smallest.
    """
    source = bytes(data)
    if _zstd is None:
        return source
    room = _zstd.ZSTD_compressBound(len(source))
    result = ctypes.create_string_buffer(room)
    count = _checked(_zstd.ZSTD_compress(result, room, source, len(source), level))
    return result.raw[:count]


class _FrameWriter:
    """Makes one frame when all has come."""

    def __init__(self, level: int) -> None:
        self._level = level
        self._data = bytearray()

    def compress(self, data: Any) -> bytes:
        """Take some bytes."""
        self._data += memoryview(data).cast("B")
        return b""

    def flush(self) -> bytes:
        """The frame."""
        if _zstd is None:
            raise ZstdError("there is no zstd for this Python")
        return compress(self._data, self._level)


class ZstdCompressor:
    """Compresses at this level; `threads` make no difference."""

    def __init__(self, level: int = 3, threads: int = 0) -> None:
        self._level = level

    def compressobj(self, size: int = -1) -> _FrameWriter:
        """Return a stream of one frame.

        Args:
            size: Ignored: the size of the data is not needed.
        """
        return _FrameWriter(self._level)


class _FrameReader:
    """Reads one frame into a buffer that has room for all of it."""

    def __init__(self, data: Any) -> None:
        self._data = bytes(data)
        self._is_read = False

    def __enter__(self) -> _FrameReader:
        return self

    def __exit__(self, *exc: object) -> None:
        """Nothing is held."""

    def readinto(self, view: memoryview[int]) -> int:
        """Read the frame. Raises ZstdError, also where it does not fit."""
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
        """What is left: nothing, once it was read."""
        return b""


class ZstdDecompressor:
    """Decompresses frames."""

    def stream_reader(self, data: Any) -> _FrameReader:
        """Return a reader of one frame.

        Args:
            data: The bytes, or the plain values that were decoded from JSON.
        """
        return _FrameReader(data)
