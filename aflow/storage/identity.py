"""Content digests of values that are equal in every process, independent of the order of sets and
of which equal parts are the same object.

The parts of a value are those that it gives to pickle (`__reduce_ex__`), recursively. The `repr` of
objects is not used, since it may omit content or contain a memory address. The digest of a
container is computed from the digests of its parts, so that sharing of equal parts does not matter.
"""

from __future__ import annotations

import copyreg
import functools
import pickle
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from aflow.storage.blobs import digest_of

MOST_PARTS = 200_000  # takes about a second
MOST_BYTES = 256 << 20

# The exact types whose repr is their complete content.
_BY_REPR = frozenset({bool, int, float, complex, type(None), type(...), type(NotImplemented)})
_MAX_BITS = 2048  # Python refuses the repr of an int with more digits than a limit (640 or more)
_SIGNS = (pickle.EMPTY_SET, pickle.FROZENSET, b"_load_from_bytes")

CACHING: Any = type(functools.lru_cache(len))  # functions with @lru_cache or @cache

Named = Callable[[Any], "bytes | None"]
Opaque = Callable[[Any], bytes]


class NotTellable(Exception):
    """The content of a value, or of a part of it, cannot be hashed; the message has the reason."""


def varies(pickled: Iterable[Any]) -> bool:
    """Return whether a pickle may differ from process to process: because of the order of a set, or
    of the addresses in the pickles of torch's tensors. There are false positives, but no false
    negatives.

    Args:
        pickled: The bytes of the pickle, in consecutive parts.
    """
    # Parts of other types are in-band buffers, which contain no opcodes.
    texts = [part for part in pickled if isinstance(part, bytes | bytearray)]
    return any(sign in text for text in texts for sign in _SIGNS)


def content_digest(value: object) -> str | None:
    """Return the content digest of an artifact's value; None if its content cannot be hashed.

    Args:
        value: A value of any type.
    """
    try:
        return Contents(_by_name, _not_tellable).digest(value)
    except (NotTellable, RecursionError):
        return None


class Contents:
    """Computes content digests; the caller decides how functions and opaque objects are identified.

    `named` returns the identity of objects that are not examined further (functions, classes,
    modules), and None for all others. `opaque` returns the identity of an object without hashable
    content, or raises NotTellable. Values that were hashed are cached, and so kept alive.
    """

    def __init__(self, named: Named, opaque: Opaque) -> None:
        self._named = named
        self._opaque = opaque
        self._known: dict[int, bytes] = {}
        self._kept: list[Any] = []  # keeps the values alive, so that their ids are not reused
        self._open: dict[int, int] = {}
        self._parts = 0
        self._bytes = 0

    def digest(self, value: object) -> str:
        """Return the digest of a value.

        Args:
            value: A value of any type, which must not be modified during the call.

        Raises:
            NotTellable: If the value has too many parts or bytes, or if `opaque` raises it.
            RecursionError: If the value is nested too deeply.
        """
        self._parts = self._bytes = 0
        self._open.clear()
        return str(digest_of([self.of(value)]))

    def of(self, value: Any) -> bytes:
        """Return the bytes that represent a value in the digest of its container.

        Args:
            value: The value or a part of it.
        """
        kind = type(value)
        if kind in _BY_REPR:
            is_large = kind is int and value.bit_length() > _MAX_BITS
            return f"{kind.__name__}:{hex(value) if is_large else repr(value)};".encode()
        if kind is str:
            return self._sized(b"s", value.encode("utf-8", "surrogatepass"))
        if kind in (bytes, bytearray):
            return self._sized(kind.__name__.encode(), value)
        known = self._known.get(id(value))
        if known is not None:
            return known
        if id(value) in self._open:  # a cycle: the number of levels up identifies the value
            return b"^%d;" % (len(self._open) - self._open[id(value)])
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise NotTellable(f"has more than {MOST_PARTS:,} parts")
        self._open[id(value)] = len(self._open)
        try:
            found = b"#" + bytes.fromhex(digest_of(list(self._of_parts(kind, value))))
        finally:
            self._open.pop(id(value), None)
        self._known[id(value)] = found
        self._kept.append(value)
        return found

    def _sized(self, kind: bytes, data: Any) -> bytes:
        self._bytes += len(data)
        if self._bytes > MOST_BYTES:
            raise NotTellable(f"has more than {MOST_BYTES >> 20} MiB")
        if len(data) > 64:
            return b"%s*%d:%s;" % (kind, len(data), digest_of([data], len(data)).encode())
        return b"%s%d:%s;" % (kind, len(data), bytes(data))

    def _of_parts(self, kind: type, value: Any) -> Iterator[bytes]:
        if kind in (list, tuple):
            yield kind.__name__.encode()
            yield from map(self.of, value)
        elif kind in (dict, types.MappingProxyType):
            yield b"dict"
            for key, each in value.items():
                yield self.of(key)
                yield self.of(each)
        elif kind in (set, frozenset):
            yield kind.__name__.encode()
            if all(type(each) is str for each in value):  # a fast path for the most common sets
                yield self.of(pickle.dumps(sorted(value), 5))
            else:
                yield from sorted(map(self.of, value))
        else:
            name = self._named(value)
            yield from [name] if name is not None else self._of_object(kind, value)

    def _of_object(self, kind: type, value: Any) -> Iterator[bytes]:
        parts: Any = _own_parts(value)
        if parts is None:
            try:
                reduce = copyreg.dispatch_table.get(kind)
                parts = value.__reduce_ex__(4) if reduce is None else reduce(value)
            except RecursionError:
                raise
            except (Exception, SystemExit):  # noqa: BLE001 -- raised by the value's own code
                yield self._opaque(value)
                return
            if not isinstance(parts, str | tuple):
                raise NotTellable(f"is a {kind.__qualname__}, which cannot be pickled")
        yield f"{kind.__module__}.{kind.__qualname__}(".encode()
        if isinstance(parts, str):  # the name of a global of its module
            yield f"{getattr(value, '__module__', None)}.{parts}".encode()
            return
        for place, part in enumerate(parts):
            # `__reduce_ex__` returns the items of list and dict subclasses as iterators.
            yield self.of(list(part) if place in (3, 4) and part is not None else part)


def _own_parts(value: Any) -> tuple[Any, ...] | None:
    """Return the parts of a wrapper of functions that pickle rejects or stores by name, and those
    of a tensor; None for any other value."""
    if isinstance(value, staticmethod | classmethod):
        return (value.__func__,)
    if isinstance(value, property):
        return value.fget, value.fset, value.fdel
    if isinstance(value, functools.cached_property):
        return (value.func,)
    if isinstance(value, types.MethodType):
        return value.__func__, value.__self__
    if isinstance(value, types.CellType):
        try:
            return (value.cell_contents,)
        except ValueError:  # empty
            return ()
    if isinstance(value, CACHING):
        return value.__wrapped__, value.cache_parameters()
    return _parts_of_tensor(value)


def _parts_of_tensor(value: Any) -> tuple[Any, ...] | None:
    """Return the parts of a tensor of torch, whose pickle contains addresses; None for any other
    value, and for tensors with attributes or of a special layout or device."""
    torch: Any = sys.modules.get("torch")
    if torch is None or type(value) not in (torch.Tensor, torch.nn.Parameter):
        return None
    if vars(value) or value.is_quantized:
        return None
    try:
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    except (NotImplementedError, RuntimeError, TypeError):
        return None
    of_data = digest_of([memoryview(data)], data.nbytes)
    facts = tuple(value.shape), value.stride(), value.requires_grad
    return ((str(value.dtype), str(value.device), *facts, str(of_data)),)


def _by_name(value: Any) -> bytes | None:
    """Return the name by which pickle stores a function or class; None for any other value."""
    if isinstance(value, types.FunctionType | type):
        if "<" in value.__qualname__ or value.__module__ is None:
            raise NotTellable("has a function or class that only its own process knows")
        return f"{value.__module__}.{value.__qualname__}".removeprefix("__main__.").encode()
    return None


def _not_tellable(value: Any) -> bytes:
    raise NotTellable(f"holds a {type(value).__qualname__}")
