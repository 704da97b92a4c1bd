"""The items of a foreach, stored so that each task reads only its own.

An item becomes a record: one byte (the length of its text; 0x80 is added if the item is an entry
with blobs of its own), the text (at most 30 characters, for people), the pickle or the entry as
msgpack. Records follow one another in a segment; after them comes a table with 20 bytes a record:
offset (8 bytes), length (4), both little-endian, and the first 8 bytes of the record's blake3.

`Manifest.items` is `[count, segment...]`. A segment is the bytes themselves (all records and the
table, if together at most 16 KiB) or `[key, size, records]` of a raw blob. So a task reads 20
bytes of the table and its record, whatever the number of items; who writes them holds one segment
in memory, whatever comes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgpack

from aflow.errors import CorruptBlob, ObjectNotFound, StorageError
from aflow.storage import pickles
from aflow.storage.artifacts import ArtifactReader, ArtifactWriter
from aflow.storage.base import Buffer
from aflow.storage.blobs import BlobStore
from aflow.storage.manifest import Entry
from aflow.storage.names import Names
from aflow.storage.previews import short_text

INLINE_LIMIT = 16 << 10
SEGMENT_SIZE = 8 << 20
LARGE_ITEM = 1 << 20

_ROW = struct.Struct("<QI8s")
_HAS_BLOBS = 0x80
_TEXT_BYTES = 0x7F


class _Segment:
    """Records on their way to a store."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.table = bytearray()

    def add(self, record: bytes) -> None:
        self.table += _ROW.pack(len(self.data), len(record), _checksum(record))
        self.data += record

    @property
    def size(self) -> int:
        return len(self.data) + len(self.table)

    @property
    def records(self) -> int:
        return len(self.table) // _ROW.size

    def stored(self, blobs: BlobStore) -> list[Any]:
        return [str(blobs.put_raw(self.data, self.table)), self.size, self.records]


class ItemWriter:
    """Stores items one after the other; `count` is how many there are."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._writer = ArtifactWriter(blobs, inline_limit=0)
        self._segments: list[Any] = []
        self._segment = _Segment()
        self.count = 0

    def add(self, item: Any) -> None:
        """One more item; raises ArtifactNotPicklable, which names it."""
        self._segment.add(_record(item, self.count, self._writer))
        self.count += 1
        if self._segment.size >= SEGMENT_SIZE:
            self._store()

    def cut(self) -> list[Any]:
        """What `Manifest.items` is as of now; all items so far are stored then."""
        if self._segment.records:
            self._store()
        return [self.count, *self._segments]

    def finish(self) -> tuple[list[Any], int]:
        """The value for `Manifest.items`, and the number of items."""
        if self._segments or self._segment.size > INLINE_LIMIT:
            return self.cut(), self.count
        inline = bytes(self._segment.data + self._segment.table)
        return [self.count, *([inline] if inline else [])], self.count

    def _store(self) -> None:
        self._segments.append(self._segment.stored(self._blobs))
        self._segment = _Segment()


def write_items(items: Iterable[Any], blobs: BlobStore, limit: int) -> tuple[Any, int]:
    """Store the items; gives the value for `Manifest.items` and their number.

    Stops at the first item past `limit`, with (None, limit + 1): the caller says that they are
    too many. Raises ArtifactNotPicklable, which names the item, and what iterating raises.
    """
    writer = ItemWriter(blobs)
    for item in items:
        if writer.count == limit:
            return None, limit + 1
        writer.add(item)
    return writer.finish()


class Item(NamedTuple):
    """One item, not unpickled yet. `text` is for people, at most 30 characters."""

    index: int  # type: ignore[assignment]  # the word that users know
    text: str
    has_blobs: bool
    body: bytes

    def value(self, blobs: BlobStore, names: Names | None = None) -> Any:
        """The item itself; each call gives a new object. `names` is as in ArtifactReader. Raises
        CorruptBlob, ArtifactNotLoadable, StoreUnavailable."""
        if not self.has_blobs:
            return pickles.load(f"Item {self.index} of the foreach", self.body, (), names)
        entry = Entry(*msgpack.unpackb(self.body, use_list=False))
        reader = ArtifactReader(blobs, names)
        value = reader.load(f"item {self.index} of the foreach", entry)
        reader.verify_pending()
        return value


class ItemReader:
    """Reads items, each verified.

    With `hold` it keeps the last segment that it read from (a few MiB), for a process that runs
    one item after the other; without, it reads an item's own bytes alone.
    """

    def __init__(self, blobs: BlobStore, hold: bool = False) -> None:
        self._blobs = blobs
        self._hold = hold
        self._held: tuple[str, Buffer] = ("", b"")

    def read(self, items: Any, index: int) -> Item:
        """Item number `index` of what `write_items` gave. Raises CorruptBlob, StoreUnavailable,
        and StorageError if there is no such item."""
        record = self._record(items, index)
        start = 1 + (record[0] & _TEXT_BYTES)
        text = record[1:start].decode("utf-8", "replace")
        return Item(index, text, bool(record[0] & _HAS_BLOBS), record[start:])

    def _record(self, items: Any, index: int) -> bytes:
        if not 0 <= index < items[0]:
            raise StorageError(f"There is no item {index} in a foreach over {items[0]} items.")
        for segment in items[1:]:
            inline = isinstance(segment, bytes)
            records = _inline_records(segment) if inline else segment[2]
            if index < records:
                return _inline_record(segment, index) if inline else self._read(segment, index)
            index -= records
        raise StorageError(f"The items of a foreach are damaged: {items[0]} were expected.")

    def _read(self, segment: Any, index: int) -> bytes:
        key, size, records = segment
        row = self._bytes(key, size, size - (records - index) * _ROW.size, _ROW.size)
        if len(row) < _ROW.size:
            raise CorruptBlob(f"Blob {key} (items of a foreach) is cut off.")
        offset, length, checksum = _ROW.unpack(row)
        record = bytes(self._bytes(key, size, offset, length))
        return _checked(record, checksum, f"blob {key}")

    def _bytes(self, key: str, size: int, start: int, length: int) -> Buffer:
        if not self._hold:
            return self._blobs.get_range(key, start, length)
        if self._held[0] != key:
            self._held = (key, self._blobs.get_range(key, 0, size))
        return self._held[1][start : start + length]


def blobs_of_items(items: Any, blobs: BlobStore, seen: set[str]) -> Iterator[str]:
    """The keys of all blobs that the items of a foreach are in, and those that large items have of
    their own. Segments in `seen` are not read again; one that is gone has nothing to say."""
    for segment in (items or (0,))[1:]:
        if isinstance(segment, bytes):
            yield from _blobs_in(segment, _inline_records(segment))
            continue
        key, size, records = segment
        yield key
        if key in seen:
            continue
        seen.add(key)
        try:
            data = bytes(blobs.get_range(key, 0, size))
        except ObjectNotFound:
            continue
        yield from _blobs_in(data, records)


def _blobs_in(segment: bytes, records: int) -> Iterator[str]:
    for row in range(len(segment) - records * _ROW.size, len(segment), _ROW.size):
        offset, length, _ = _ROW.unpack_from(segment, row)
        if length and segment[offset] & _HAS_BLOBS:
            start = offset + 1 + (segment[offset] & _TEXT_BYTES)
            entry = Entry(*msgpack.unpackb(segment[start : offset + length], use_list=False))
            yield from (key for key, _ in entry.blobs)


def _record(item: Any, index: int, writer: ArtifactWriter) -> bytes:
    text = short_text(item).encode("utf-8", "replace")  # at most 120 bytes
    name = f"item {index}"
    pickled = pickles.dump(f"Item {index} of the foreach", "item", item, LARGE_ITEM)
    if not pickled.buffers and pickled.size <= LARGE_ITEM:
        return b"".join((bytes((len(text),)), text, *pickled.parts))
    entry = writer.save(name, item)
    return b"".join((bytes((len(text) | _HAS_BLOBS,)), text, msgpack.packb(entry)))


def _checksum(record: Buffer) -> bytes:
    import blake3  # not before there is a foreach

    return blake3.blake3(record).digest(8)


def _inline_records(segment: bytes) -> int:
    """How many records an inline segment has: its table ends where the segment does, and the
    first record of it begins at 0, so the last row tells where the table begins."""
    offset, length, _ = _ROW.unpack_from(segment, len(segment) - _ROW.size)
    return (len(segment) - offset - length) // _ROW.size  # type: ignore[no-any-return]


def _inline_record(segment: bytes, index: int) -> bytes:
    rows = _inline_records(segment) * _ROW.size
    row = _ROW.unpack_from(segment, len(segment) - rows + index * _ROW.size)
    return _checked(segment[row[0] : row[0] + row[1]], row[2], "the manifest")


def _checked(record: bytes, checksum: bytes, where: str) -> bytes:
    if not record or _checksum(record) != checksum:
        raise CorruptBlob(
            f"An item of a foreach in {where} is damaged. Run the step that opened it again."
        )
    return record
