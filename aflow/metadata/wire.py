"""The wire format of the metadata service, used by `metadata.http` and the server.

A request consists of the positional and the named arguments of one call. A response is a sequence
of frames: one value, or several frames of items and an end, with an error possible at any point. A
response without a final frame was truncated. Records are sent as lists of their fields. The type
of each field is checked on receipt, and only the classes listed below are instantiated.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator
from enum import Enum
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgpack

from aflow._core import unpacking
from aflow._core.records import fields, is_dataclass
from aflow.errors import (
    AflowError,
    InvalidMessage,
    InvalidName,
    MetadataTooNew,
    MetadataUnavailable,
    NotFound,
    VersionConflict,
)
from aflow.metadata import base
from aflow.scheduler.states import AttemptState, RunState, TaskState

LARGEST = 256 << 20  # bytes of a frame
# Limits of lists, maps and records in a call. A commit of 100,000 tasks has fewer; a read has few.
MOST_CONTAINERS, MOST_OF_QUESTION = 1_000_000, 10_000
# Every method of these ports is a call. Those that return iterators respond with items, which are
# sent as they are produced.
_METHODS = {
    name: method
    for port in (
        base.Journal,
        base.Leases,
        base.Records,
        base.HandedAttempts,
        base.WorkerRegistry,
    )
    for name, method in vars(port).items()
    if isinstance(method, types.FunctionType) and not name.startswith("_")
}
STREAMS = frozenset(
    name
    for name, method in _METHODS.items()
    if str(method.__annotations__["return"]).startswith(("Iterator", "Generator"))
)
CALLS = frozenset(_METHODS.keys() - STREAMS)
WRITES = frozenset(name for name, method in _METHODS.items() if hasattr(method, "writes"))

_RECORDS: dict[str, Any] = {
    each.__name__: each
    for each in (
        base.RunRecord, base.RunLease, base.TaskRecord, base.CachedTask, base.AttemptRecord,
        base.MetadataRecord, base.ReplacedLog, base.RunUpdate, base.Batch, base.TaskView,
        base.StepProgress, base.TaskColumns, base.LeaseState,
        base.WorkerRecord, base.RunningTask, base.HandedAttempt, base.Document,
    )
}  # fmt: skip
_STATES: dict[str, Any] = {each.__name__: each for each in (AttemptState, RunState, TaskState)}
_ERRORS = {
    each.__name__: each
    for each in (InvalidName, NotFound, VersionConflict, MetadataTooNew, MetadataUnavailable)
}
_RECORD, _TUPLE, _STATE = 1, 2, 3
_HOW: dict[str, Any] = {
    "strict_map_key": False,
    "unicode_errors": "surrogatepass",
    "max_bin_len": LARGEST,
    "max_ext_len": LARGEST,
    "max_str_len": LARGEST,
}
_LENGTHS = {"value": 2, "items": 2, "end": 1, "error": 3}  # of frames, by first element
_packers: list[Any] = []  # idle packers


def pack(value: object) -> bytes:
    """Return a value as msgpack.

    Args:
        value: Plain values, and records and states of the classes listed above.
    """
    # Packers are reused, since allocating the buffer of one takes longer than packing most values.
    # Each nested record needs its own packer.
    try:
        packer = _packers.pop()
    except IndexError:
        packer = msgpack.Packer(
            default=_extension, strict_types=True, unicode_errors="surrogatepass"
        )
    packed: bytes = packer.pack(value)
    _packers.append(packer)
    return packed


def unpack(body: bytes, most: int = MOST_CONTAINERS) -> Any:
    """Return the value encoded in msgpack.

    Args:
        body: The bytes; they need not be trusted.
        most: Maximum number of lists, maps and records in them.

    Raises:
        InvalidMessage: If the bytes are malformed, or exceed the limit.
    """
    try:
        return unpacking.unpack(body, most, _made, **_HOW)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InvalidMessage(f"A call of the metadata service cannot be read: {error}.") from error


def value_frame(value: object) -> bytes:
    """Return the frame of a response that is a single value.

    Args:
        value: The result of the call; see `pack`.
    """
    return pack(["value", value])


def items_frame(items: list[Any]) -> bytes:
    """Return a frame with some items of a response.

    Args:
        items: The items; see `pack`.
    """
    return pack(["items", items])


def end_frame() -> bytes:
    """Return the frame that terminates a list of items."""
    return pack(["end"])


def error_frame(error: AflowError) -> bytes:
    """Return the frame of a failed call.

    Args:
        error: The error; the client raises one of the same class, or MetadataUnavailable.
    """
    return pack(["error", type(error).__name__, str(error)])


def frames(chunks: Iterable[bytes]) -> Iterator[list[Any]]:
    """Yield the frames of a response.

    Args:
        chunks: The body in chunks of any size.

    Raises:
        InvalidMessage: If the response has no frame, is malformed or truncated.
    """
    unpacker = msgpack.Unpacker(max_buffer_size=LARGEST, **_unpacking())
    for chunk in chunks:
        unpacker.feed(chunk)
        try:
            for frame in unpacker:
                if not isinstance(frame, list) or _LENGTHS.get(frame[0]) != len(frame):
                    raise ValueError("it is not a frame")
                yield frame
                if frame[0] != "items":
                    return
        except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
            raise InvalidMessage(
                f"An answer of the metadata service cannot be read: {error}."
            ) from error
    raise InvalidMessage("An answer of the metadata service has been cut off.")


def raise_received(frame: list[Any]) -> None:
    """Raise the error that a frame carries, if it is an error frame.

    Args:
        frame: A frame that `frames` has yielded.
    """
    if frame[0] == "error":
        raise _ERRORS.get(frame[1], MetadataUnavailable)(frame[2])


@cache
def _unpacking() -> dict[str, Any]:
    return unpacking.with_extensions(_made, **_HOW)


def _extension(value: object) -> Any:
    name = type(value).__name__
    if isinstance(value, Enum):
        return _state(name, value.value) if name in _STATES else value.value
    if isinstance(value, tuple):
        if name in _RECORDS:
            return msgpack.ExtType(_RECORD, pack([name, *value]))
        return msgpack.ExtType(_TUPLE, pack(list(value)))
    if is_dataclass(value) and name in _RECORDS:
        values = [getattr(value, field.name) for field in fields(value)]
        return msgpack.ExtType(_RECORD, pack([name, *values]))
    if isinstance(value, str | int | float):  # of a subclass of these, such as an id
        return _plain(value)
    raise TypeError(f"a {name} cannot be sent")


@cache
def _state(name: str, value: str) -> Any:
    return msgpack.ExtType(_STATE, pack([name, value]))


def _plain(value: str | int | float) -> Any:
    return next(kind(value) for kind in (str, int, float) if isinstance(value, kind))


def _made(code: int, inner: Any) -> Any:
    if code == _TUPLE:
        return tuple(inner)
    name, *values = inner
    if code == _STATE:
        return _STATES[name](*values)
    record = _RECORDS[name]
    names, kinds = _kinds(record)
    if len(values) != len(names):
        raise TypeError(f"a {name} has {len(names)} fields, not {len(values)}")
    if not all(map(isinstance, values, kinds)):
        wrong = next(
            n for n, v, k in zip(names, values, kinds, strict=True) if not isinstance(v, k)
        )
        raise TypeError(f"{name}.{wrong} is of another kind")
    return record(*values)


@cache
def _kinds(record: type) -> tuple[tuple[str, ...], tuple[Any, ...]]:
    """Return the names of the fields of a record, and the classes that each value may have."""
    hints = get_type_hints(record)
    return tuple(hints), tuple(_classes(hint) for hint in hints.values())


def _classes(hint: Any) -> tuple[type, ...]:
    if hint is Any:
        return (object,)
    if hint is float:
        return (int, float)
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(each for part in get_args(hint) for each in _classes(part))
    return (get_origin(hint) or hint,)
