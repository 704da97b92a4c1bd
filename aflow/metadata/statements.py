"""The SQL statements, by name, from the files beside this one; read when first needed."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent
_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


@cache
def statements(kind: str, folder: str = "queries") -> dict[str, str]:
    """The statements of `<folder>/<kind>.sql`, by name."""
    return named((_FOLDER / folder / f"{kind}.sql").read_text())


def named(text: str) -> dict[str, str]:
    """The statements of a text in which each follows a line `-- name: ...`, by name."""
    parts = _NAME.split(text)
    return {name: sql.strip() for name, sql in zip(parts[1::2], parts[2::2], strict=True)}


def migrations(folder: str = "migrations") -> list[tuple[int, str]]:
    """Number and text of every migration, in order: `<folder>/<number>_<what>.sql`."""
    files = sorted((_FOLDER / folder).glob("*.sql"))
    return [(int(file.name[:4]), file.read_text()) for file in files]


LATEST = 9
"""The number of the last migration; tests check that it is. Asking it costs no folder listing."""
