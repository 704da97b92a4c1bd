"""The attempts of one job, of which an array has many: an object with a record for each of them.

All records have the same width, so that a job finds its own by its index and reads no other: one
ranged request, however wide the array is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgpack

from aflow.attempt.spec import AttemptSpec
from aflow.errors import CorruptBlob, InvalidMessage
from aflow.storage.blobs import digest_of

if TYPE_CHECKING:
    from aflow.attempt.remote import Parcels


class Roll(NamedTuple):
    """Where the attempts of a job stand: the key of a parcel, and the bytes of each record."""

    key: str
    width: int

    @classmethod
    def write(cls, parcels: Parcels, specs: Sequence[AttemptSpec]) -> Roll:
        """Put the attempts into a parcel. Blocks; raises StorageError."""
        records = [_record(spec) for spec in specs]
        width = max(map(len, records))
        key = parcels.put(b"".join(record.ljust(width, b"\0") for record in records))
        return cls(key, width)

    @classmethod
    def parse(cls, text: str) -> Roll:
        """The roll that `str` gave; raises InvalidMessage."""
        key, _, width = text.partition(":")
        if not width.isdigit():
            raise InvalidMessage(f"{text!r} does not say where attempts stand.")
        return cls(key, int(width))

    def __str__(self) -> str:
        return f"{self.key}:{self.width}"

    def read(self, parcels: Parcels, index: int) -> AttemptSpec:
        """The attempt of this index. Blocks; raises ObjectNotFound, and CorruptBlob."""
        return _attempt(parcels.part(self.key, index * self.width, self.width), self.key)

    def read_all(self, parcels: Parcels) -> list[AttemptSpec]:
        """All of them, in order. Blocks; raises what `read` raises."""
        data, width = parcels.get(self.key), self.width
        return [_attempt(data[at : at + width], self.key) for at in range(0, len(data), width)]


def _record(spec: AttemptSpec) -> bytes:
    data = spec.encode()
    return msgpack.packb((digest_of([data], len(data)), data))  # type: ignore[no-any-return]


def _attempt(record: bytes, key: str) -> AttemptSpec:
    unpacker = msgpack.Unpacker()
    unpacker.feed(record)
    try:
        digest, data = unpacker.unpack()
    except (ValueError, msgpack.OutOfData) as error:
        raise CorruptBlob(f"The list of attempts {key} is damaged.") from error
    if digest_of([data], len(data)) != digest:
        raise CorruptBlob(f"The list of attempts {key} is damaged.")
    return AttemptSpec.decode(data)
