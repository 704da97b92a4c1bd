"""How `--with name:option=value,option=value` is read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from aflow.errors import InvalidDecorator

_OPTION = re.compile(r"\s*([A-Za-z_]\w*)\s*=\s*")
_END = re.compile(r"\s*(,|\Z)")
_BEGINS_JSON = ("{", "[", '"')
_JSON = json.JSONDecoder()


def read_options(text: str) -> dict[str, Any]:
    """The options in `option=value,option=value`, in order.

    A value is read as JSON where it is JSON, else as text; commas inside JSON lists, objects and
    strings belong to the value. Raises InvalidDecorator for what is no option, or is given twice.
    """
    options: dict[str, Any] = {}
    for option, value in _pairs(text):
        if option in options:
            raise InvalidDecorator(f"Option {option!r} is given twice.")
        options[option] = value
    return options


def _pairs(text: str) -> Iterator[tuple[str, Any]]:
    at = 0
    while text[at:].strip():
        found = _OPTION.match(text, at)
        if found is None:
            raise InvalidDecorator(
                f"{text[at:]!r} is no option: write name:option=value,option=value."
            )
        value, at = _value(text, found.end())
        yield found[1], value


def _value(text: str, at: int) -> tuple[Any, int]:
    """The value that begins at `at`, and where the next option begins."""
    if text.startswith(_BEGINS_JSON, at):
        try:
            value, end = _JSON.raw_decode(text, at)
        except (ValueError, RecursionError):
            pass  # it only looks like JSON: it is read as a text below
        else:
            rest = _END.match(text, end)
            if rest is not None:
                return value, rest.end()
    end = text.find(",", at)
    end = len(text) if end < 0 else end
    raw = text[at:end].strip()
    try:
        return json.loads(raw), end + 1
    except (ValueError, RecursionError):
        return raw, end + 1
