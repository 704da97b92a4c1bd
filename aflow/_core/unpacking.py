"""msgpack that others may have written, unpacked with a bound on what is made of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgpack

T = TypeVar("T")

# Bytes that begin a list, a map or an extension: there are as many of these as that at most, and
# counting bytes costs next to nothing.
_BEGINNINGS = bytes(
    [*range(0x80, 0xA0), *range(0xC7, 0xCA), *range(0xD4, 0xD9), *range(0xDC, 0xE0)]
)
# Extensions inside of each other. Each level is a call of msgpack's C code with 50 kB on its stack,
# and a copy of what is inside: 150 of them overflow the stack, and end the process.
_DEEPEST = 16
_TOO_DEEP = "its records are too deep"

Extended = Callable[[int, Any], Any]  # makes the value of an extension, of its code and content


def unpack(data: bytes, most: int, extended: Extended | None = None, **how: Any) -> Any:
    """Return the value in bytes of msgpack, with a limit on the containers in it. An empty map is
    one byte to send and 64 to keep, and no other thread has its turn while they are made.

    Args:
        data: The bytes.
        most: How many lists, maps and extensions are allowed.
        extended: Makes the values of msgpack's extensions; None where none are allowed.
        **how: Options of `msgpack.unpackb`.

    Raises:
        ValueError: The bytes are not msgpack, or there are more; TypeError, KeyError and
            RecursionError are possible, too.
    """
    at_most = len(data) - len(data.translate(None, _BEGINNINGS))
    if at_most <= most:
        return msgpack.unpackb(data, **with_extensions(extended, **how))
    return _Bounded(most, extended, how).unpack(data)


def with_extensions(extended: Extended | None, **how: Any) -> dict[str, Any]:
    """Return the options of msgpack that have it unpack extensions, too.

    Args:
        extended: Makes the values of msgpack's extensions; None where none are allowed.
        **how: Options of `msgpack.unpackb`.
    """
    return how if extended is None else {**how, "ext_hook": _Deeper(extended, how, _DEEPEST)}


class _Deeper:
    """Unpacks extensions, of which this many may be inside of each other."""

    __slots__ = ("_extended", "_how", "_inner", "_left")

    def __init__(self, extended: Extended, how: dict[str, Any], left: int) -> None:
        self._extended = extended
        self._left = left
        self._how = how
        self._inner: dict[str, Any] = {}  # made when the first one is met

    def __call__(self, code: int, data: bytes) -> Any:
        if not self._inner:
            if self._left <= 0:
                raise ValueError(_TOO_DEEP)
            inside = _Deeper(self._extended, self._how, self._left - 1)
            self._inner = {**self._how, "ext_hook": inside}
        return self._extended(code, msgpack.unpackb(data, **self._inner))


class _Bounded:
    """Unpacks one value, with at most this many lists, maps and extensions in it."""

    def __init__(self, most: int, extended: Extended | None, how: dict[str, Any]) -> None:
        self._left = most
        self._extended = extended
        self._deeper = _DEEPEST
        self._how = {**how, "list_hook": self._counted, "object_hook": self._counted}
        if extended is not None:
            self._how["ext_hook"] = self._counted_extension

    def unpack(self, data: bytes) -> Any:
        """See the function of this name."""
        return msgpack.unpackb(data, **self._how)

    def _counted(self, value: T) -> T:
        self._left -= 1
        if self._left < 0:
            raise ValueError("it has too many values")
        return value

    def _counted_extension(self, code: int, data: bytes) -> Any:
        self._deeper -= 1
        if self._deeper < 0:
            raise ValueError(_TOO_DEEP)
        inner = self.unpack(data)
        self._deeper += 1
        assert self._extended is not None, "extensions are read"
        return self._extended(code, inner)
