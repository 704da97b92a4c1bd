"""The format of a message: its recipients, its purpose, and a signature.

    b"AFM2" [signature: 32 bytes of HMAC-SHA256, or nothing] msgpack([kind, topic, at, fields])

If keys are configured, messages are signed with the first one, and a message without a signature by
one of the keys is rejected before it is unpacked. Without keys, signed messages are rejected. The
byte after the magic indicates whether a message is signed. The signature covers all that follows
it, so a message is valid only for its topic (of a run, a pool or a worker) and for a limited time.
Messages are never unpickled.
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
LONGEST_LIFE = 30 * 86400.0  # seconds for which a message is valid
AHEAD = 86400.0  # seconds that the clock of its writer may be ahead of ours
# Maximum number of lists and maps in a message; fewer in one that is only inspected, since it may
# be unsigned, and buried for that reason.
_MOST, _MOST_LOOKED_AT = 1_000_000, 10_000
_LOOKED_AT = 8 << 20  # maximum size in bytes of a message that is only inspected
_MAGIC = b"AFM2"
_FAMILY = b"AFM"
_PLAIN, _SIGNED = b"\x00", b"\x01"
_HEAD = len(_MAGIC) + 1
_SIGNATURE = 32

Keys = Sequence[bytes]


def seal(kind: str, topic: str, at: float, fields: dict[str, Any], keys: Keys = ()) -> bytes:
    """Return the bytes of a message, signed with the first key, if there is one.

    Args:
        kind: The kind of message; `unseal` checks it.
        topic: The topic that the message is for; `unseal` checks it.
        at: The current time, in seconds since the epoch.
        fields: The content, of types that msgpack supports.
        keys: The signing keys, the newest first; empty for none.

    Raises:
        InvalidMessage: If the message is larger than MAX_SIZE.
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
    """Return kind and fields of a message, after checking its signature.

    Args:
        data: The bytes of the message, which are not trusted.
        kinds: The kinds that are allowed in this topic.
        topic: The topic from which the message was received.
        now: The current time, in seconds since the epoch; None to ignore the age.
        keys: The signing keys, the newest first; empty for none.

    Raises:
        ForgedMessage: If the signature is missing, unexpected or wrong.
        MessageTooNew: If another version of aflow has written it.
        InvalidMessage: If it is malformed, of another kind or topic, or too old.
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
    """Return kind, time and fields of a message for display, without checking its signature. None
    if the message is malformed, or too large to be decoded cheaply.

    Args:
        data: The bytes of the message, which are not trusted.
    """
    body = data[_HEAD + (_SIGNATURE if data[_HEAD - 1 : _HEAD] == _SIGNED else 0) :]
    try:
        if len(body) > _LOOKED_AT:
            return None
        kind, _, at, fields = unpack(body, _MOST_LOOKED_AT, strict_map_key=False)
    except Exception:  # noqa: BLE001 -- any error means that it is not a message
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
