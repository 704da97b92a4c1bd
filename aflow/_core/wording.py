"""Format numbers and sizes for messages."""

from __future__ import annotations


def plural(count: int, noun: str, many: str | None = None) -> str:
    """Return a number with a noun, such as `1 task` or `2 tasks`.

    Args:
        count: The number.
        noun: The singular.
        many: The plural; None for the singular with an s.
    """
    return f"{count} {noun if count == 1 else many or f'{noun}s'}"


def size_text(size: float) -> str:
    """Return a number of bytes in a suitable unit, such as `900 bytes` or `1.5 MB`.

    Args:
        size: The number of bytes.
    """
    if size < 1000:
        return f"{size:.0f} bytes"
    for unit in ("KB", "MB", "GB"):
        size /= 1000
        if size < 1000:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} TB"
