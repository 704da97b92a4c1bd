"""The previews of values in manifests: the type, and a few facts to display.

Previews are made for every artifact of every task, so they are fast and bounded. They call no user
code (no repr of objects, no len of unknown classes) and import nothing: values of NumPy, pandas,
Polars, PyArrow, Pillow and Matplotlib are recognised if these modules are imported already.

Facts are `repr`, `len`, `shape`, `dtype` and `columns`, and for tables `dtypes` and `rows` (the
first rows, with cells as short strings); for numeric arrays `min`, `max` and `histogram` (counts of
equal bins; of a sample if the array is large); for images and figures `image` (a small PNG,
base64); for dicts and lists of plain values `json` (truncated).
"""

from __future__ import annotations

import base64
import io
import json
import math
import sys
from collections.abc import Iterable
from itertools import islice
from typing import Any

SHAPE = ("len", "shape", "dtype", "columns", "dtypes")
"""The facts that do not reveal the content of a value."""
_REPR_LENGTH = 80
_ITEMS = 6
_COLUMNS = 20
_ROWS = 6  # of a table
_CELL = 40  # characters
_BINS = 16
_NUMERIC = "iufb"  # kinds of dtypes
_SAMPLE = 4096  # numbers of an array in the sample for a histogram
_PIXELS = 240  # maximum width and height of an image
_LARGEST_IMAGE = 24_000  # bytes
_JSON = 1200  # characters
_JSON_ITEMS = 200  # values that are converted, at any depth
_MAX_BITS = 256  # repr of a larger int is slow, and refused from 4300 digits on

_SIMPLE = frozenset({float, bool, complex, type(None)})
_SEQUENCES: dict[type, tuple[str, str]] = {
    list: ("[", "]"),
    tuple: ("(", ")"),
    set: ("{", "}"),
    frozenset: ("{", "}"),
}


def preview(value: object) -> tuple[str, dict[str, Any]]:
    """Return the name of the value's type, and the facts that apply: `repr` (at most 80
    characters), `len`, `shape`, `dtype`, `columns` and others. Never raises.

    Args:
        value: A value of any type; no code of its class is called.
    """
    kind = type(value)
    if kind is int or kind in _SIMPLE or kind is str:
        return kind.__name__, {"repr": short_repr(value)}
    is_builtin = kind.__module__ == "builtins"
    name = kind.__qualname__ if is_builtin else f"{kind.__module__}.{kind.__qualname__}"
    try:
        return name, _of_builtin(value) if is_builtin else _of_library(value)
    except Exception:  # noqa: BLE001 -- for example a half-initialized value: the type must do
        return name, {}


def short_text(value: Any, length: int = 30) -> str:
    """Return a short text of a value, for a foreach stack: a str itself, the repr of other plain
    values, and the type of all others. Characters that are not valid Unicode, as in names of files,
    are replaced.

    Args:
        value: A value of any type.
        length: The maximum number of characters.
    """
    text: str = value if type(value) is str else short_repr(value)
    return text[:length].encode("utf-8", "replace").decode()


def short_repr(value: Any, length: int = _REPR_LENGTH) -> str:
    """Return the truncated repr of a value of a builtin type, or the type's name of any other.

    Args:
        value: A value of any type.
        length: The maximum number of characters.
    """
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
        return {"len": len(value), **_of_plain(value)}
    if kind in (list, tuple, set, frozenset, bytes, bytearray, range):
        facts: dict[str, Any] = {"len": len(value)}
        if kind is not bytearray and kind is not range:
            facts["repr"] = short_repr(value)
        if kind is list and value and type(value[0]) in (dict, list):
            facts |= _of_plain(value)
        return facts
    return {}


def _of_plain(value: Any) -> dict[str, Any]:
    """Return the value as truncated JSON; empty if it does not consist of plain values only."""
    left = [_JSON_ITEMS]
    try:
        plain = _plain(value, left)
    except (_NotPlain, RecursionError, RuntimeError):  # RuntimeError: modified by another thread
        return {}
    text = json.dumps(plain, indent=1, ensure_ascii=False)
    return {"json": text if len(text) <= _JSON else text[: _JSON - 3] + "..."}


class _NotPlain(Exception):
    """A part of a value cannot be represented in JSON."""


def _plain(value: Any, left: list[int]) -> Any:
    left[0] -= 1
    kind = type(value)
    if kind is str:
        return short_text(value, 200)
    if kind in _SIMPLE or kind is int:
        if kind is complex or (kind is int and value.bit_length() > _MAX_BITS):
            raise _NotPlain
        return value
    if left[0] < 0:
        return "..."
    if kind is dict:
        return {
            _key(key): _plain(each, left) for key, each in islice(value.items(), max(left[0], 1))
        }
    if kind in (list, tuple):
        return [_plain(each, left) for each in islice(value, max(left[0], 1))]
    raise _NotPlain


def _key(key: object) -> str:
    if type(key) not in (str, int, float, bool):
        raise _NotPlain
    return short_text(key, _CELL)


def _of_library(value: Any) -> dict[str, Any]:
    for name, facts in _LIBRARIES.items():
        module = sys.modules.get(name)
        if module is not None:
            found = facts(module, value)
            if found:
                return found
    return {}


def _of_numpy(numpy: Any, value: Any) -> dict[str, Any]:
    if type(value) is numpy.ndarray:
        noted = {"shape": list(value.shape), "dtype": str(value.dtype)[:_REPR_LENGTH]}
        return noted | _distribution(numpy, value)
    if isinstance(value, numpy.number | numpy.bool_):
        return {"repr": str(value)[:_REPR_LENGTH], "dtype": str(value.dtype)}
    return {}


def _distribution(numpy: Any, array: Any) -> dict[str, Any]:
    """Return the range and histogram of an array of real numbers."""
    if array.dtype.kind not in _NUMERIC or array.size < 2:
        return {}
    flat = array.reshape(-1) if array.flags.c_contiguous else array.flat
    step = max(1, array.size // _SAMPLE)
    sample = numpy.asarray(flat[::step][:_SAMPLE], dtype=float)
    sample = sample[numpy.isfinite(sample)]
    if not sample.size:
        return {}
    low, high = float(sample.min()), float(sample.max())
    if not math.isfinite(high - low):
        return {}
    try:
        counts, _ = numpy.histogram(sample, bins=_BINS)
    except ValueError:  # the numbers are too close to each other for bins
        return {}
    return {
        "min": f"{low:.5g}",
        "max": f"{high:.5g}",
        "histogram": [int(each) for each in counts],
        "sampled": step > 1,
    }


def _of_pandas(pandas: Any, value: Any) -> dict[str, Any]:
    if type(value) is pandas.DataFrame:
        shown = value.iloc[:_ROWS, :_COLUMNS]
        rows = shown.itertuples(index=False, name=None)
        return _table([len(value), len(value.columns)], shown.columns, shown.dtypes, rows)
    if type(value) is pandas.Series:
        noted = {"len": len(value), "dtype": str(value.dtype)[:_REPR_LENGTH]}
        if value.dtype.kind not in _NUMERIC:  # its conversion may take long
            return noted
        return noted | _distribution(sys.modules["numpy"], value.to_numpy())
    return {}


def _of_polars(polars: Any, value: Any) -> dict[str, Any]:
    if type(value) is polars.DataFrame:
        shown = value[:_ROWS, :_COLUMNS]
        return _table([value.height, value.width], shown.columns, shown.dtypes, shown.rows())
    if type(value) is polars.Series:
        return {"len": len(value), "dtype": str(value.dtype)[:_REPR_LENGTH]}
    return {}


def _of_pyarrow(pyarrow: Any, value: Any) -> dict[str, Any]:
    table = getattr(pyarrow, "Table", None)
    if table is None or type(value) is not table:
        return {}
    shown = value.slice(0, _ROWS).select([*range(min(_COLUMNS, value.num_columns))])
    rows = zip(*(column.to_pylist() for column in shown.columns), strict=True)
    return _table([value.num_rows, value.num_columns], shown.column_names, shown.schema.types, rows)


def _table(
    shape: list[int], columns: Iterable[Any], dtypes: Iterable[Any], rows: Iterable[Iterable[Any]]
) -> dict[str, Any]:
    return {
        "shape": shape,
        "columns": [_label(each) for each in columns],
        "dtypes": [str(each)[:_CELL] for each in dtypes],
        "rows": [[_cell(each) for each in row] for row in rows],
    }


def _of_pillow(pil: Any, value: Any) -> dict[str, Any]:
    if not isinstance(value, pil.Image):
        return {}
    small = value.convert("RGBA" if "A" in value.getbands() else "RGB")
    small.thumbnail((_PIXELS, _PIXELS))
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return {"shape": list(value.size), "dtype": str(value.mode), **_image(buffer.getvalue())}


def _of_matplotlib(figures: Any, value: Any) -> dict[str, Any]:
    agg = sys.modules.get("matplotlib.backends.backend_agg")
    if type(value) is not figures.Figure or agg is None:
        return {}
    width, height = value.get_size_inches()
    buffer = io.BytesIO()
    canvas = value.canvas  # drawing replaces it
    try:
        agg.FigureCanvasAgg(value).print_figure(
            buffer, format="png", dpi=max(10, min(60, _PIXELS * 1.5 / max(width, height, 1)))
        )
    finally:
        value.set_canvas(canvas)
    return {"shape": [float(width), float(height)], **_image(buffer.getvalue())}


def _image(data: bytes) -> dict[str, Any]:
    return {"image": base64.b64encode(data).decode()} if len(data) <= _LARGEST_IMAGE else {}


# The preview functions, by the module that must be imported, in the order of their calls.
_LIBRARIES = {
    "numpy": _of_numpy,
    "pandas": _of_pandas,
    "polars": _of_polars,
    "pyarrow": _of_pyarrow,
    "PIL.Image": _of_pillow,
    "matplotlib.figure": _of_matplotlib,
}


def _cell(value: Any) -> str:
    """Return a short text of a cell of a table, without calling user code."""
    kind = type(value)
    if kind.__module__.partition(".")[0] in ("numpy", "pandas", "datetime", "decimal", "uuid"):
        return str(value)[:_CELL]
    return short_text(value, _CELL)


def _label(column: object) -> str:
    return short_text(column) if isinstance(column, str | int) else type(column).__name__
