"""Values to bytes and back: pickle protocol 5, large buffers beside the pickle.

Plain pickle comes first: it keeps classes by name, so that what a later step loads is an instance
of the class that it knows. What plain pickle cannot store (lambdas, local functions and classes)
goes through cloudpickle, which keeps the code itself. Values that neither can store end in
ArtifactNotPicklable, with the path to the part at fault.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from aflow.errors import ArtifactNotLoadable, ArtifactNotPicklable
from aflow.storage.base import Buffer
from aflow.storage.culprits import describe_culprit, safe_text
from aflow.storage.names import Names, is_found_in_main

PROTOCOL = 5
OUT_OF_BAND_FROM = 64 << 10  # smaller buffers are not worth an object of their own
MAX_BUFFERS = 1024  # a list of a million arrays becomes one blob, not a million

_SHORT = 1024
_SCALARS = frozenset({int, float, bool, complex, type(None)})


class Pickled(NamedTuple):
    """A value as bytes. `parts` are the pickle, in pieces; `size` is that of the pickle alone."""

    parts: Sequence[Buffer]
    size: int
    buffers: Sequence[memoryview] = ()


class _Sink(list[Any]):
    """A file to pickle to that keeps what it is given: a large bytes object is not copied."""

    write = list.append


def dump(what: str, root: str, value: object, out_of_band_from: int = OUT_OF_BAND_FROM) -> Pickled:
    """The value as bytes, with buffers of `out_of_band_from` bytes and more beside them.

    The parts and buffers may be the value's own memory: use them before it changes. Raises
    ArtifactNotPicklable: `what` is how its sentence calls the value ("Artifact 'x'"), `root`
    how its path to the part at fault begins ("x").
    """
    if type(value) in _SCALARS or (type(value) is str and len(value) < _SHORT):
        data = pickle.dumps(value, PROTOCOL)
        return Pickled((data,), len(data))
    try:
        return _dump(pickle.Pickler, value, out_of_band_from)
    except (MemoryError, RecursionError) as error:
        raise _too_large_or_deep(what, error) from error
    except Exception:  # noqa: BLE001 -- the value's own code; the next line raises it again
        return _dump_by_value(what, root, value, out_of_band_from)


def load(
    what: str, data: Buffer, buffers: Sequence[Buffer] = (), names: Names | None = None
) -> Any:
    """The value of a pickle and its buffers; `names` finds what it names, where this program may
    not be the one that has stored it. Raises ArtifactNotLoadable, which names `what`."""
    try:
        if names is None:
            return pickle.loads(data, buffers=buffers)
        return _load_with(names, data, buffers)
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
        except (ImportError, AttributeError):  # the code of the run may have it
            pass
    return _Unpickler(names, data, buffers).load()


class _Unpickler(pickle.Unpickler):
    """Finds classes and functions with the help of `names`."""

    def __init__(self, names: Names, data: Buffer, buffers: Sequence[Buffer]) -> None:
        super().__init__(io.BytesIO(data), buffers=buffers)
        self._names = names

    def find_class(self, module: str, name: str, /) -> Any:
        return self._names.find(module, name, super().find_class)


def _dump(pickler: Callable[..., pickle.Pickler], value: object, out_of_band_from: int) -> Pickled:
    sink = _Sink()
    buffers: list[memoryview] = []

    def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
        try:
            raw = buffer.raw()
        except BufferError:  # in strides: pickle itself says what is wrong with it
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
        culprit = tracking.last
        raise ArtifactNotPicklable(
            f"{what} cannot be stored: {describe_culprit(root, value, culprit, error)}"
        ) from error


def _tracking_pickler() -> Any:
    """A class of cloudpickle's pickler that remembers, as `last`, which object it came to."""
    import cloudpickle  # 40 ms, for those alone who need it

    class Tracking(cloudpickle.Pickler):  # type: ignore[misc]
        last: object = None

        def reducer_override(self, obj: Any) -> Any:
            Tracking.last = obj
            if issubclass(type(obj), io.IOBase):
                # cloudpickle would read the file and store a copy of the text instead.
                raise pickle.PicklingError(f"cannot pickle {type(obj).__name__!r} object")
            if is_found_in_main(obj):
                return NotImplemented  # by name: cloudpickle would store a copy of the class
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
