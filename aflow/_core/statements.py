"""Statements of SQL, and scripts of Lua, in files of their own, by name."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def statements_in(file: Path) -> dict[str, str]:
    """Return the statements of a file in which each follows a line `-- name: ...`, by name.

    A name that begins with `_` is that of a part, which stands in others as `{_name}`: conditions
    that several statements have are written once.

    Args:
        file: The file, which is read once.
    """
    each_named = (each.partition("\n") for each in f"\n{file.read_text()}".split("\n-- name: ")[1:])
    found = {name.strip(): text.strip() for name, _, text in each_named}
    parts = {name: text for name, text in found.items() if name.startswith("_")}

    def whole(text: str) -> str:
        for name, part in parts.items():  # a part may hold those that follow it
            text = text.replace(f"{{{name}}}", part)
        return text

    return {name: whole(text) for name, text in found.items() if name not in parts}
