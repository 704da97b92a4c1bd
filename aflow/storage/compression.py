"""zstd where it pays: a sample decides. And gzip, in which Metaflow has stored values.

Level 1, because blobs are written once, by a task that somebody waits for. zstandard is imported
when a blob is first large enough to be worth it.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from aflow.errors import CorruptBlob
from aflow.storage.base import Buffer

MIN_SIZE = 16 << 10  # below, a file takes about as much of a disk either way
_SAMPLE = 32 << 10
_LEVEL = 1
_MIN_WIN = 0.8  # floats of measurements come to 0.9 or more, text and counts to 0.5 or less
_THREADS_FROM = 8 << 20


def pays(parts: Sequence[memoryview], size: int) -> bool:
    """Whether the bytes would shrink by a fifth, judged by 64 KiB of them."""
    if size < MIN_SIZE:
        return False
    import zstandard

    sample = _slice(parts, 0, _SAMPLE) + _slice(parts, max(_SAMPLE, size // 2), _SAMPLE)
    return len(zstandard.compress(sample, _LEVEL)) < _MIN_WIN * len(sample)


def compress(parts: Sequence[memoryview], size: int) -> list[bytes]:
    """The bytes as one zstd frame, in pieces."""
    import zstandard

    threads = -1 if size >= _THREADS_FROM else 0
    stream = zstandard.ZstdCompressor(level=_LEVEL, threads=threads).compressobj(size=size)
    pieces = [stream.compress(part) for part in parts]
    return [*pieces, stream.flush()]


def decompress(data: Buffer, size: int) -> bytearray:
    """The bytes that were compressed. Never more than `size` of them are made, whatever the data
    claims; raises ValueError if they are not exactly `size`, or no zstd frame."""
    import zstandard

    result = bytearray(size)
    done = 0
    try:
        with memoryview(result) as view, zstandard.ZstdDecompressor().stream_reader(data) as stream:
            while done < size and (count := stream.readinto(view[done:])):
                done += count
            more = stream.read(1)
    except zstandard.ZstdError as error:
        raise ValueError(f"not a zstd frame: {error}") from error
    if done < size or more:
        raise ValueError(f"not {size} bytes long")
    return result


def _slice(parts: Sequence[memoryview], start: int, length: int) -> bytes:
    taken = bytearray()
    for part in parts:
        if start < part.nbytes and len(taken) < length:
            taken += part[start : start + length - len(taken)]
        start = max(0, start - part.nbytes)
    return bytes(taken)


def gunzipped(data: Buffer, where: str, largest: int | None = None) -> bytes:
    """The bytes of a gzip file, or those that are none as they are. Raises CorruptBlob, which names
    `where`, for what is damaged or holds more than `largest` bytes."""
    if bytes(data[:2]) != b"\x1f\x8b":
        return bytes(data)
    unpacking = zlib.decompressobj(wbits=31)
    try:
        found = unpacking.decompress(data, largest or 0)
    except zlib.error as error:
        raise CorruptBlob(f"{where} is damaged: {error}.") from error
    if not unpacking.eof:
        raise CorruptBlob(f"{where} is damaged: it is cut off, or holds more than it says.")
    return found
