"""The form of a message in SQS, which takes text alone, and only so much of it.

    base64(msgpack([1, id, deliveries, buried_at, kept, body]))
    base64(msgpack([2, [[id, deliveries, body], ...]]))

The second form is a bundle: SQS counts and charges messages, and takes ten of them in a call.
`deliveries` are those that SQS has not counted itself: a message that was given back at no cost, or
buried, is a new one to SQS. `kept` names the object that has the body of one that is too large.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgpack

from aflow.errors import InvalidMessage

LARGEST = 250_000  # characters of a message, and of all that go with one call
MOST = 10  # messages of a call
LARGEST_BUNDLE = LARGEST // MOST  # characters, so that a call can have as many bundles as messages
_MOST_IN_BUNDLE = 20  # letters
_ONE, _BUNDLE = 1, 2


class Letter(NamedTuple):
    """A message as it stands in SQS."""

    id: str
    body: bytes
    deliveries: int = 0
    buried_at: float = 0.0
    kept: str = ""


def write(letters: Sequence[Letter]) -> str:
    """The text of a letter, or of a bundle of several, none of which is buried or kept."""
    fields: list[Any]
    if len(letters) == 1:
        (letter,) = letters
        fields = [
            _ONE, letter.id, letter.deliveries, letter.buried_at, letter.kept,
            b"" if letter.kept else letter.body,
        ]  # fmt: skip
    else:
        fields = [_BUNDLE, [[each.id, each.deliveries, each.body] for each in letters]]
    return base64.b64encode(msgpack.packb(fields)).decode()


def read(text: str) -> list[Letter]:
    """The letters of a text; raises InvalidMessage for what is none."""
    try:
        version, *rest = msgpack.unpackb(base64.b64decode(text, validate=True))
        if version == _ONE:
            name, deliveries, buried_at, kept, body = rest
            letters = [Letter(name, body, deliveries, buried_at, kept)]
        else:
            (several,) = rest
            letters = [Letter(name, body, deliveries) for name, deliveries, body in several]
    except Exception as error:
        raise InvalidMessage(f"A message is damaged: {type(error).__name__}.") from error
    kinds = [str, bytes, int, float, str]
    are_ours = all([type(each) for each in letter] == kinds for letter in letters)
    if version not in (_ONE, _BUNDLE) or not letters or not are_ours:
        raise InvalidMessage("A message is none of aflow's, or of a version that is not known.")
    return letters


def bundled(letters: Sequence[Letter]) -> list[list[Letter]]:
    """Which letters go together in a message. As many messages as a call can have come before
    messages with several letters: few letters are for as many workers as there are."""
    most = min(-(-len(letters) // MOST), _MOST_IN_BUNDLE)
    bundles: list[list[Letter]] = []
    room = 0
    for letter in letters:
        weight = size_of(letter)
        is_alone = bool(letter.kept) or weight > LARGEST_BUNDLE
        if not bundles or is_alone or len(bundles[-1]) >= most or weight > room:
            bundles.append([])
            room = 0 if is_alone else LARGEST_BUNDLE
        bundles[-1].append(letter)
        room -= weight
    return bundles


def size_of(letter: Letter) -> int:
    """How many characters the letter takes at most, if its body goes with it."""
    return (len(letter.body) + len(letter.id) + len(letter.kept) + 64) * 4 // 3


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
