"""What a manifest says of a value for people: its type, and a few plain facts.

Runs for every artifact of every task, so it is quick and bounded; it calls no code of the user's
(no repr of objects, no len of unknown classes) and imports nothing: what numpy and pandas made
is known by modules that are loaded already.
"""

from __future__ import annotations

import sys
from itertools import islice
from typing import Any

_REPR_LENGTH = 80
_ITEMS = 6
_COLUMNS = 20
_MAX_BITS = 256  # repr of a larger int is slow, and refused from 4300 digits on

_SIMPLE = frozenset({float, bool, complex, type(None)})
_SEQUENCES: dict[type, tuple[str, str]] = {
    list: ("[", "]"),
    tuple: ("(", ")"),
    set: ("{", "}"),
    frozenset: ("{", "}"),
}


def preview(value: object) -> tuple[str, dict[str, Any]]:
    """The name of the value's type, and facts on it: `repr` (at most 80 characters), `len`,
    `shape`, `dtype`, `columns`: whatever applies. Never raises."""
    kind = type(value)
    if kind is int or kind in _SIMPLE or kind is str:
        return kind.__name__, {"repr": short_repr(value)}
    if kind.__module__ == "builtins":
        return kind.__qualname__, _of_builtin(value)
    name = f"{kind.__module__}.{kind.__qualname__}"
    try:
        return name, _of_library(value)
    except Exception:  # noqa: BLE001 -- a value that is half made: its type is all we say
        return name, {}


def short_text(value: Any, length: int = 30) -> str:
    """The value in at most `length` characters, for a foreach stack: a str as it is, others as
    their repr, or by their type where they are no plain values."""
    text: str = value if type(value) is str else short_repr(value)
    return text[:length]


def short_repr(value: Any, length: int = _REPR_LENGTH) -> str:
    """The repr of a value of Python's own types, cut; the name of the type of any other."""
    kind = type(value)
    if kind in _SIMPLE:
        return repr(value)
    if kind is int:
        bits = value.bit_length()
        return repr(value) if bits <= _MAX_BITS else f"<int of {bits} bits>"
    if kind is str or kind is bytes:
        text = repr(value[:length])
        return text if len(value) <= length and len(text) <= length else text[: length - 3] + "..."
    if kind in _SEQUENCES:
        return _repr_of_items(value, length)
    return f"<{kind.__name__}>"


def _repr_of_items(value: Any, length: int) -> str:
    opening, closing = _SEQUENCES[type(value)]
    try:
        shown = [_repr_inside(item) for item in islice(value, _ITEMS)]
    except RuntimeError:  # a set that another thread is changing
        return f"<{type(value).__name__}>"
    if len(value) > _ITEMS:
        shown.append("...")
    elif len(value) == 1 and type(value) is tuple:
        closing = ",)"
    text = opening + ", ".join(shown) + closing
    return text if len(text) <= length else text[: length - 3] + "..."


def _repr_inside(item: object) -> str:
    # One level is enough for a preview, and keeps it bounded.
    return f"<{type(item).__name__}>" if type(item) in _SEQUENCES else short_repr(item, 30)


def _of_builtin(value: Any) -> dict[str, Any]:
    kind = type(value)
    if kind is dict:
        return {"len": len(value)}
    if kind in (list, tuple, set, frozenset, bytes, bytearray, range):
        facts: dict[str, Any] = {"len": len(value)}
        if kind is not bytearray and kind is not range:
            facts["repr"] = short_repr(value)
        return facts
    return {}


def _of_library(value: Any) -> dict[str, Any]:
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        if type(value) is numpy.ndarray:
            return {"shape": list(value.shape), "dtype": str(value.dtype)[:_REPR_LENGTH]}
        if isinstance(value, numpy.number | numpy.bool_):
            return {"repr": str(value)[:_REPR_LENGTH], "dtype": str(value.dtype)}
    pandas = sys.modules.get("pandas")
    if pandas is not None:
        if type(value) is pandas.DataFrame:
            columns = [_label(each) for each in value.columns[:_COLUMNS]]
            return {"shape": list(value.shape), "columns": columns}
        if type(value) is pandas.Series:
            return {"len": len(value), "dtype": str(value.dtype)[:_REPR_LENGTH]}
    return {}


def _label(column: object) -> str:
    return short_text(column) if isinstance(column, str | int) else type(column).__name__
