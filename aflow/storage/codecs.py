"""Serialize and deserialize values: pickle protocol 5 with large buffers out of band.

Plain pickle is tried first: it stores classes by name, so that a later step loads an instance of
the class that it has imported. Values that plain pickle cannot store (lambdas, local functions and
classes) are stored by cloudpickle, which includes their code. If both fail, ArtifactNotPicklable is
raised with the path to the part that cannot be pickled.
"""

from __future__ import annotations

import io
import pickle
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from itertools import islice
from types import CoroutineType, FunctionType
from typing import Any

from aflow._core.records import NamedTuple
from aflow.errors import ArtifactNotLoadable, ArtifactNotPicklable, CorruptBlob
from aflow.storage.base import Buffer
from aflow.storage.names import Names, is_found_in_main
from aflow.storage.previews import short_repr

# Locating the part of a value that cannot be pickled.
#
# The pickler remembers the object at which it failed. The path to it is found by a breadth-first
# search through the value's containers and attributes, which yields the shortest path.


_MAX_VISITED = 100_000
_MAX_TEXT = 200


def describe_unpicklable(root: str, value: object, part: object, error: BaseException) -> str:
    """Return a message with the path and type of the unpicklable part, the error, and a remedy.

    Args:
        root: The beginning of the path to the part: the name of the artifact.
        value: The value that could not be pickled.
        part: The part of it that cannot be pickled.
        error: The exception that pickling the value raised.
    """
    kind = f"{type(part).__module__}.{type(part).__qualname__}".removeprefix("builtins.")
    path = find_path(root, value, part)
    where = path or f"a part of {root}"
    return f"{where} is of type {kind} ({safe_text(error)}). {_advice(part)}"


def find_path(root: str, value: object, target: object) -> str | None:
    """Return the path from `value` to `target` as a Python expression; None if `target` is not
    among the first 100,000 parts, or was created by the value's own pickling code.

    Args:
        root: The beginning of the path: the name of the artifact.
        value: The value whose parts are searched, breadth first.
        target: The part to find, by identity.
    """
    seen = {id(value)}
    queue: deque[tuple[str, object]] = deque([(root, value)])
    while queue and len(seen) < _MAX_VISITED:
        path, each = queue.popleft()
        if each is target:
            return path
        for step, child in islice(_children(each), _MAX_VISITED):
            if id(child) not in seen:
                seen.add(id(child))
                queue.append((path + step, child))
    return None


def safe_text(error: BaseException) -> str:
    """Return the message of an exception as one line of at most 200 characters; never raises.

    Args:
        error: Any exception, even one whose `__str__` raises.
    """
    try:
        text = " ".join(str(error).split()).rstrip(".")
    except Exception as another:  # noqa: BLE001 -- the user's exception, and its __str__
        text = f"its text cannot be shown: {type(another).__name__}"
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 3] + "..."


def _children(value: Any) -> Iterator[tuple[str, object]]:
    kind = type(value)  # isinstance would read the value's __class__, which may raise
    if issubclass(kind, str | bytes | bytearray | int | float | type):
        return
    if issubclass(kind, dict):
        for key, item in value.items():
            yield f"[{_short(key)}]", item
            yield f".keys()[{_short(key)}]", key
    elif issubclass(kind, list | tuple | deque):
        yield from ((f"[{index}]", item) for index, item in enumerate(value))
    elif issubclass(kind, set | frozenset):
        yield from (("{...}", item) for item in value)
    elif issubclass(kind, FunctionType):
        yield from _captured(value)
    yield from ((f".{name}", item) for name, item in _attributes(value).items())


def _attributes(value: object) -> Mapping[str, object]:
    found: dict[str, object] = {}
    for cls in type(value).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            found[name] = _attribute(value, name)
    own: Any = _attribute(value, "__dict__")
    if type(own) is dict:
        found.update((name, item) for name, item in own.items() if type(name) is str)
    return found


def _attribute(value: object, name: str) -> object:
    try:
        return object.__getattribute__(value, name)
    except Exception:  # noqa: BLE001 -- a slot not set, or a property that raises
        return None


def _captured(function: FunctionType) -> Iterator[tuple[str, object]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if cell is not None:
            yield f".<{name}>", _attribute(cell, "cell_contents")


def _short(key: object) -> str:
    return short_repr(key, 40) if type(key) in (str, int, bool) else type(key).__name__


def _advice(unpicklable: object) -> str:
    kind = type(unpicklable)
    if issubclass(kind, Generator | CoroutineType):
        return "It can be run only once: store what it gives, for example list(...), instead."
    if issubclass(kind, io.IOBase):
        return "Store the path of the file, or what it holds, instead."
    if kind.__module__ in ("_thread", "threading"):
        return "Make it where it is used, in a local variable, or leave it out in __getstate__."
    return "Keep it in a local variable, or give its class a __reduce__ that leaves it out."


PROTOCOL = 5
OUT_OF_BAND_FROM = 64 << 10  # smaller buffers are not worth a separate object
MAX_BUFFERS = 1024  # a list of a million arrays does not become a million blobs

_SHORT = 1024
_OF_NUMPY_2 = "numpy._core"  # numpy 2's name of numpy.core, which pickles of arrays refer to
_IN_MEMORY = (io.BytesIO, io.StringIO)
_SCALARS = frozenset({int, float, bool, complex, type(None)})


class Pickled(NamedTuple):
    """A value as bytes. `parts` are the pickle; `size` is the pickle's size without the buffers."""

    parts: Sequence[Buffer]
    size: int
    buffers: Sequence[memoryview] = ()


class _Sink(list[Any]):
    """A file for the pickler that keeps the written objects: large bytes are not copied."""

    write = list.append


def dump(what: str, root: str, value: object, out_of_band_from: int = OUT_OF_BAND_FROM) -> Pickled:
    """Return the pickle of a value and its out-of-band buffers.

    The parts and buffers may be the value's own memory: use them before the value changes. If the
    value cannot be pickled, ArtifactNotPicklable is raised with the path to the part of it that
    cannot.

    Args:
        what: The name of the value in errors, such as `Artifact 'x'`.
        root: The beginning of the path in errors: the name of the artifact.
        value: The value, of any type.
        out_of_band_from: The size in bytes from which buffers are out of band.
    """
    if type(value) in _SCALARS or (type(value) is str and len(value) < _SHORT):
        data = pickle.dumps(value, PROTOCOL)
        return Pickled((data,), len(data))
    try:
        return _dump(pickle.Pickler, value, out_of_band_from)
    except (MemoryError, RecursionError) as error:
        raise _too_large_or_deep(what, error) from error
    except Exception:  # noqa: BLE001 -- the value's own code; the next line raises if it fails too
        return _dump_by_value(what, root, value, out_of_band_from)


def load(
    what: str, data: Buffer, buffers: Sequence[Buffer] = (), names: Names | None = None
) -> Any:
    """Return the value of a pickle and its buffers.

    Args:
        what: The name of the value in errors, such as `Artifact 'x'`.
        data: The pickle, of any protocol.
        buffers: The out-of-band buffers of the pickle, in order.
        names: Finds classes that the pickle refers to, if another program stored it; None for
            Python's import system alone.

    Raises:
        ArtifactNotLoadable: If the value cannot be unpickled, for example because a module is
            missing.
    """
    try:
        try:
            if names is None:
                return pickle.loads(data, buffers=buffers)
            return _load_with(names, data, buffers)
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith(_OF_NUMPY_2):
                raise
            return _Unpickler(names, data, buffers).load()  # this environment has numpy 1
    except ModuleNotFoundError as error:
        raise ArtifactNotLoadable(
            f"{what} needs the module {error.name!r}, which is not installed here: install it, "
            "or read it where it is."
        ) from error
    except Exception as error:
        raise ArtifactNotLoadable(_why_not_loadable(what, error)) from error


def _load_with(names: Names, data: Buffer, buffers: Sequence[Buffer]) -> Any:
    if not names.concern(data):
        try:
            return pickle.loads(data, buffers=buffers)
        except (ImportError, AttributeError):  # the run's code package may have the class
            pass
    return _Unpickler(names, data, buffers).load()


class _Unpickler(pickle.Unpickler):
    """Finds classes and functions through `names`, and numpy's in both numpy 1 and 2."""

    def __init__(self, names: Names | None, data: Buffer, buffers: Sequence[Buffer]) -> None:
        super().__init__(io.BytesIO(data), buffers=buffers)
        self._names = names

    def find_class(self, module: str, name: str, /) -> Any:
        if self._names is None:
            return self._found(module, name)
        return self._names.find(module, name, self._found)

    def _found(self, module: str, name: str) -> Any:
        try:
            return super().find_class(module, name)
        except ModuleNotFoundError:
            if not module.startswith(_OF_NUMPY_2):
                raise
            return super().find_class(module.replace(_OF_NUMPY_2, "numpy.core", 1), name)


def _dump(pickler: Callable[..., pickle.Pickler], value: object, out_of_band_from: int) -> Pickled:
    sink = _Sink()
    buffers: list[memoryview] = []

    def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
        try:
            raw = buffer.raw()
        except BufferError:  # not contiguous: pickle raises the error for it
            return True
        if raw.nbytes < out_of_band_from or len(buffers) >= MAX_BUFFERS:
            return True
        buffers.append(raw)
        return False

    pickler(sink, PROTOCOL, buffer_callback=keep_in_band).dump(value)
    parts = [part.raw() if type(part) is pickle.PickleBuffer else part for part in sink]
    return Pickled(parts, sum(map(len, parts)), buffers)


def _dump_by_value(what: str, root: str, value: object, out_of_band_from: int) -> Pickled:
    tracking = _tracking_pickler()
    try:
        return _dump(tracking, value, out_of_band_from)
    except (MemoryError, RecursionError) as error:
        raise _too_large_or_deep(what, error) from error
    except Exception as error:
        unpicklable = tracking.last
        raise ArtifactNotPicklable(
            f"{what} cannot be stored: {describe_unpicklable(root, value, unpicklable, error)}"
        ) from error


def _tracking_pickler() -> Any:
    """Return a new class of cloudpickle pickler whose attribute `last` is the latest object that it
    has visited."""
    import cloudpickle  # lazy: takes 40 ms, and few values need it

    class Tracking(cloudpickle.Pickler):  # type: ignore[misc]
        last: object = None

        def reducer_override(self, obj: Any) -> Any:
            Tracking.last = obj
            if issubclass(type(obj), io.IOBase) and type(obj) not in _IN_MEMORY:
                # cloudpickle would read the file and store its content.
                raise pickle.PicklingError(f"cannot pickle {type(obj).__name__!r} object")
            if is_found_in_main(obj):
                return NotImplemented  # pickle by name; cloudpickle would store the class itself
            return super().reducer_override(obj)

    return Tracking


def _too_large_or_deep(what: str, error: BaseException) -> ArtifactNotPicklable:
    if isinstance(error, MemoryError):
        return ArtifactNotPicklable(f"{what} cannot be stored: there is not enough memory left.")
    return ArtifactNotPicklable(
        f"{what} cannot be stored: it is nested too deeply for pickle. Store it in a flatter form."
    )


def _why_not_loadable(what: str, error: Exception) -> str:
    text = safe_text(error)
    sentence = f"{what} cannot be loaded: {type(error).__name__}: {text}."
    if isinstance(error, AttributeError) and "__main__" in text:
        return sentence + (
            " It needs a name from the file of its flow, which is not the program that runs here, "
            "and the code of the run was not kept: move that class or function to a module of its "
            "own."
        )
    if isinstance(error, AttributeError | ImportError):
        return sentence + " The code that it needs was moved, renamed, or is of another version."
    return sentence


# Compression: zstd if a sample shrinks enough, and gzip for values that Metaflow stored.
#
# Level 1, because the task that writes a blob has to wait for the compression. zstandard is
# imported only when a blob is large enough to be compressed.


MIN_SIZE = 16 << 10  # compressing smaller files would save hardly any disk space
_SAMPLE = 32 << 10
_LEVEL = 1
_MIN_WIN = 0.8  # measured floats compress to 0.9 or more of their size, text to 0.5 or less
_THREADS_FROM = 8 << 20


def pays(parts: Sequence[memoryview], size: int) -> bool:
    """Return whether compression saves a fifth or more, estimated from a sample of 64 KiB.

    Args:
        parts: The bytes, in consecutive parts.
        size: The total size of the parts in bytes.
    """
    if size < MIN_SIZE:
        return False
    import zstandard

    sample = _slice(parts, 0, _SAMPLE) + _slice(parts, max(_SAMPLE, size // 2), _SAMPLE)
    return len(zstandard.compress(sample, _LEVEL)) < _MIN_WIN * len(sample)


def compress(parts: Sequence[memoryview], size: int) -> list[bytes]:
    """Return the bytes as one zstd frame, in consecutive parts.

    Args:
        parts: The bytes, in consecutive parts.
        size: The total size of the parts in bytes.
    """
    import zstandard

    threads = -1 if size >= _THREADS_FROM else 0
    stream = zstandard.ZstdCompressor(level=_LEVEL, threads=threads).compressobj(size=size)
    pieces = [stream.compress(part) for part in parts]
    return [*pieces, stream.flush()]


def decompress(data: Buffer, size: int) -> bytearray:
    """Return the decompressed bytes. At most `size` bytes of memory are used for them.

    Args:
        data: The compressed bytes, which are untrusted.
        size: The expected size of the decompressed bytes.

    Raises:
        ValueError: If the data is not a zstd frame, or does not decompress to `size` bytes.
    """
    import zstandard

    result = bytearray(size)
    done = 0
    try:
        with memoryview(result) as view, zstandard.ZstdDecompressor().stream_reader(data) as stream:
            while done < size and (count := stream.readinto(view[done:])):
                done += count
            more = stream.read(1)
    except zstandard.ZstdError as error:
        raise ValueError(f"not a zstd frame: {error}") from error
    if done < size or more:
        raise ValueError(f"not {size} bytes long")
    return result


def _slice(parts: Sequence[memoryview], start: int, length: int) -> bytes:
    taken = bytearray()
    for part in parts:
        if start < part.nbytes and len(taken) < length:
            taken += part[start : start + length - len(taken)]
        start = max(0, start - part.nbytes)
    return bytes(taken)


def gunzipped(data: Buffer, where: str, largest: int | None = None) -> bytes:
    """Return the content of a gzip file. Data that is not gzip is returned unchanged.

    Args:
        data: A gzip file, or any other bytes.
        where: The location of the data, for errors.
        largest: The maximum size of the content in bytes; None for no limit.

    Raises:
        CorruptBlob: If the gzip file is damaged, or its content exceeds `largest` bytes.
    """
    if bytes(data[:2]) != b"\x1f\x8b":
        return bytes(data)
    unpacking = zlib.decompressobj(wbits=31)
    try:
        found = unpacking.decompress(data, largest or 0)
    except zlib.error as error:
        raise CorruptBlob(f"{where} is damaged: {error}.") from error
    if not unpacking.eof:
        raise CorruptBlob(f"{where} is damaged: it is cut off, or holds more than it says.")
    return found
