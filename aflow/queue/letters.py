"""The form of a message in SQS, which takes text alone, and only so much of it.

    base64(msgpack([1, id, deliveries, buried_at, kept, body]))

`deliveries` are those that SQS has not counted itself: a message that was given back at no cost, or
buried, is a new one to SQS. `kept` names the object that has the body of one that is too large.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgpack

from aflow.errors import InvalidMessage

LARGEST = 250_000  # characters of a message, and of all that go with one call
MOST = 10  # messages of a call
_VERSION = 1


class Letter(NamedTuple):
    """A message as it stands in SQS."""

    id: str
    body: bytes
    deliveries: int = 0
    buried_at: float = 0.0
    kept: str = ""


def write(letter: Letter) -> str:
    """The text of a letter."""
    fields = [
        _VERSION, letter.id, letter.deliveries, letter.buried_at, letter.kept,
        b"" if letter.kept else letter.body,
    ]  # fmt: skip
    return base64.b64encode(msgpack.packb(fields)).decode()


def read(text: str) -> Letter:
    """The letter of a text; raises InvalidMessage for what is none."""
    try:
        version, name, deliveries, buried_at, kept, body = msgpack.unpackb(
            base64.b64decode(text, validate=True)
        )
    except Exception as error:
        raise InvalidMessage(f"A message is damaged: {type(error).__name__}.") from error
    letter = Letter(name, body, deliveries, buried_at, kept)
    kinds = [str, bytes, int, float, str]
    if version != _VERSION or [type(each) for each in letter] != kinds:
        raise InvalidMessage("A message is none of aflow's, or of a version that is not known.")
    return letter


def calls_of(sizes: Sequence[int]) -> Iterator[range]:
    """Which messages of these sizes go together in a call."""
    first = total = 0
    for number, size in enumerate(sizes):
        if number > first and (number - first == MOST or total + size > LARGEST):
            yield range(first, number)
            first, total = number, 0
        total += size
    if sizes:
        yield range(first, len(sizes))
