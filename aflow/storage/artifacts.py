"""Artifacts: the values that tasks leave, as entries of manifests and blobs.

A value is pickled (`storage.pickles`). Small pickles ride in the manifest; larger ones, and every
buffer that left its pickle, are blobs. Arrays are neither copied when they are stored nor read
when they are loaded: their bytes are hashed and written where they lie, and mapped copy-on-write.
Where a task leaves many values of some kilobytes, several of them share a blob, a pack.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import msgpack

from aflow._core.ids import blob_key
from aflow._core.records import NamedTuple, dataclass, field
from aflow._core.unpacking import unpack
from aflow.errors import (
    AflowError,
    ArtifactNotLoadable,
    CorruptBlob,
    ObjectNotFound,
    StorageError,
)
from aflow.storage import codecs
from aflow.storage.base import Buffer
from aflow.storage.blobs import BlobStore, digest_of
from aflow.storage.codecs import gunzipped
from aflow.storage.identity import content_digest, has_sets
from aflow.storage.names import Names
from aflow.storage.previews import SHAPE, preview

# The manifest: what one attempt left, as one small msgpack map.
#
# It is the commit record of an attempt. It never holds bulk data: values whose pickles are small
# ride inside, all others are keys of blobs. Reading a manifest never unpickles anything.
#
# Format (docs/storage_format.md): a map with the keys
#
# v   1
# s   the step
# a   {name: entry}                      what this attempt set
# i   {task: [names]}                    what it passes on, by the task that set it
# t   [[steps], foreach, count]          its transition
# f   [[step, var, splits, index, value, split]...]  its foreach stack, outermost first; `value`
# is a short text of the item, `split` the task that opened the foreach
# x   items of the foreach it opens (`storage.items`), or nil
# e   {type, message, traceback, caught}  the exception it ended with, or nil
#
# entry = [encoding, size, type, preview, inline bytes or nil, [[blob key, size]...], content]
#
# `encoding` is "pickle5": the pickle is the inline bytes, or the first blob where these are nil;
# the other blobs are its out-of-band buffers, in order. `size` counts pickle and buffers together,
# in bytes, uncompressed. `type` is the qualified name of the value's class; `preview` a map of
# plain values for people: `repr` (short), `len`, `shape`, `dtype`, `columns`, whatever applies.
# `content` is the digest of the content of a value with sets, whose pickles differ from process to
# process; empty for all others.
#
# Of a value in a pack the encoding is "pack5:START:LENGTH:KEY": LENGTH bytes of the one blob, from
# START on, are the pickle (one zstd frame of it, where they are fewer than `size`), and KEY is the
# blake3 of the pickle, as if it were a blob of its own.


VERSION = 1
Transition = tuple[
    tuple[str, ...], str | None, int | None
]  # steps, what a foreach goes over, count


class Entry(NamedTuple):
    """One artifact as the manifest knows it."""

    encoding: str
    size: int
    type: str
    preview: dict[str, Any]
    inline: bytes | None
    blobs: tuple[tuple[str, int], ...] = ()
    content: str = ""


def _entry(fields: Any) -> Entry:
    """An entry as it was read; raises TypeError and ValueError for fields of other types, which
    a caller that uses them would stumble on."""
    entry = Entry(*fields)
    if (
        type(entry.encoding) is not str
        or type(entry.size) is not int
        or type(entry.type) is not str
        or type(entry.preview) is not dict
        or (entry.inline is not None and type(entry.inline) is not bytes)
    ):
        raise TypeError("an entry has fields of other types")
    for key, size in entry.blobs:
        if type(key) is not str or type(size) is not int:
            raise TypeError("an entry names no blob")
    if _piece_of(entry) is not None and not entry.blobs:
        raise TypeError("an entry names no pack")
    return entry


def _texts(values: Any) -> tuple[str, ...]:
    for each in values:  # a loop: many manifests are read, and this is the fastest
        if type(each) is not str:
            raise TypeError("a name is no text")
    return tuple(values)


def _transition(steps: Any, foreach: Any, count: Any) -> Transition:
    if (
        type(steps) is not tuple
        or (foreach is not None and type(foreach) is not str)
        or (count is not None and type(count) is not int)
    ):
        raise TypeError("its transition has fields of other types")
    return _texts(steps), foreach, count


def _frame(fields: Any) -> ForeachFrame:
    step, var, num_splits, index, value, split = fields
    if (num_splits is not None and type(num_splits) is not int) or (
        type(step), type(var), type(index), type(value), type(split)
    ) != (str, str, int, str, int):  # fmt: skip
        raise TypeError("a foreach frame has fields of other types")
    return ForeachFrame(*fields)


class _Piece(NamedTuple):
    """Where in a pack the pickle of a value is, and the digest of the pickle."""

    start: int
    length: int
    key: str


def _piece_of(entry: Entry) -> _Piece | None:
    """Where in its first blob the entry's pickle is; None where it is not in a pack. Raises
    ValueError for what says neither."""
    if not entry.encoding.startswith(PACKED):
        return None
    start, length, key = entry.encoding.removeprefix(PACKED).split(":")
    return _Piece(int(start), int(length), blob_key(key))


class ForeachFrame(NamedTuple):
    """One level of a task's foreach stack, outermost first."""

    step: str
    var: str
    num_splits: int | None
    index: int  # type: ignore[assignment]  # the word that users know
    value: str
    split: int


@dataclass(slots=True)
class Manifest:
    """What one attempt left."""

    step: str = ""
    artifacts: dict[str, Entry] = field(default_factory=dict)
    inherited: dict[int, list[str]] = field(default_factory=dict)
    transition: Transition = ((), None, None)
    stack: tuple[ForeachFrame, ...] = ()
    items: Any = None
    error: dict[str, Any] | None = None

    def encode(self) -> bytes:
        """Return the manifest as bytes; the same manifest gives the same bytes."""
        return msgpack.packb(  # type: ignore[no-any-return]
            {
                "v": VERSION,
                "s": self.step,
                "a": self.artifacts,
                "i": self.inherited,
                "t": self.transition,
                "f": self.stack,
                "x": self.items,
                "e": self.error,
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        """Return the manifest that `encode` gave.

        Args:
            data: The manifest, as `encode` returned it.

        Raises:
            StorageError: The bytes are damaged, or a newer aflow has written them.
        """
        try:
            raw = unpack(data, _MOST, strict_map_key=False, use_list=False)
            if raw["v"] > VERSION:
                raise StorageError(
                    f"A manifest of version {raw['v']} was written by a newer aflow; "
                    f"this one reads up to version {VERSION}. Upgrade aflow."
                )
            error = raw["e"]
            if error is not None and type(error) is not dict:
                raise TypeError("its exception is no map")
            _texts(raw["a"])
            return cls(
                step=_texts((raw["s"],))[0],
                artifacts={name: _entry(entry) for name, entry in raw["a"].items()},
                inherited={int(task): [*_texts(names)] for task, names in raw["i"].items()},
                transition=_transition(*raw["t"]),
                stack=tuple(map(_frame, raw["f"])),
                items=raw["x"],
                error=error,
            )
        except StorageError:
            raise
        except Exception as error:
            raise StorageError(f"A manifest is damaged: {str(error).rstrip('.')}.") from error

    def names(self) -> set[str]:
        """The names of all artifacts that a later task can read from this one."""
        return set(self.artifacts).union(*self.inherited.values())

    def origins(self) -> dict[str, int]:
        """Return the task that set each inherited artifact, by name."""
        return {name: task for task, names in self.inherited.items() for name in names}

    def origin(self, name: str) -> int | None:
        """Return the task that set an inherited artifact; None if it is its own, or unknown.

        Args:
            name: The name of the artifact.
        """
        if name in self.artifacts:
            return None
        return next((task for task, names in self.inherited.items() if name in names), None)


_MOST = 2_000_000  # lists and maps of a manifest, which others may have written: memory is bounded
ENCODING = "pickle5"
PACKED = "pack5:"
THEIRS = "gzip+pickle", "pickle-v"
"""What encodings begin with in which Metaflow stores pickles, compressed in either case."""

# Values that are held back until it is known how many they are: up to so many become blobs of their
# own, which later tasks need not write again; more of them share packs. A disk takes about as long
# for an object of any size.
_FEW = 64
_IN_PACK_BELOW = 64 << 10  # bytes of a pickle
_LARGEST_PACK = 8 << 20
# A pack ends with a value whose key begins like this, which one of 256 does. So the values decide
# where it ends, not how many are before them: tasks that leave nearly the same values leave nearly
# the same packs, and those that are the same are stored once.
_LAST_OF_PACK = "00"

_IMMUTABLE = frozenset({int, float, complex, bool, str, bytes, type(None)})


class ArtifactWriter:
    """Stores what one attempt leaves. `inline_total` is shared by all its artifacts, so that
    manifests stay small; values past it become blobs however small they are. Without `previews`
    entries say of a value what its type and shape are, and nothing of what is in it."""

    def __init__(
        self,
        blobs: BlobStore,
        inline_limit: int = 4096,
        inline_total: int = 32768,
        *,
        previews: bool = True,
    ) -> None:
        self._previews = previews
        self._blobs = blobs
        self._inline_limit = inline_limit
        self._inline_left = inline_total

    def save(self, name: str, value: object) -> Entry:
        """Store a value.

        Args:
            name: The name of the artifact, for errors.
            value: The value; its memory is read before this returns.

        Returns:
            The entry for the manifest.

        Raises:
            StoreUnavailable: The datastore does not answer.
            ArtifactNotPicklable: The value cannot be pickled; the error names the part at fault.
        """
        parts, size, buffers = codecs.dump(f"Artifact {name!r}", name, value)
        kind, facts = preview(value)
        if not self._previews:
            facts = {name: facts[name] for name in SHAPE if name in facts}
        # Sets of texts are pickled in another order by each process.
        content = (content_digest(value) or "") if has_sets(parts) else ""
        inline = self._inline(parts, size)
        blobs = [] if inline is not None else [(self._put(parts, size), size)]
        for buffer in buffers:
            blobs.append((str(self._blobs.put(buffer, mappable=True)), buffer.nbytes))
            size += buffer.nbytes
        return Entry(
            encoding=ENCODING,
            size=size,
            type=kind,
            preview=facts,
            inline=inline,
            blobs=tuple(blobs),
            content=content,
        )

    def _put(self, parts: Sequence[Buffer], size: int) -> str:
        return str(self._blobs.put(*parts))

    def _inline(self, parts: Sequence[Buffer], size: int) -> bytes | None:
        if size > self._inline_limit or size > self._inline_left:
            return None
        self._inline_left -= size
        return b"".join(parts)


class PackingWriter(ArtifactWriter):
    """The same for all that an attempt leaves: holds small values back until it is known how many
    they are. None of these is stored before `finish` has returned."""

    def __init__(self, blobs: BlobStore, **options: Any) -> None:
        super().__init__(blobs, **options)
        self._held: dict[str, bytes] = {}  # key -> what is to be stored
        self._size = 0  # bytes of the pack that is being made
        self._are_many = False
        self._packed: dict[str, tuple[str, str, int]] = {}  # key -> encoding, pack, its size

    def _put(self, parts: Sequence[Buffer], size: int) -> str:
        if size >= _IN_PACK_BELOW:
            return super()._put(parts, size)
        key = str(digest_of(parts))
        if key not in self._held and key not in self._packed:
            self._hold(key, b"".join(parts))
        return key

    def _hold(self, key: str, data: bytes) -> None:
        if self._are_many:
            self._pack(key, data)
            return
        self._held[key] = data
        if len(self._held) > _FEW:
            self._are_many = True
            held, self._held = self._held, {}
            for each in held.items():
                self._pack(*each)

    def _pack(self, key: str, data: bytes) -> None:
        parts = [memoryview(data)]
        if codecs.pays(parts, len(data)):
            data = b"".join(codecs.compress(parts, len(data)))
        self._held[key] = data
        self._size += len(data)
        if key.startswith(_LAST_OF_PACK) or self._size >= _LARGEST_PACK:
            self._close_pack()

    def _close_pack(self) -> None:
        held, self._held, self._size = self._held, {}, 0
        if not held:
            return
        pack, size = str(self._blobs.put_raw(*held.values())), sum(map(len, held.values()))
        start = 0
        for key, data in held.items():
            self._packed[key] = f"{PACKED}{start}:{len(data)}:{key}", pack, size
            start += len(data)

    def finish(self, entries: dict[str, Entry]) -> None:
        """Store what was held back, and let the entries say where it is. Their digests stay.

        Args:
            entries: The entries, by the names of the artifacts.
        """
        if self._are_many:
            self._close_pack()
        for data in self._held.values():
            self._blobs.put(data)
        self._held = {}
        if not self._packed:
            return
        for name, entry in entries.items():
            packed = self._packed.get(entry.blobs[0][0]) if entry.inline is None else None
            if packed is not None:
                encoding, pack, size = packed
                blobs = ((pack, size), *entry.blobs[1:])
                entries[name] = entry._replace(encoding=encoding, blobs=blobs)


class ArtifactReader:
    """Turns entries back into values. One reader serves one task, from any of its threads.

    Blobs of 64 MiB and more that can be mapped are handed out before they are verified; who
    relies on what was computed from them calls `verify_pending` first. `names` finds the classes
    that they name, where those may not be where Python looks.
    """

    def __init__(self, blobs: BlobStore, names: Names | None = None) -> None:
        self._blobs = blobs
        self.names = names
        self._pending: dict[str, tuple[str, int]] = {}  # key -> artifact, size
        self._verified: set[str] = set()
        self._failures: list[AflowError] = []
        self._thread: threading.Thread | None = None
        self._pack: tuple[str, Buffer | None] = "", None  # the one that was read from last

    def load(self, name: str, entry: Entry) -> Any:
        """Return the value, writable and the caller's own.

        Args:
            name: The name of the artifact, for errors.
            entry: What the manifest says of it.

        Raises:
            ArtifactNotLoadable: (names the artifact, and the module that is missing), CorruptBlob,
                StoreUnavailable.
        """
        if entry.encoding.startswith(THEIRS):
            data = self._theirs(name, *entry.blobs[0])
            return codecs.load(f"Artifact {name!r}", data, (), self.names)
        try:
            pickled = self.pickle(name, entry)
        except (CorruptBlob, ObjectNotFound) as error:
            raise _named(name, error) from error
        apart = entry.blobs if entry.inline is not None else entry.blobs[1:]
        buffers = [_writable(self._read(name, key, size)) for key, size in apart]
        return codecs.load(f"Artifact {name!r}", pickled, buffers, self.names)

    def pickle(self, name: str, entry: Entry) -> Buffer:
        """Return the pickle of a value that aflow has stored, verified, without its buffers.

        Args:
            name: The name of the artifact, for errors.
            entry: What the manifest says of it.

        Raises:
            ArtifactNotLoadable: For one of a newer aflow, CorruptBlob, ObjectNotFound,
                StoreUnavailable.
        """
        piece = _piece_of(entry)
        if entry.encoding != ENCODING and piece is None:
            raise ArtifactNotLoadable(
                f"Artifact {name!r} is stored as {entry.encoding!r}, which this aflow does not "
                "know. Upgrade aflow."
            )
        if entry.inline is not None:
            return entry.inline
        # Never one that is mapped before it is verified: to unpickle is to run what it says.
        if piece is None:
            return self._blobs.get(*entry.blobs[0])
        return self._from_pack(piece, entry)

    def _from_pack(self, piece: _Piece, entry: Entry) -> Buffer:
        pack, pack_size = entry.blobs[0]
        size = entry.size - sum(size for _, size in entry.blobs[1:])
        last, held = self._pack
        if last == pack and held is None:  # the second one in a row: others are likely to follow
            held = self._blobs.get(pack, pack_size)
        if last == pack and held is not None:
            data: Buffer = memoryview(held)[piece.start : piece.start + piece.length]
        else:
            held = None
            data = self._blobs.get_range(pack, piece.start, piece.length)
        self._pack = pack, held
        return self._blobs.checked_part(pack, data, piece.key, size)

    def _theirs(self, name: str, key: str, size: int) -> bytes:
        """A pickle that Metaflow has stored: `key` is the name of its object, which ends with the
        SHA-1 of the pickle."""
        from hashlib import sha1  # loads OpenSSL, which no task of ours needs

        where = f"{key} in {self._blobs.store.url}"
        try:
            data = gunzipped(self._blobs.store.get(key), where, size or None)
            if sha1(data, usedforsecurity=False).hexdigest() != key.rpartition("/")[2]:
                raise CorruptBlob(f"{where} is damaged: its digest is another.")
            return data
        except (CorruptBlob, ObjectNotFound) as error:
            raise _named(name, error) from error

    def start_verification(self) -> None:
        """Begin, in a thread, to verify what was handed out unverified; nothing if all was."""
        if self._pending and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(target=self._verify, name="aflow-verify", daemon=True)
            self._thread.start()

    def verify_pending(self) -> None:
        """Wait until everything that was handed out is verified; raises CorruptBlob, which names
        the artifact, or what kept a blob from being read."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._verify()
        if self._failures:
            raise self._failures[0]

    def _verify(self) -> None:
        while True:
            try:
                key, (name, size) = self._pending.popitem()
            except KeyError:  # all done
                return
            try:
                self._blobs.verify(key, size)
            except AflowError as error:
                self._failures.append(_named(name, error))
            else:
                self._verified.add(key)

    def _read(self, name: str, key: str, size: int) -> Buffer:
        try:
            data, verified = self._blobs.map(key, size)
        except (CorruptBlob, ObjectNotFound) as error:
            raise _named(name, error) from error
        if not verified and key not in self._verified:
            self._pending[key] = (name, size)
        return data


def digest(entry: Entry) -> str:
    """Return the identity of a stored value: entries of the same bytes have the same digest,
    whether they ride inline or not, and so have equal values with sets, whose bytes may differ.

    Args:
        entry: What the manifest says of the artifact.
    """
    if entry.content:
        return entry.content
    keys = keys_of(entry)
    if entry.inline is not None:
        keys.insert(0, digest_of([entry.inline]))
    return keys[0] if len(keys) == 1 else digest_of(key.encode() for key in keys)


def keys_of(entry: Entry) -> list[str]:
    """Return the digests of its pickle, where that does not ride inline, and of its buffers.

    Args:
        entry: What the manifest says of the artifact.
    """
    keys = [key.rpartition("/")[2] for key, _ in entry.blobs]
    piece = _piece_of(entry)
    if piece is not None:
        keys[0] = piece.key
    return keys


def unchanged(
    value: object, entry: Entry, blobs: BlobStore | None = None, names: Names | None = None
) -> bool:
    """Return whether a value that was loaded from an entry is still as it was then.

    Python's own immutable values are. All others are pickled again and compared with the entry and,
    because the same value can have several pickles (sets, tables), with the pickle of a fresh copy.
    Large mapped arrays that nobody wrote to are recognised without reading them.

    Args:
        value: The very object that `load` returned.
        entry: The entry that it was loaded from.
        blobs: The datastore; without it a value that has blobs counts as changed.
        names: Finds the classes that the pickle names, where this program is not the one that has
            stored it; None for Python's own way.

    Raises:
        ArtifactNotPicklable: The value can no longer be stored.
    """
    if _is_immutable(value):
        return True
    if entry.blobs and blobs is None:
        return False
    parts, size, buffers = codecs.dump("A loaded artifact", "value", value)
    keys = keys_of(entry)
    if entry.inline is None:
        stored = keys.pop(0) == digest_of(parts, size)
    else:
        stored = entry.inline == b"".join(parts)
    if len(keys) != len(buffers) or not all(
        key == (blobs.key_of_mapped(buffer) if blobs else None)
        or key == digest_of([buffer], buffer.nbytes)
        for key, buffer in zip(keys, buffers, strict=True)
    ):
        return False
    return stored or _equals_fresh_copy(parts, entry, blobs, names)


def _equals_fresh_copy(
    parts: Sequence[Buffer], entry: Entry, blobs: BlobStore | None, names: Names | None
) -> bool:
    if blobs is None:
        fresh = codecs.load("A loaded artifact", entry.inline or b"", (), names)
    else:
        fresh = ArtifactReader(blobs, names).load("value", entry)
    again = codecs.dump("A loaded artifact", "value", fresh)
    return b"".join(again.parts) == b"".join(parts)


def _is_immutable(value: Any) -> bool:
    if type(value) in _IMMUTABLE:
        return True
    # A tuple cannot hold itself without holding something mutable: this ends.
    return type(value) in (tuple, frozenset) and all(map(_is_immutable, value))


def _writable(data: Buffer) -> Buffer:
    """What a value may write to: bytes that cannot be written are copied."""
    view = memoryview(data)
    return bytearray(view) if view.readonly else view


def _named(name: str, error: AflowError) -> AflowError:
    sentence = f"Artifact {name!r}: {error}"
    if isinstance(error, CorruptBlob):
        return CorruptBlob(sentence)
    if isinstance(error, ObjectNotFound):
        return ArtifactNotLoadable(f"{sentence} Run the step that made it again.")
    return type(error)(sentence)
