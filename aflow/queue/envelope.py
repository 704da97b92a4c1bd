"""The form of a message: who may read it, and that nobody has changed it.

    b"AFM1" [signature: 32 bytes of HMAC-SHA256, or nothing] msgpack([kind, fields])

With a key every message is signed, and one that is not, or by another key, is refused before it is
unpacked; without a key none may be signed. The byte after the magic says which of both it is. No
message is ever unpickled.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection
from typing import Any

import msgpack

from aflow.errors import ForgedMessage, InvalidMessage

MAX_SIZE = 64 << 20  # bytes of a message
_MAGIC = b"AFM1"
_PLAIN, _SIGNED = b"\x00", b"\x01"
_HEAD = len(_MAGIC) + 1
_SIGNATURE = 32


def seal(kind: str, fields: dict[str, Any], key: bytes | None = None) -> bytes:
    """The message of this kind with these fields, which msgpack can hold; signed with the key, if
    there is one. Raises InvalidMessage for one that is too large."""
    body: bytes = msgpack.packb([kind, fields])
    if len(body) > MAX_SIZE:
        raise InvalidMessage(f"A message of {len(body)} bytes is larger than {MAX_SIZE}.")
    if key is None:
        return _MAGIC + _PLAIN + body
    return _MAGIC + _SIGNED + _signature(key, body) + body


def unseal(
    data: bytes, kinds: Collection[str], key: bytes | None = None
) -> tuple[str, dict[str, Any]]:
    """Kind and fields of a message. Raises ForgedMessage where the signature is not what it has to
    be, InvalidMessage for what is no message, or one of another kind."""
    if len(data) > MAX_SIZE + _HEAD + _SIGNATURE:
        raise InvalidMessage(f"A message of {len(data)} bytes is larger than {MAX_SIZE}.")
    if not data.startswith(_MAGIC) or data[_HEAD - 1 : _HEAD] not in (_PLAIN, _SIGNED):
        raise InvalidMessage("A message is none of aflow's, or of a version that is not known.")
    body = data[_HEAD:]
    if data[_HEAD - 1 : _HEAD] == _SIGNED:
        body = _checked(body, key)
    elif key is not None:
        raise ForgedMessage("A message is not signed, though AFLOW_SIGNING_KEY is set here.")
    try:
        kind, fields = msgpack.unpackb(body, strict_map_key=False)
    except Exception as error:
        raise InvalidMessage(f"A message is damaged: {type(error).__name__}.") from error
    if kind not in kinds or not isinstance(fields, dict):
        raise InvalidMessage(f"A message of the kind {str(kind)[:40]!r} is not expected here.")
    return kind, fields


def _checked(data: bytes, key: bytes | None) -> bytes:
    signature, body = data[:_SIGNATURE], data[_SIGNATURE:]
    if key is None:
        raise ForgedMessage("A message is signed, but no AFLOW_SIGNING_KEY is set here.")
    if not hmac.compare_digest(signature, _signature(key, body)):
        raise ForgedMessage("A message was signed with another key, or changed on its way.")
    return body


def _signature(key: bytes, body: bytes) -> bytes:
    return hmac.new(key, body, hashlib.sha256).digest()
