"""The form of a message: its recipients, its purpose, and a signature against changes.

    b"AFM2" [signature: 32 bytes of HMAC-SHA256, or nothing] msgpack([kind, topic, at, fields])

With keys every message is signed, with the first of them; one that is not, or by a key that is not
among them, is refused before it is unpacked. Without keys none may be signed. The byte after the
magic says which of both it is. The signature covers all that follows it: a message is good for its
topic alone (that of a run, a pool or a worker), and not for ever. No message is ever unpickled.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Collection, Sequence
from typing import Any

import msgpack

from aflow._core.unpacking import unpack
from aflow.errors import ForgedMessage, InvalidMessage, MessageTooNew

MAX_SIZE = 64 << 20  # bytes of a message
LONGEST_LIFE = 30 * 86400.0  # seconds for which a message is good
AHEAD = 86400.0  # seconds that the clock of its writer may be ahead of ours
# What is made of a message: lists and maps in one, and in one that is only looked at, which may be
# unsigned, and has been buried for that.
_MOST, _MOST_LOOKED_AT = 1_000_000, 10_000
_LOOKED_AT = 8 << 20  # bytes
_MAGIC = b"AFM2"
_FAMILY = b"AFM"
_PLAIN, _SIGNED = b"\x00", b"\x01"
_HEAD = len(_MAGIC) + 1
_SIGNATURE = 32

Keys = Sequence[bytes]


def seal(kind: str, topic: str, at: float, fields: dict[str, Any], keys: Keys = ()) -> bytes:
    """Return the bytes of a message, signed with the first key, if there is one.

    Args:
        kind: The kind of message.
        topic: The topic that it is for; the signature covers it.
        at: When it is written, in seconds since the epoch.
        fields: The fields, which msgpack can hold.
        keys: The keys that messages are signed with, the newest first; empty for none.

    Raises:
        InvalidMessage: If it is too large.
    """
    body: bytes = msgpack.packb([kind, topic, at, fields])
    if len(body) > MAX_SIZE:
        raise InvalidMessage(f"A message of {len(body)} bytes is larger than {MAX_SIZE}.")
    if not keys:
        return _MAGIC + _PLAIN + body
    return _MAGIC + _SIGNED + _signature(keys[0], body) + body


def unseal(
    data: bytes, kinds: Collection[str], topic: str, now: float | None, keys: Keys = ()
) -> tuple[str, dict[str, Any]]:
    """Return kind and fields of a message, after its signature is checked.

    Args:
        data: The bytes of the message, which are not trusted.
        kinds: The kinds that may come by this topic.
        topic: The topic by which it has come.
        now: The present time, in seconds since the epoch; None where the age does not matter.
        keys: The keys that messages are signed with, the newest first; empty for none.

    Raises:
        ForgedMessage: If the signature is missing, wrong, or for another topic.
        MessageTooNew: If another version of aflow has written it.
        InvalidMessage: If it is malformed, of another kind, or too old.
    """
    if len(data) > MAX_SIZE + _HEAD + _SIGNATURE:
        raise InvalidMessage(f"A message of {len(data)} bytes is larger than {MAX_SIZE}.")
    if not data.startswith(_MAGIC) or data[_HEAD - 1 : _HEAD] not in (_PLAIN, _SIGNED):
        if data.startswith(_FAMILY) and data[3:4].isdigit() and data[3:4] != _MAGIC[3:]:
            raise MessageTooNew("A message was written by another version of aflow than this one.")
        raise InvalidMessage("A message is not from aflow.")
    body = data[_HEAD:]
    if data[_HEAD - 1 : _HEAD] == _SIGNED:
        body = _checked(body, keys)
    elif keys:
        raise ForgedMessage("A message is not signed, though AFLOW_SIGNING_KEY is set here.")
    return _opened(body, kinds, topic, now)


def peek(data: bytes) -> tuple[str, float, dict[str, Any]] | None:
    """Return kind, time and fields of a message, for people to look at. No signature is checked.
    None for a message that is malformed, or so large that decoding it would cost too much.

    Args:
        data: The bytes of the message, which are not trusted.
    """
    body = data[_HEAD + (_SIGNATURE if data[_HEAD - 1 : _HEAD] == _SIGNED else 0) :]
    try:
        if len(body) > _LOOKED_AT:
            return None
        kind, _, at, fields = unpack(body, _MOST_LOOKED_AT, strict_map_key=False)
    except Exception:  # noqa: BLE001 -- whatever it is, it is not a message
        return None
    if not isinstance(kind, str) or not isinstance(at, float) or not isinstance(fields, dict):
        return None
    return kind, at, fields


def _opened(
    body: bytes, kinds: Collection[str], topic: str, now: float | None
) -> tuple[str, dict[str, Any]]:
    try:
        kind, its_topic, at, fields = unpack(body, _MOST, strict_map_key=False)
    except Exception as error:
        raise InvalidMessage(f"A message is damaged: {type(error).__name__}.") from error
    if not isinstance(kind, str) or kind not in kinds or not isinstance(fields, dict):
        raise InvalidMessage(f"A message of the kind {str(kind)[:40]!r} is not expected here.")
    if its_topic != topic:
        raise InvalidMessage(f"A message was written for another topic ({str(its_topic)[:64]!r}).")
    if not isinstance(at, float) or not math.isfinite(at):
        raise InvalidMessage("A message does not say when it was written.")
    if now is not None and not now - LONGEST_LIFE <= at <= now + AHEAD:
        raise InvalidMessage(
            f"A message was written {abs(now - at) / 3600:.0f} hours "
            f"{'ago' if at < now else 'from now'}, and is not good for that long."
        )
    return kind, fields


def _checked(data: bytes, keys: Keys) -> bytes:
    signature, body = data[:_SIGNATURE], data[_SIGNATURE:]
    if not keys:
        raise ForgedMessage("A message is signed, but no AFLOW_SIGNING_KEY is set here.")
    if not any(hmac.compare_digest(signature, _signature(key, body)) for key in keys):
        raise ForgedMessage("A message was signed with another key, or changed on its way.")
    return body


def _signature(key: bytes, body: bytes) -> bytes:
    return hmac.new(key, body, hashlib.sha256).digest()
