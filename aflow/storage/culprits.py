"""Which part of a value cannot be pickled, said so that a person finds it.

The pickler says which object it stumbled over; the way there is found by walking the value's
containers and attributes, breadth first, so that the shortest path is named.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from itertools import islice
from types import CoroutineType, FunctionType
from typing import Any

from aflow.storage.previews import short_repr

_MAX_VISITED = 100_000
_MAX_TEXT = 200


def describe_culprit(root: str, value: object, culprit: object, error: BaseException) -> str:
    """Some words on what is at fault, where it is in `value`, and what to do about it."""
    kind = f"{type(culprit).__module__}.{type(culprit).__qualname__}".removeprefix("builtins.")
    path = find_path(root, value, culprit)
    where = path or f"a part of {root}"
    return f"{where} is of type {kind} ({safe_text(error)}). {_advice(culprit)}"


def find_path(root: str, value: object, target: object) -> str | None:
    """How Python code would write the way from `value` to `target`; None if it is not found
    among the first 100,000 parts, or made by the value's own pickling code."""
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
    """The text of an exception in one line of at most 200 characters; never raises."""
    try:
        text = " ".join(str(error).split()).rstrip(".")
    except Exception as another:  # noqa: BLE001 -- the user's exception, and its __str__
        text = f"its text cannot be shown: {type(another).__name__}"
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 3] + "..."


def _children(value: Any) -> Iterator[tuple[str, object]]:
    kind = type(value)  # isinstance would ask the value itself, which may raise
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


def _advice(culprit: object) -> str:
    kind = type(culprit)
    if issubclass(kind, Generator | CoroutineType):
        return "It can be run only once: store what it gives, for example list(...), instead."
    if issubclass(kind, io.IOBase):
        return "Store the path of the file, or what it holds, instead."
    if kind.__module__ in ("_thread", "threading"):
        return "Make it where it is used, in a local variable, or leave it out in __getstate__."
    return "Keep it in a local variable, or give its class a __reduce__ that leaves it out."
