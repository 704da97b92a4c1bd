"""Standard streams as they may be: closed when the program began, closed by it, or replaced by any
object that has a `write`. What is printed where there is nowhere to print to is lost, quietly.
"""

from __future__ import annotations

import io
import os
from typing import Any, BinaryIO, cast


def fill_descriptors() -> None:
    """Let descriptors 0, 1 and 2 lead to nothing where they are closed: a file or a socket that is
    opened later must not be taken for a stream."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            nothing = os.open(os.devnull, os.O_RDWR)
            if nothing != number:
                os.dup2(nothing, number)
                os.close(nothing)


def is_terminal(stream: Any) -> bool:
    """Whether a person sees what is written to the stream."""
    try:
        return bool(stream.isatty())
    except (AttributeError, OSError, ValueError):
        return False


def flush(stream: Any) -> None:
    """Flush the stream, if there is one that can be flushed. Raises OSError, as BrokenPipeError."""
    try:
        stream.flush()
    except (AttributeError, ValueError):  # none, or closed
        return


def binary(stream: Any) -> BinaryIO:
    """The stream for bytes: Python's own ones have a buffer, others are given text."""
    # Not whatever has a `buffer`: what copies to several places may hand on that of one of them.
    if getattr(type(stream), "write", None) is io.TextIOWrapper.write and not _is_closed(stream):
        try:
            return cast(BinaryIO, stream.buffer)
        except ValueError:  # detached
            stream = None
    return cast(BinaryIO, _Text(stream))


def _is_closed(stream: Any) -> bool:
    return getattr(stream, "closed", False) is True


class _Text:
    """Writes bytes as text to a stream that takes nothing else; nowhere, if there is none."""

    def __init__(self, stream: Any) -> None:
        self._stream = None if _is_closed(stream) else stream

    def write(self, data: bytes | memoryview) -> int:
        """Write all of it."""
        if self._stream is not None:
            self._stream.write(bytes(data).decode("utf-8", "replace"))
        return len(data)

    def flush(self) -> None:
        """Flush the stream."""
        if self._stream is not None:
            flush(self._stream)
