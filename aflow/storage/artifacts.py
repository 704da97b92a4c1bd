"""Artifacts: the values that tasks store, as entries of manifests and as blobs.

A value is pickled (`storage.codecs`). Small pickles are stored inline in the manifest; larger ones
and all out-of-band buffers are blobs. Arrays are not copied when they are stored and not read when
they are loaded: their bytes are hashed and written in place, and mapped copy-on-write. If a task
stores many values of a few kilobytes, several of them share one blob, called a pack.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import msgpack

from aflow._core.ids import blob_key
from aflow._core.process import start_helper
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
from aflow.storage.identity import content_digest, varies
from aflow.storage.names import Names
from aflow.storage.previews import SHAPE, preview

# The manifest: the result of one attempt, as one small msgpack map.
#
# It is the commit record of an attempt. It never contains bulk data: small pickles are inline, all
# others are referred to by the keys of blobs. Reading a manifest never unpickles anything.
#
# Format (docs/storage_format.md): a map with the keys
#
# v   1
# s   the step
# a   {name: entry}                      the artifacts that this attempt set
# i   {task: [names]}                    the artifacts that it inherited, by the task that set them
# t   [[steps], foreach, count]          its transition
# f   [[step, var, splits, index, value, split]...]  its foreach stack, outermost first; `value`
# is a short text of the item, `split` the task that opened the foreach
# x   items of the foreach that it opens (`storage.items`), or nil
# e   {type, message, traceback, caught}  the exception that ended the attempt, or nil
#
# entry = [encoding, size, type, preview, inline bytes or nil, [[blob key, size]...], content]
#
# `encoding` is "pickle5": the pickle is the inline bytes, or the first blob if these are nil; the
# other blobs are its out-of-band buffers, in order. `size` is the total of the pickle and its
# buffers, in bytes, uncompressed. `type` is the qualified name of the value's class; `preview` a
# map of plain values to display: `repr` (short), `len`, `shape`, `dtype`, `columns`, as applicable.
# `content` is the digest of the content of a value with sets or tensors of torch, whose pickles
# differ from process to process; empty for all others.
#
# The encoding of a value in a pack is "pack5:START:LENGTH:KEY": LENGTH bytes of the only blob, from
# START on, are the pickle (as one zstd frame if LENGTH is less than `size`), and KEY is the blake3
# of the pickle, as if it were a separate blob.


VERSION = 1
Transition = tuple[
    tuple[str, ...], str | None, int | None
]  # next steps, the artifact that a foreach iterates over, number of its items


class Entry(NamedTuple):
    """The entry of one artifact in a manifest."""

    encoding: str
    size: int
    type: str
    preview: dict[str, Any]
    inline: bytes | None
    blobs: tuple[tuple[str, int], ...] = ()
    content: str = ""


_INLINE = (bytes, type(None))


def _entry(fields: Any) -> Entry:
    """Return the entry of fields that were read from a manifest, which is untrusted: raises
    TypeError or ValueError if a field has the wrong type."""
    entry = Entry(*fields)
    if [*map(type, entry[:4])] != [str, int, str, dict] or type(entry.inline) not in _INLINE:
        raise TypeError("an entry has fields of other types")
    for key, size in entry.blobs:
        if type(key) is not str or type(size) is not int:
            raise TypeError("an entry names no blob")
    if _piece_of(entry) is not None and not entry.blobs:
        raise TypeError("an entry names no pack")
    return entry


def _texts(values: Any) -> tuple[str, ...]:
    for each in values:  # a loop is fastest, and many manifests are read
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
    """The position of a value's pickle in a pack, and the digest of the pickle."""

    start: int
    length: int
    key: str


def _piece_of(entry: Entry) -> _Piece | None:
    """Return the position of the entry's pickle in its first blob; None if it is not in a pack.
    Raises ValueError if the encoding is malformed."""
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
    """The result of one attempt: its artifacts, transition, foreach stack and exception.

    `passes` is how often the step has run before, one time after another.
    """

    step: str = ""
    artifacts: dict[str, Entry] = field(default_factory=dict)
    inherited: dict[int, list[str]] = field(default_factory=dict)
    transition: Transition = ((), None, None)
    stack: tuple[ForeachFrame, ...] = ()
    items: Any = None
    error: dict[str, Any] | None = None
    passes: int = 0

    def encode(self) -> bytes:
        """Return the manifest as bytes. Equal manifests have equal bytes."""
        fields = {
            "v": VERSION,
            "s": self.step,
            "a": self.artifacts,
            "i": self.inherited,
            "t": self.transition,
            "f": self.stack,
            "x": self.items,
            "e": self.error,
        }
        if self.passes:
            fields["p"] = self.passes
        return msgpack.packb(fields)  # type: ignore[no-any-return]

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        """Return the manifest that `encode` has encoded.

        Args:
            data: The bytes that `encode` returned.

        Raises:
            StorageError: If the bytes are damaged or were written by a newer aflow.
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
                passes=int(raw.get("p", 0)),
            )
        except StorageError:
            raise
        except Exception as error:
            raise StorageError(f"A manifest is damaged: {str(error).rstrip('.')}.") from error

    def names(self) -> set[str]:
        """Return the names of all artifacts of this task, including inherited ones."""
        return set(self.artifacts).union(*self.inherited.values())

    def origins(self) -> dict[str, int]:
        """Return the task that set each inherited artifact, by name."""
        return {name: task for task, names in self.inherited.items() for name in names}


_MOST = 2_000_000  # limit of elements: manifests are untrusted, and memory must be bounded
ENCODING = "pickle5"
PACKED = "pack5:"
THEIRS = "gzip+pickle", "pickle-v"
"""The prefixes of encodings in which Metaflow stores pickles, which are always compressed."""

# Small values are held back until their number is known. Up to this many become separate blobs,
# which later tasks need not write again; more of them share packs, since writing an object takes
# about the same time for any small size.
_FEW = 64
_IN_PACK_BELOW = 64 << 10  # bytes of a pickle
_LARGEST_PACK = 8 << 20
# A pack ends after a value whose key has this prefix: one of 256. Content-defined boundaries make
# tasks with nearly the same values produce nearly the same packs, and equal packs are stored once.
_LAST_OF_PACK = "00"

_IMMUTABLE = frozenset({int, float, complex, bool, str, bytes, type(None)})


class ArtifactWriter:
    """Stores the artifacts of one attempt.

    `inline_total` limits the bytes that are inline in the manifest, for all artifacts together:
    once it is used up, even small values become blobs. Without `previews` the entries contain the
    type and shape of a value, but nothing of its content."""

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
            value: The value; its memory is not used after this returns.

        Returns:
            The entry for the manifest.

        Raises:
            StoreUnavailable: If the datastore does not respond.
            ArtifactNotPicklable: If the value cannot be pickled; the error names the part of it
                that cannot.
        """
        parts, size, buffers = codecs.dump(f"Artifact {name!r}", name, value)
        kind, facts = preview(value)
        if not self._previews:
            facts = {name: facts[name] for name in SHAPE if name in facts}
        content = (content_digest(value) or "") if varies(parts) else ""
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
    """An ArtifactWriter that packs small values if there are many. It holds small values back until
    their number is known: they are stored only when `finish` returns."""

    def __init__(self, blobs: BlobStore, **options: Any) -> None:
        super().__init__(blobs, **options)
        self._held: dict[str, bytes] = {}  # key -> the bytes to store
        self._size = 0  # bytes of the current pack
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
        """Store the values that were held back, and update the entries of those in packs. The
        digests of the entries do not change.

        Args:
            entries: The entries by the name of the artifact; updated in place.
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
    """Loads the values of entries. One reader serves one task, and any of its threads may call it.

    Mapped blobs of 64 MiB and more are returned before they are verified: call `verify_pending`
    before you commit results that were computed from them. `names` finds classes that pickles
    refer to and that Python's import system may not find.
    """

    def __init__(self, blobs: BlobStore, names: Names | None = None) -> None:
        self._blobs = blobs
        self.names = names
        self._pending: dict[str, tuple[str, int]] = {}  # key -> artifact, size
        self._verified: set[str] = set()
        self._failures: list[AflowError] = []
        self._thread: threading.Thread | None = None
        self._pack: tuple[str, Buffer | None] = "", None  # the pack that was read from last

    def load(self, name: str, entry: Entry) -> Any:
        """Return the value as a new, writable object.

        Args:
            name: The name of the artifact, for errors.
            entry: The entry of the artifact in the manifest.

        Raises:
            ArtifactNotLoadable: If the value cannot be unpickled or its blob is missing; the error
                names the artifact, and the module if one is missing.
            CorruptBlob: If a blob is damaged.
            StoreUnavailable: If the datastore does not respond.
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
        """Return the verified pickle of a value that aflow stored, without its buffers.

        Args:
            name: The name of the artifact, for errors.
            entry: The entry of the artifact in the manifest.

        Raises:
            ArtifactNotLoadable: If the encoding is unknown: a newer aflow wrote it.
            CorruptBlob: If the blob is damaged.
            ObjectNotFound: If the blob is missing.
            StoreUnavailable: If the datastore does not respond.
        """
        piece = _piece_of(entry)
        if entry.encoding != ENCODING and piece is None:
            raise ArtifactNotLoadable(
                f"Artifact {name!r} is stored as {entry.encoding!r}, which this aflow does not "
                "know. Upgrade aflow."
            )
        if entry.inline is not None:
            return entry.inline
        # `get` verifies. An unverified mapping must not be used: unpickling executes code.
        if piece is None:
            return self._blobs.get(*entry.blobs[0])
        return self._from_pack(piece, entry)

    def _from_pack(self, piece: _Piece, entry: Entry) -> Buffer:
        pack, pack_size = entry.blobs[0]
        size = entry.size - sum(size for _, size in entry.blobs[1:])
        last, held = self._pack
        if last == pack and held is None:  # the second value in a row: more are likely to follow
            held = self._blobs.get(pack, pack_size)
        if last == pack and held is not None:
            data: Buffer = memoryview(held)[piece.start : piece.start + piece.length]
        else:
            held = None
            data = self._blobs.get_range(pack, piece.start, piece.length)
        self._pack = pack, held
        return self._blobs.checked_part(pack, data, piece.key, size)

    def _theirs(self, name: str, key: str, size: int) -> bytes:
        """Return a pickle that Metaflow stored. `key` is the name of its object, which ends with
        the SHA-1 of the pickle."""
        from hashlib import sha1  # loads OpenSSL, which tasks otherwise do not need

        where = f"{key} in {self._blobs.store.url}"
        try:
            data = gunzipped(self._blobs.store.get(key), where, size or None)
            if sha1(data, usedforsecurity=False).hexdigest() != key.rpartition("/")[2]:
                raise CorruptBlob(f"{where} is damaged: its digest is another.")
            return data
        except (CorruptBlob, ObjectNotFound) as error:
            raise _named(name, error) from error

    def start_verification(self) -> None:
        """Start a thread that verifies the blobs that were returned unverified, if any."""
        if self._pending and (self._thread is None or not self._thread.is_alive()):
            self._thread = start_helper(self._verify, "aflow-verify")

    def verify_pending(self) -> None:
        """Wait until all blobs that were returned are verified. Raises CorruptBlob, which names the
        artifact, or the error of reading a blob."""
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
            except KeyError:  # all are verified
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
    """Return the digest that identifies a stored value. Entries of the same bytes have the same
    digest, inline or not, and so have equal values with sets or tensors, even if their pickles
    differ.

    Args:
        entry: The entry of the artifact in the manifest.
    """
    if entry.content:
        return entry.content
    keys = keys_of(entry)
    if entry.inline is not None:
        keys.insert(0, digest_of([entry.inline]))
    return keys[0] if len(keys) == 1 else digest_of(key.encode() for key in keys)


def keys_of(entry: Entry) -> list[str]:
    """Return the digests of the pickle, unless it is inline, and of the out-of-band buffers.

    Args:
        entry: The entry of the artifact in the manifest.
    """
    keys = [key.rpartition("/")[2] for key, _ in entry.blobs]
    piece = _piece_of(entry)
    if piece is not None:
        keys[0] = piece.key
    return keys


def unchanged(value: object, entry: Entry, blobs: BlobStore, names: Names | None = None) -> bool:
    """Return whether a value has not been modified since it was loaded from an entry.

    Immutable builtin values are always unmodified. Values with a digest of their content are
    compared by it. All others are pickled again and compared with the entry and, because one value
    can have several pickles (tables), with the pickle of a fresh copy. Large mapped arrays that
    were not written to are recognised without reading them.

    Args:
        value: The same object that `load` returned.
        entry: The entry that it was loaded from.
        blobs: The datastore.
        names: Finds classes that the pickle refers to, if another program stored it; None for
            Python's import system alone.

    Raises:
        ArtifactNotPicklable: If the value can no longer be pickled.
    """
    if _is_immutable(value):
        return True
    if entry.content:
        return content_digest(value) == entry.content
    parts, size, buffers = codecs.dump("A loaded artifact", "value", value)
    keys = keys_of(entry)
    if entry.inline is None:
        stored = keys.pop(0) == digest_of(parts, size)
    else:
        stored = entry.inline == b"".join(parts)
    if len(keys) != len(buffers) or not all(
        key == blobs.key_of_mapped(buffer) or key == digest_of([buffer], buffer.nbytes)
        for key, buffer in zip(keys, buffers, strict=True)
    ):
        return False
    if stored:
        return True
    fresh = ArtifactReader(blobs, names).load("value", entry)
    again = codecs.dump("A loaded artifact", "value", fresh)
    return b"".join(again.parts) == b"".join(parts)


def _is_immutable(value: Any) -> bool:
    if type(value) in _IMMUTABLE:
        return True
    # The recursion ends: a tuple can only contain itself through something mutable.
    return type(value) in (tuple, frozenset) and all(map(_is_immutable, value))


def _writable(data: Buffer) -> Buffer:
    """Return a writable buffer of the data: the same memory, or a copy if it is read-only."""
    view = memoryview(data)
    return bytearray(view) if view.readonly else view


def _named(name: str, error: AflowError) -> AflowError:
    sentence = f"Artifact {name!r}: {error}"
    if isinstance(error, CorruptBlob):
        return CorruptBlob(sentence)
    if isinstance(error, ObjectNotFound):
        return ArtifactNotLoadable(f"{sentence} Run the step that made it again.")
    return type(error)(sentence)
