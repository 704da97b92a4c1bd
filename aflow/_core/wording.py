"""Numbers in sentences."""

from __future__ import annotations


def plural(count: int, noun: str, many: str | None = None) -> str:
    """Return a number with its noun, as `1 task` or `2 tasks`.

    Args:
        count: The number.
        noun: The noun in the singular.
        many: The plural, where it is not the noun with an s.
    """
    return f"{count} {noun if count == 1 else many or f'{noun}s'}"
