from __future__ import annotations

import functools
import io
import pickle
import subprocess
import sys
import textwrap
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from aflow.errors import ArtifactNotLoadable, ArtifactNotPicklable
from aflow.storage import codecs
from aflow.storage.codecs import dump


def bytes_of(value: object) -> bytes:
    return b"".join(dump("Artifact 'x'", "x", value).parts)


def round_trip(value: object) -> Any:
    return codecs.load("Artifact 'x'", bytes_of(value))


# ------------------------------------------------------------------ what plain pickle cannot


def test_lambdas_and_local_functions_come_back() -> None:
    factor = 3

    def local(number: int) -> int:
        return number * factor

    double, triple = round_trip([lambda number: number * 2, local])
    assert (8, 12) == (double(4), triple(4))


def test_instances_of_local_classes_come_back() -> None:
    class Local:
        value = 5

    assert 5 == round_trip(Local()).value


def test_classes_of_modules_are_kept_by_name() -> None:
    assert type(round_trip(Model())) is Model


# ------------------------------------------------------------------ the part at fault


class Layer:
    def __init__(self, lock: object = None) -> None:
        self.weights = [1, 2, 3]
        self.lock = lock


class Model:
    def __init__(self, *layers: Layer) -> None:
        self.layers = list(layers)


@dataclass
class Settings:
    names: dict[str, Any] = field(default_factory=dict)


class Slotted:
    __slots__ = ("missing", "part")

    def __init__(self, part: object) -> None:
        self.part = part


class Raises:
    def __reduce__(self) -> Any:
        raise ValueError("there is no way\n  to store this.")


class RaisesTwice:
    def __reduce__(self) -> Any:
        raise BadText


class Hostile:
    """An object that can be pickled, but raises on any inspection."""

    @property  # type: ignore[misc]  # as a proxy does it
    def __class__(self) -> Any:
        raise RuntimeError

    def __repr__(self) -> str:
        raise RuntimeError

    def __reduce_ex__(self, protocol: Any) -> Any:
        return (int, ())


class BadText(Exception):
    def __str__(self) -> str:
        raise RuntimeError


class Deep:
    def __init__(self, inner: object) -> None:
        self.inner = inner


def generator() -> Any:
    yield 1


LOCK = threading.Lock()
CAPTURES = functools.partial(print, LOCK)


def a_cycle() -> list[object]:
    cycle: list[object] = [{"more": []}]
    cycle[0]["more"].append(cycle)  # type: ignore[index]
    cycle.append(LOCK)
    return cycle


@pytest.mark.parametrize(
    ("value", "path", "kind"),
    [
        (LOCK, "x", "_thread.lock"),
        (Model(Layer(), Layer(), Layer(), Layer(LOCK)), r"x.layers\[3\].lock", "_thread.lock"),
        ([1, (2, {"deep": [generator()]})], r"x\[1\]\[1\]\['deep'\]\[0\]", "generator"),
        (Settings({"a": 1, "file": sys.stderr}), r"x.names\['file'\]", ""),
        (Slotted(Slotted(LOCK)), "x.part.part", "_thread.lock"),
        ({1, LOCK}, r"x\{...\}", "_thread.lock"),
        ({"a": Raises()}, r"x\['a'\]", ".*Raises"),
        ({LOCK: 1}, r"x.keys\(\)\[lock\]", "_thread.lock"),
        ([LOCK, Hostile()], r"x\[0\]", "_thread.lock"),
        (a_cycle(), r"x\[1\]", "_thread.lock"),
        (lambda: LOCK, "a part of x", "_thread.lock"),
    ],
)
def test_the_path_to_the_part_at_fault_is_named(value: object, path: str, kind: str) -> None:
    with pytest.raises(
        ArtifactNotPicklable, match=rf"^Artifact 'x' cannot be stored: {path} is of type {kind}"
    ):
        dump("Artifact 'x'", "x", value)


def test_what_a_function_has_captured_is_named() -> None:
    lock = threading.Lock()

    with pytest.raises(ArtifactNotPicklable, match=r"x\.<lock> is of type _thread.lock"):
        dump("Artifact 'x'", "x", lambda: lock)


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        (generator(), r"run only once: store what it gives, for example list\(\.\.\.\)"),
        (threading.Event(), "Make it where it is used"),
        (Raises(), "there is no way to store this"),
        (RaisesTwice(), "its text cannot be shown: RuntimeError"),
    ],
)
def test_the_sentence_says_what_to_do(value: object, advice: str) -> None:
    with pytest.raises(ArtifactNotPicklable, match=advice):
        dump("Artifact 'x'", "x", value)


@pytest.mark.parametrize("mode", ["r", "w", "rb"])
def test_an_open_file_is_refused_not_read(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "file"
    path.write_text("what it holds")
    with (
        path.open(mode) as file,
        pytest.raises(ArtifactNotPicklable, match=r"x\[0\] is .*Store the path of the file"),
    ):
        dump("Artifact 'x'", "x", [file])


def test_a_file_in_memory_is_stored_beside_a_lambda() -> None:
    function, file = round_trip([lambda: 5, io.BytesIO(b"content")])

    assert (5, b"content") == (function(), file.read())


def test_a_module_comes_back_as_itself() -> None:
    assert isinstance(round_trip(textwrap), ModuleType)
    assert round_trip(textwrap) is textwrap


def test_what_is_nested_too_deeply_says_so() -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]

    with pytest.raises(ArtifactNotPicklable, match="nested too deeply"):
        dump("Artifact 'x'", "x", nested)


def test_what_does_not_fit_into_memory_says_so() -> None:
    class Huge:
        def __reduce__(self) -> Any:
            raise MemoryError

    with pytest.raises(ArtifactNotPicklable, match="not enough memory"):
        dump("Artifact 'x'", "x", Huge())


def test_a_wish_to_leave_is_not_caught() -> None:
    class Leaves:
        def __reduce__(self) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dump("Artifact 'x'", "x", Leaves())


# ------------------------------------------------------------------ loading


def test_a_missing_module_is_named() -> None:
    data = b"\x80\x05\x8c\x0bno_such_mod\x8c\x04Name\x93."

    with pytest.raises(ArtifactNotLoadable, match="'x' needs the module 'no_such_mod'"):
        codecs.load("Artifact 'x'", data)


def test_a_missing_class_is_named() -> None:
    data = b"\x80\x05\x8c\x08textwrap\x8c\x04Name\x93."

    with pytest.raises(
        ArtifactNotLoadable, match=r"Name.*moved, renamed, or is of another version"
    ):
        codecs.load("Artifact 'x'", data)


def test_a_class_of_the_flow_file_says_what_to_do(tmp_path: Path) -> None:
    script = tmp_path / "flow.py"
    script.write_text(
        "import pickle, sys\nclass Mine: pass\nsys.stdout.buffer.write(pickle.dumps(Mine()))"
    )
    data = subprocess.run([sys.executable, script], capture_output=True, check=True).stdout

    with pytest.raises(ArtifactNotLoadable, match="to a module of its own"):
        codecs.load("Artifact 'x'", data)


class RaisesOnLoad:
    def __reduce__(self) -> Any:
        return (int, ("not a number",))


def test_a_value_that_raises_on_load_says_why() -> None:
    with pytest.raises(ArtifactNotLoadable, match="'x' cannot be loaded: ValueError: invalid lit"):
        codecs.load("Artifact 'x'", pickle.dumps(RaisesOnLoad()))


@pytest.mark.parametrize("data", [b"", b"\x80", b"not a pickle", bytes(100)])
def test_bytes_that_are_no_pickle_are_not_loadable(data: bytes) -> None:
    with pytest.raises(ArtifactNotLoadable, match="Artifact 'x' cannot be loaded"):
        codecs.load("Artifact 'x'", data)
