"""Blobs: objects named by the digest of their bytes.

The key of a blob is the blake3 of its raw bytes, as 64 hex digits, and its object is named
`blobs/<first 2 digits>/<the other 62>`. The object is the bytes, raw or as one zstd frame,
followed by a footer of 16 bytes: `AFB1`, the codec (0 raw, 1 zstd) as one byte, three zeros, and
the raw size as 8 bytes, little-endian. The footer is at the end so that a raw blob is page-aligned
and can be mapped.

Putting bytes that are already stored writes nothing. Reading verifies the digest and raises
CorruptBlob if it does not match the key. Digests are computed and checked here for all stores.
"""

from __future__ import annotations

import mmap
import os
import struct
import weakref
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from aflow._core.ids import BlobKey, blob_key
from aflow._core.system import read_proc
from aflow.errors import CorruptBlob, ObjectNotFound
from aflow.storage import codecs
from aflow.storage.base import Buffer, ObjectStore, Put

# The parts of this process's memory that are mapped blobs, and whether they were written to.
#
# A large array is loaded as a private copy-on-write mapping of its blob. If the step then stores
# the same array, its key is known: nothing was modified if the kernel has not copied any page.
# /proc/self/smaps shows this: a page of a private mapping that was written to is counted as
# `Anonymous` (or `Swap`), a page that was only read is not. If there is no such file, every mapping
# counts as written to, and the bytes are hashed again.


class Mappings:
    """The mapped blobs of this process, by address, as long as their mappings are open."""

    def __init__(self) -> None:
        self._at: dict[int, tuple[int, str, weakref.ref[mmap.mmap]]] = {}

    def remember(self, view: memoryview, key: str) -> None:
        """Record that the view is a mapping of this blob. Views of anything but a mapping are
        ignored.

        Args:
            view: The bytes of the whole blob.
            key: The key of the blob: the blake3 of its bytes in hex.
        """
        if isinstance(view.obj, mmap.mmap):
            self._forget_the_dead()
            self._at[_address(view)] = (view.nbytes, key, weakref.ref(view.obj))

    def key_of(self, view: memoryview) -> str | None:
        """Return the key of the blob that exactly this memory is an unmodified mapping of; None if
        there is none.

        Args:
            view: The memory of a buffer that will be stored.
        """
        if not self._at or view.readonly or not view.nbytes:
            return None
        address = _address(view)
        size, key, mapping = self._at.get(address, (0, "", None))
        if mapping is None or mapping() is None or size != view.nbytes:
            return None
        return None if _was_written(address, size) else key

    def _forget_the_dead(self) -> None:
        self._at = {at: entry for at, entry in self._at.items() if entry[2]() is not None}


def _address(view: memoryview) -> int:
    import ctypes  # lazy: takes 15 ms, and only large mapped arrays need it

    return ctypes.addressof(ctypes.c_char.from_buffer(view.cast("B")))


def _was_written(address: int, size: int) -> bool:
    inside = found = False
    for line in (read_proc("self/smaps") or b"").splitlines():
        field, _, value = line.partition(b" ")
        if not field.endswith(b":"):
            first, last = (int(each, 16) for each in field.split(b"-"))
            inside = first < address + size and address < last
            found = found or inside
        elif inside and field in (b"Anonymous:", b"Swap:") and int(value.split()[0]):
            return True
    return not found


# Bytes from which a blob can stay uncompressed and is returned as a mapping before verification.
MAP_UNVERIFIED_FROM = 64 << 20

_FOOTER = struct.Struct("<4sB3xQ")
_MAGIC = b"AFB1"
_RAW, _ZSTD = 0, 1
_VERIFIED_AT_ONCE = 8 << 20
_THREADS_FROM = 1 << 20
_threads_of: int | None = None  # the process that started blake3's threads


def blob_name(key: str) -> str:
    """Return the name of a blob's object.

    Args:
        key: The key of the blob: the blake3 of its bytes in hex.

    Raises:
        InvalidName: If the key is malformed.
    """
    blob_key(key)
    return f"blobs/{key[:2]}/{key[2:]}"


def digest_of(parts: Iterable[Buffer], size: int = 0) -> BlobKey:
    """Return the key of the concatenated parts. From 1 MiB on, several threads hash them.

    Args:
        parts: The bytes, in consecutive parts.
        size: The total size of the parts in bytes; 0 if unknown, which hashes in one thread.
    """
    import blake3  # lazy: values that stay inline do not need it

    state = blake3.blake3(max_threads=blake3.blake3.AUTO if _may_use_threads(size) else 1)
    for part in parts:
        state.update(part)
    return BlobKey(state.hexdigest())


def _may_use_threads(size: int) -> bool:
    """Return whether blake3 may use threads. It must not in a fork of a process that used them:
    threads do not survive a fork, but blake3 would wait for those of the parent forever."""
    global _threads_of
    if size < _THREADS_FROM:
        return False
    if _threads_of is None:
        _threads_of = os.getpid()
    return _threads_of == os.getpid()


class BlobStore:
    """Content-addressed blobs in an object store. Thread-safe."""

    def __init__(self, store: ObjectStore, durable: bool = False) -> None:
        self.store = store
        self.durable = durable
        self._mappings = Mappings()

    def batch(self) -> BlobBatch:
        """Return a context manager of this store for putting several blobs: they are stored when
        the context exits."""
        return BlobBatch(self)

    def put(self, *parts: Buffer, mappable: bool = False) -> BlobKey:
        """Store the concatenated parts as one blob, unless the blob exists already.

        The bytes are compressed if that saves enough.

        Args:
            *parts: The bytes, in consecutive parts.
            mappable: Whether blobs of 64 MiB and more stay raw, so that they can be mapped.

        Returns:
            The key of the blob.
        """
        keep_raw = mappable and sum(map(_size, parts)) >= MAP_UNVERIFIED_FROM
        return self._put([memoryview(part).cast("B") for part in parts], keep_raw)

    def put_raw(self, *parts: Buffer) -> BlobKey:
        """Store the concatenated parts as one blob without compression, for use with `get_range`.

        Args:
            *parts: The bytes, in consecutive parts.

        Returns:
            The key of the blob.
        """
        return self._put([memoryview(part).cast("B") for part in parts], True)

    def get(self, key: str, size: int | None = None) -> Buffer:
        """Return the raw bytes of a blob, verified.

        Args:
            key: The key of the blob: the blake3 of its bytes in hex.
            size: The expected uncompressed size in bytes, or None if unknown. It prevents a damaged
                or malicious object from being decompressed to more.

        Raises:
            CorruptBlob: If the bytes do not match the key or the size.
            ObjectNotFound: If the datastore has no such object.
        """
        return self._verified(key, *self._open(key, size))

    def map(self, key: str, size: int | None = None) -> tuple[Buffer, bool]:
        """Return the raw bytes of a blob, and whether they have been verified.

        A mapping of 64 MiB or more is returned unverified: the caller must call `verify` before it
        relies on results that were computed from it.

        Args:
            key: The key of the blob: the blake3 of its bytes in hex.
            size: The expected uncompressed size in bytes, or None if unknown.
        """
        body, codec, raw_size = self._open(key, size)
        if codec == _RAW and raw_size >= MAP_UNVERIFIED_FROM and isinstance(body.obj, mmap.mmap):
            self._mappings.remember(body, key)
            return body, False
        return self._verified(key, body, codec, raw_size), True

    def verify(self, key: str, size: int) -> None:
        """Verify a blob that `map` returned unverified, by reading it in chunks: a second mapping
        would count as memory of this process.

        Args:
            key: The key of the blob: the blake3 of its bytes in hex.
            size: The size of the blob in bytes.

        Raises:
            CorruptBlob: If the bytes do not match the key.
            ObjectNotFound: If the datastore has no such object.
        """
        name = blob_name(key)
        pieces = range(0, size, _VERIFIED_AT_ONCE)
        found = digest_of(
            (self.store.get(name, at, min(_VERIFIED_AT_ONCE, size - at)) for at in pieces), size
        )
        if found != key:
            raise self._corrupt(key, "its digest is another")

    def get_range(self, key: str, start: int, length: int) -> Buffer:
        """Return a range of a blob that `put_raw` stored. It is not verified: the caller must have
        a checksum of the range.

        Args:
            key: The key of the blob: the blake3 of its bytes in hex.
            start: The offset of the first byte.
            length: The number of bytes; fewer are returned at the end of the object.
        """
        return self.store.get(blob_name(key), start, length)

    def checked_part(self, pack: str, data: Buffer, key: str, size: int) -> Buffer:
        """Return the raw bytes of a part of a larger blob, after verifying their digest.

        Args:
            pack: The key of the larger blob.
            data: The part, raw or as one zstd frame.
            key: The blake3 of the raw bytes of the part, in hex.
            size: The number of raw bytes.

        Raises:
            CorruptBlob: If the digest does not match.
        """
        raw = memoryview(data)
        if raw.nbytes != size:
            raw = self._unpacked(pack, raw, size)
        if digest_of([raw]) != key:
            raise self._corrupt(pack, "the digest of a part is another")
        return raw

    def has(self, key: str) -> bool:
        """Return whether the blob exists.

        Args:
            key: The key of the blob: the blake3 of its bytes in hex.
        """
        return self.store.size(blob_name(key)) is not None

    def claim(self, key: str) -> bool:
        """Return whether the blob exists, and touch it, so that `gc` does not remove it before the
        caller commits a manifest that refers to it.

        Args:
            key: The key of the blob: the blake3 of its bytes in hex.
        """
        return self.store.touch(blob_name(key))

    def key_of_mapped(self, buffer: memoryview) -> str | None:
        """Return the key of the blob that a buffer is an unmodified mapping of; None if there is
        none.

        Args:
            buffer: The memory of a buffer that will be stored.
        """
        return self._mappings.key_of(buffer)

    # ------------------------------------------------------------------ inside

    def _put(self, parts: Sequence[memoryview], raw: bool) -> BlobKey:
        known = self._mappings.key_of(parts[0]) if len(parts) == 1 else None
        if known is not None:
            return BlobKey(known)
        size = sum(map(_size, parts))
        key = digest_of(parts, size)
        # An existing blob is touched, so that `gc` keeps it until a manifest refers to it.
        if not self._claimed(key, size, raw):
            body: Sequence[Buffer] = parts
            codec = _RAW if raw or not codecs.pays(parts, size) else _ZSTD
            if codec == _ZSTD:
                body = codecs.compress(parts, size)
            footer = _FOOTER.pack(_MAGIC, codec, size)
            self._write(key, [*body, footer])
        return key

    def _claimed(self, key: str, size: int, raw: bool) -> bool:
        return self._is_there(key, size, raw) and self.store.touch(blob_name(key))

    def _write(self, key: str, parts: Sequence[Buffer]) -> None:
        self.store.put(blob_name(key), parts, durable=self.durable)

    def _is_there(self, key: str, size: int, raw: bool) -> bool:
        """Return whether the blob is stored completely. A truncated blob is written again."""
        name = blob_name(key)
        stored = self.store.size(name)
        if stored is None or stored < _FOOTER.size:
            return False
        if stored == size + _FOOTER.size:
            return True
        try:
            footer = self.store.get(name, stored - _FOOTER.size, _FOOTER.size)
        except ObjectNotFound:  # gc has removed it in between
            return False
        magic, codec, raw_size = _FOOTER.unpack(footer)
        return magic == _MAGIC and raw_size == size and codec == _ZSTD and not raw

    def _open(self, key: str, size: int | None) -> tuple[memoryview, int, int]:
        """Return the body of a blob's object, its codec and its raw size."""
        data = memoryview(self.store.get(blob_name(key)))
        if data.nbytes < _FOOTER.size:
            raise self._corrupt(key, "it is cut off")
        magic, codec, raw_size = _FOOTER.unpack(data[-_FOOTER.size :])
        body = data[: -_FOOTER.size]
        if magic != _MAGIC or codec not in (_RAW, _ZSTD):
            raise self._corrupt(key, "it is cut off, or not a blob")
        if (codec == _RAW and body.nbytes != raw_size) or size not in (None, raw_size):
            raise self._corrupt(key, "its size is another")
        return body, codec, raw_size

    def _verified(self, key: str, body: memoryview, codec: int, size: int) -> memoryview:
        if codec == _ZSTD:
            body = self._unpacked(key, body, size)
        if digest_of([body], body.nbytes) != key:
            raise self._corrupt(key, "its digest is another")
        self._mappings.remember(body, key)
        return body

    def _unpacked(self, key: str, body: memoryview, size: int) -> memoryview:
        try:
            return memoryview(codecs.decompress(body, size))
        except ValueError as error:
            raise self._corrupt(key, f"it is {error}") from error

    def _corrupt(self, key: str, how: str) -> CorruptBlob:
        return CorruptBlob(
            f"Blob {key} in {self.store.url} is damaged: {how}. Check the disk, delete the object "
            f"{blob_name(key)!r} and run the step that made it again."
        )


class BlobBatch(BlobStore):
    """A store for putting several blobs in one thread at a lower cost than one by one. The batch of
    the object store is opened by the first blob that has to be written."""

    def __init__(self, blobs: BlobStore) -> None:
        self.store = blobs.store
        self.durable = blobs.durable
        self._mappings = blobs._mappings
        self._own: set[str] = set()
        self._batch: AbstractContextManager[Put] | None = None
        self._put_one: Put

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        batch, self._batch = self._batch, None
        self._own.clear()
        if batch is not None:
            batch.__exit__(kind, error, trace)

    def _claimed(self, key: str, size: int, raw: bool) -> bool:
        return key in self._own or super()._claimed(key, size, raw)

    def _write(self, key: str, parts: Sequence[Buffer]) -> None:
        if self._batch is None:
            self._batch = self.store.batch(durable=self.durable)
            self._put_one = self._batch.__enter__()
        self._put_one(blob_name(key), parts)
        self._own.add(key)


def _size(part: Buffer) -> int:
    return part.nbytes if isinstance(part, memoryview) else len(part)
