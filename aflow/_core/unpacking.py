"""Unpack untrusted msgpack data, with limits on the number and the nesting of containers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgpack

T = TypeVar("T")

# The first bytes of lists, maps and extensions. Their count in the data is an upper bound for the
# number of containers, and is fast to compute.
_BEGINNINGS = bytes(
    [*range(0x80, 0xA0), *range(0xC7, 0xCA), *range(0xD4, 0xD9), *range(0xDC, 0xE0)]
)
# The maximum nesting of extensions. Each level is a call of msgpack's C code with 50 kB of stack
# and a copy of the content: 150 levels overflow the stack, and crash the process.
_DEEPEST = 16
_TOO_DEEP = "its records are too deep"

Extended = Callable[[int, Any], Any]  # returns the value of an extension from its code and content


def unpack(data: bytes, most: int, extended: Extended | None = None, **how: Any) -> Any:
    """Unpack a msgpack value, with a limit on the number of containers in it.

    An empty map takes one byte of data and 64 bytes of memory, and unpacking blocks all other
    threads.

    Args:
        data: The bytes.
        most: The maximum number of lists, maps and extensions.
        extended: Returns the value of an extension; None if extensions are not allowed.
        **how: Options of `msgpack.unpackb`.

    Returns:
        The value.

    Raises:
        ValueError: If the bytes are not valid msgpack, or contain more containers. Invalid data may
            also raise TypeError, KeyError or RecursionError.
    """
    at_most = len(data) - len(data.translate(None, _BEGINNINGS))
    if at_most <= most:
        return msgpack.unpackb(data, **with_extensions(extended, **how))
    return _Bounded(most, extended, how).unpack(data)


def with_extensions(extended: Extended | None, **how: Any) -> dict[str, Any]:
    """Return options for `msgpack.unpackb` that unpack extensions up to the maximum nesting.

    Args:
        extended: Returns the value of an extension; None if extensions are not allowed.
        **how: Other options of `msgpack.unpackb`.
    """
    return how if extended is None else {**how, "ext_hook": _Deeper(extended, how, _DEEPEST)}


class _Deeper:
    """Unpacks extensions that are nested at most `left` levels deep."""

    __slots__ = ("_extended", "_how", "_inner", "_left")

    def __init__(self, extended: Extended, how: dict[str, Any], left: int) -> None:
        self._extended = extended
        self._left = left
        self._how = how
        self._inner: dict[str, Any] = {}  # created for the first extension

    def __call__(self, code: int, data: bytes) -> Any:
        if not self._inner:
            if self._left <= 0:
                raise ValueError(_TOO_DEEP)
            inside = _Deeper(self._extended, self._how, self._left - 1)
            self._inner = {**self._how, "ext_hook": inside}
        return self._extended(code, msgpack.unpackb(data, **self._inner))


class _Bounded:
    """Unpacks one value with at most `most` lists, maps and extensions in it."""

    def __init__(self, most: int, extended: Extended | None, how: dict[str, Any]) -> None:
        self._left = most
        self._extended = extended
        self._deeper = _DEEPEST
        self._how = {**how, "list_hook": self._counted, "object_hook": self._counted}
        if extended is not None:
            self._how["ext_hook"] = self._counted_extension

    def unpack(self, data: bytes) -> Any:
        """Unpack a value; see the function `unpack`."""
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
