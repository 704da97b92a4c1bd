"""Numbers in sentences."""

from __future__ import annotations


def plural(count: int, noun: str, many: str | None = None) -> str:
    """`1 task`, `2 tasks`; `many` is the plural where it does not end with an s."""
    return f"{count} {noun if count == 1 else many or f'{noun}s'}"
