"""The items of a foreach, stored so that each task can read and verify its own item alone.

An item is stored as a record: one byte (the length of its text, plus 0x80 if the item is an entry,
as large items and those with sets are), the text (at most 30 characters, for display), and the
pickle, or the entry as msgpack. A segment is a sequence of records, followed by a table with one
row per record: offset (8 bytes) and length (4), both little-endian, and a prefix of the record's
blake3.

`Manifest.items` is `[count, segment...]`. A segment is either inline (records and table, with 8
bytes of each digest, if together at most 16 KiB) or `[key, size, records, root]` of a raw blob. In
a blob, digests have 16 bytes, and the table is followed by the digests of its pages of 512 rows;
the root is the digest of these digests. So a task reads only the digests of the pages, one page of
the table and its record, for any number of items, and verifies them against the root in the
manifest before it unpickles anything. The writer holds one segment in memory at a time.

Segments in the older format have no root, and rows of 20 bytes: they are read completely and
verified by their key.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgpack

from aflow._core.records import NamedTuple
from aflow.errors import CorruptBlob, InvalidName, ObjectNotFound, StorageError
from aflow.storage import codecs
from aflow.storage.artifacts import ArtifactReader, ArtifactWriter, Entry, digest
from aflow.storage.base import Buffer
from aflow.storage.blobs import BlobStore, digest_of
from aflow.storage.identity import varies
from aflow.storage.names import Names
from aflow.storage.previews import short_text

INLINE_LIMIT = 16 << 10
SEGMENT_SIZE = 8 << 20
LARGE_ITEM = 1 << 20

PAGE = 512  # rows
_SMALL = 128 << 10  # bytes up to which a segment, or its table and digests, is one read
_ROW = struct.Struct("<QI8s")  # of segments in a manifest, and of those without a root
_WIDE_ROW = struct.Struct("<QI16s")
_DIGEST = 16
# The exceptions that reading a damaged list of items raises.
_NO_LIST = (struct.error, LookupError, TypeError, ValueError, InvalidName)
_IS_ENTRY = 0x80
_TEXT_BYTES = 0x7F


class _Segment:
    """The records of a segment that is not stored yet."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._rows: list[tuple[int, int, bytes]] = []

    def add(self, record: bytes) -> None:
        self._rows.append((len(self.data), len(record), _checksum(record)))
        self.data += record

    @property
    def size(self) -> int:
        """The approximate size of the segment in bytes."""
        return len(self.data) + len(self._rows) * _WIDE_ROW.size

    @property
    def records(self) -> int:
        return len(self._rows)

    def inline(self) -> bytes:
        """Return the segment in the inline format of manifests."""
        rows = (_ROW.pack(start, length, digest[:8]) for start, length, digest in self._rows)
        return b"".join((self.data, *rows))

    def stored(self, blobs: BlobStore) -> list[Any]:
        table = b"".join(_WIDE_ROW.pack(*row) for row in self._rows)
        page = PAGE * _WIDE_ROW.size
        digests = b"".join(_checksum(table[at : at + page]) for at in range(0, len(table), page))
        key = blobs.put_raw(self.data, table, digests)
        size = len(self.data) + len(table) + len(digests)
        return [str(key), size, self.records, _checksum(digests)]


class ItemWriter:
    """Stores items one by one; `count` is the number of items so far."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._segments: list[Any] = []
        self._segment = _Segment()
        self.count = 0

    def add(self, item: Any) -> None:
        """Append an item.

        Args:
            item: The item, of any type that can be pickled.

        Raises:
            ArtifactNotPicklable: If the item cannot be pickled; the error names it.
        """
        self._segment.add(_record(item, self.count, self._blobs))
        self.count += 1
        if self._segment.size >= SEGMENT_SIZE:
            self._store()

    def cut(self) -> list[Any]:
        """Return the value of `Manifest.items` for all items so far, after storing them."""
        if self._segment.records:
            self._store()
        return [self.count, *self._segments]

    def finish(self) -> tuple[list[Any], int]:
        """Return the value of `Manifest.items` and the number of items."""
        if self._segments or self._segment.size > INLINE_LIMIT:
            return self.cut(), self.count
        inline = self._segment.inline()
        return [self.count, *([inline] if inline else [])], self.count

    def _store(self) -> None:
        self._segments.append(self._segment.stored(self._blobs))
        self._segment = _Segment()


def write_items(items: Iterable[Any], blobs: BlobStore, limit: int) -> tuple[Any, int]:
    """Store the items of a foreach. Exceptions of the iterable propagate.

    Args:
        items: The items; they are iterated once, and not kept.
        blobs: The blobs of the datastore, addressed by content.
        limit: The maximum number of items.

    Returns:
        The value of `Manifest.items` and the number of items; None and `limit + 1` if there are
        more items than allowed.

    Raises:
        ArtifactNotPicklable: If an item cannot be pickled; the error names it.
    """
    writer = ItemWriter(blobs)
    for item in items:
        if writer.count == limit:
            return None, limit + 1
        writer.add(item)
    return writer.finish()


class Item(NamedTuple):
    """One item, not unpickled yet. `text` describes it in at most 30 characters."""

    index: int  # type: ignore[assignment]  # the word that users know
    text: str
    is_entry: bool
    body: bytes

    @property
    def _entry(self) -> Entry:
        return Entry(*msgpack.unpackb(self.body, use_list=False))

    @property
    def digest(self) -> str:
        """The digest that identifies the item, like that of an artifact: equal for equal items."""
        return digest(self._entry) if self.is_entry else digest_of([self.body])

    def value(self, blobs: BlobStore, names: Names | None = None) -> Any:
        """Return the item itself, as a new object on each call.

        Args:
            blobs: The blobs of the datastore, addressed by content.
            names: Finds classes that the pickle refers to, if another program stored it; None for
                Python's import system alone.

        Raises:
            CorruptBlob: If a blob of the item is damaged.
            ArtifactNotLoadable: If the item cannot be unpickled; the error names it, and the module
                if one is missing.
            StoreUnavailable: If the datastore does not respond or denies access.
        """
        if not self.is_entry:
            return codecs.load(f"Item {self.index} of the foreach", self.body, (), names)
        reader = ArtifactReader(blobs, names)
        value = reader.load(f"item {self.index} of the foreach", self._entry)
        reader.verify_pending()
        return value


class ItemReader:
    """Reads items and verifies each against the manifest.

    With `hold` it keeps the last segment in memory (a few MiB), for a process that runs one item
    after the other. Without, it reads only the bytes of an item and the digests to verify them.
    """

    def __init__(self, blobs: BlobStore, hold: bool = False) -> None:
        self._blobs = blobs
        self._hold = hold
        self._held: tuple[str, Buffer] = ("", b"")

    def read(self, items: Any, index: int) -> Item:
        """Return an item of a foreach.

        Args:
            items: The value of `Manifest.items`.
            index: The index of the item, from 0.

        Raises:
            CorruptBlob: If a segment is damaged.
            StoreUnavailable: If the datastore does not respond.
            StorageError: If there is no such item.
        """
        try:
            record = self._record(items, index)
        except _NO_LIST as error:
            raise _damaged_list(error) from error
        start = 1 + (record[0] & _TEXT_BYTES)
        text = record[1:start].decode("utf-8", "replace")
        return Item(index, text, bool(record[0] & _IS_ENTRY), record[start:])

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
        key, size, records, *root = segment
        if self._hold or not root or size <= _SMALL:
            data = self._whole(key, size)
            row, table = _table_of(size, records, root)
            offset, length, digest = row.unpack_from(data, table + index * row.size)
            return _checked(bytes(data[offset : offset + length]), digest, f"blob {key}")
        offset, length, digest = self._proven_row(key, size, records, root[0], index)
        return _checked(bytes(self._blobs.get_range(key, offset, length)), digest, f"blob {key}")

    def _whole(self, key: str, size: int) -> Buffer:
        if self._held[0] == key:
            return self._held[1]
        data = self._blobs.get(key, size)
        if self._hold:
            self._held = (key, data)
        return data

    def _proven_row(
        self, key: str, size: int, records: int, root: bytes, index: int
    ) -> tuple[int, int, bytes]:
        """Return the row of a record, after verifying its page against the digests of the pages,
        and these against the root."""
        of_digests = _pages(records) * _DIGEST
        of_table = records * _WIDE_ROW.size
        number = index // PAGE
        start = number * PAGE * _WIDE_ROW.size
        end = min(start + PAGE * _WIDE_ROW.size, of_table)
        if of_table + of_digests <= _SMALL:
            rest = self._blobs.get_range(key, size - of_table - of_digests, of_table + of_digests)
            digests, page = rest[of_table:], rest[start:end]
        else:
            digests = self._blobs.get_range(key, size - of_digests, of_digests)
            page = self._blobs.get_range(key, size - of_digests - of_table + start, end - start)
        expected = bytes(digests[number * _DIGEST : (number + 1) * _DIGEST])
        if _checksum(digests) != root or _checksum(page) != expected:
            raise CorruptBlob(
                f"Blob {key} (items of a foreach) is damaged, or another. Run the step that opened "
                "the foreach again."
            )
        return _WIDE_ROW.unpack_from(page, index % PAGE * _WIDE_ROW.size)


def _pages(records: int) -> int:
    return -(-records // PAGE)


def _table_of(size: int, records: int, root: Sequence[bytes]) -> tuple[struct.Struct, int]:
    """Return the row format of a stored segment's table, and the offset of the table."""
    if not root:
        return _ROW, size - records * _ROW.size
    return _WIDE_ROW, size - records * _WIDE_ROW.size - _pages(records) * _DIGEST


def blobs_of_items(items: Any, blobs: BlobStore, seen: set[str]) -> Iterator[str]:
    """Yield the keys of the segments of a foreach, and of the blobs that their items refer to.
    Segments in `seen` are not read again; missing segments are skipped.

    Args:
        items: The value of `Manifest.items`.
        blobs: The blobs of the datastore, addressed by content.
        seen: The keys of the segments that have been read; updated in place.

    Raises:
        CorruptBlob: If the list of items or a segment is malformed.
    """
    try:
        yield from _blobs_of_items(items, blobs, seen)
    except _NO_LIST as error:
        raise _damaged_list(error) from error


def _damaged_list(error: Exception) -> CorruptBlob:
    return CorruptBlob(
        f"The list of the items of a foreach is damaged: {error}. Run the step that opened the "
        "foreach again."
    )


def _blobs_of_items(items: Any, blobs: BlobStore, seen: set[str]) -> Iterator[str]:
    count, *segments = items or (0,)
    for segment in segments:
        if isinstance(segment, bytes):
            rows = _inline_records(segment)
            count -= rows
            yield from _blobs_in(segment, len(segment) - rows * _ROW.size, rows, _ROW)
            continue
        key, size, records, *root = segment
        count -= records
        yield key
        if key in seen:
            continue
        try:
            data = bytes(blobs.get(key, size))  # verified: damage could hide a reference
        except ObjectNotFound:
            continue
        seen.add(key)
        row, table = _table_of(size, records, root)
        yield from _blobs_in(data, table, records, row)
    if count:
        raise ValueError("it has another number of them than it says")


def _blobs_in(segment: bytes, table: int, records: int, row: struct.Struct) -> Iterator[str]:
    for at in range(table, table + records * row.size, row.size):
        offset, length, _ = row.unpack_from(segment, at)
        if length and segment[offset] & _IS_ENTRY:
            start = offset + 1 + (segment[offset] & _TEXT_BYTES)
            entry = Entry(*msgpack.unpackb(segment[start : offset + length], use_list=False))
            yield from (key for key, _ in entry.blobs)


def _record(item: Any, index: int, blobs: BlobStore) -> bytes:
    text = short_text(item).encode()  # at most 120 bytes
    pickled = codecs.dump(f"Item {index} of the foreach", "item", item, LARGE_ITEM)
    is_small = not pickled.buffers and pickled.size <= LARGE_ITEM
    if is_small and not varies(pickled.parts):
        return b"".join((bytes((len(text),)), text, *pickled.parts))
    # The entry of a pickle that varies has a digest of the content.
    limit = LARGE_ITEM if is_small else 0
    entry = ArtifactWriter(blobs, limit, limit).save(f"item {index}", item)
    return b"".join((bytes((len(text) | _IS_ENTRY,)), text, msgpack.packb(entry)))


def _checksum(record: Buffer) -> bytes:
    import blake3  # lazy: only a foreach needs it

    return blake3.blake3(record).digest(_DIGEST)


def _inline_records(segment: bytes) -> int:
    """Return the number of records of an inline segment: the table follows the last record, whose
    end is in the last row of the table."""
    offset, length, _ = _ROW.unpack_from(segment, len(segment) - _ROW.size)
    return (len(segment) - offset - length) // _ROW.size  # type: ignore[no-any-return]


def _inline_record(segment: bytes, index: int) -> bytes:
    rows = _inline_records(segment) * _ROW.size
    row = _ROW.unpack_from(segment, len(segment) - rows + index * _ROW.size)
    return _checked(segment[row[0] : row[0] + row[1]], row[2], "the manifest")


def _checked(record: bytes, checksum: bytes, where: str) -> bytes:
    if not record or _checksum(record)[: len(checksum)] != checksum:
        raise CorruptBlob(
            f"An item of a foreach in {where} is damaged. Run the step that opened it again."
        )
    return record
