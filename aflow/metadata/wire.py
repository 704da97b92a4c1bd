"""The calls of the metadata port as bytes: what `metadata.service` sends and the service answers.

A request is the positional and the named arguments of one call. An answer is a row of frames: a
value, or items in several frames with an end, or an error at any place; an answer that has been cut
off has no last frame. Records travel as lists of their fields, each of which is checked for its
kind when it is read: what comes in is made of nothing but the classes below.
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
# Lists, maps and records of a call: a commit of 100,000 tasks has fewer, and a question has few.
MOST_CONTAINERS, MOST_OF_QUESTION = 1_000_000, 10_000
# Every method of these ports is a call, which needs no second mention here. Some answer with items
# that are sent as they come.
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
_LENGTHS = {"value": 2, "items": 2, "end": 1, "error": 3}  # of frames, by how they begin
_packers: list[Any] = []  # that nobody uses at this moment


def pack(value: object) -> bytes:
    """Return a value as msgpack.

    Args:
        value: A value made of plain values and records.
    """
    # A packer has a buffer, which takes longer to make than most values to pack; and records are in
    # records, each with a packer of its own.
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
    """Return the value in bytes of msgpack.

    Args:
        body: The bytes, which others may have written.
        most: How many lists, maps and records are allowed in it.

    Raises:
        InvalidMessage: If the bytes are malformed, or there are more.
    """
    try:
        return unpacking.unpack(body, most, _made, **_HOW)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InvalidMessage(f"A call of the metadata service cannot be read: {error}.") from error


def value_frame(value: object) -> bytes:
    """Return the frame of an answer that is one value.

    Args:
        value: What the call has returned, made of plain values and records.
    """
    return pack(["value", value])


def items_frame(items: list[Any]) -> bytes:
    """Return a frame with some of the items of an answer.

    Args:
        items: Some of the items, made of plain values and records.
    """
    return pack(["items", items])


def end_frame() -> bytes:
    """Return the frame that ends a list of items."""
    return pack(["end"])


def error_frame(error: AflowError) -> bytes:
    """Return the frame of a call that has failed.

    Args:
        error: The error that the caller raises.
    """
    return pack(["error", type(error).__name__, str(error)])


def frames(chunks: Iterable[bytes]) -> Iterator[list[Any]]:
    """Yield the frames of an answer.

    Args:
        chunks: The bytes, as they arrive.

    Raises:
        InvalidMessage: If the answer has no frame, is malformed, or was cut off.
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
        frame: A frame, as `frames` yields it.
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
    if isinstance(value, str | int | float):  # of a class derived from these: an id
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
    """The fields of a record, and of which classes their values are."""
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
