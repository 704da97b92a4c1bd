"""Read named SQL statements and Lua scripts from files."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def statements_in(file: Path) -> dict[str, str]:
    """Return the statements in a file, by name; each follows a line `-- name: ...`.

    A name that starts with `_` is a fragment, such as a condition that several statements share; it
    is inserted for `{_name}` in other statements, and not returned.

    Args:
        file: The file; the result is cached.
    """
    text = "\n" + file.read_text("utf-8")
    each_named = (each.partition("\n") for each in text.split("\n-- name: ")[1:])
    found = {name.strip(): text.strip() for name, _, text in each_named}
    parts = {name: text for name, text in found.items() if name.startswith("_")}

    def whole(text: str) -> str:
        for name, part in parts.items():  # a fragment may contain those after it
            text = text.replace(f"{{{name}}}", part)
        return text

    return {name: whole(text) for name, text in found.items() if name not in parts}
