"""Bytes to stdout: gathered, written in large pieces, and never the end of a run."""

from __future__ import annotations

import select
import sys
from typing import BinaryIO

from aflow.cli.errors import forget_stdout, show

_LARGE = 1 << 16


class Output:
    """Where the run log goes.

    `add` gathers, `flush` writes. Once a write has failed nothing more is written: quietly if
    nobody reads any more, else with one sentence on stderr.
    """

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._pieces: list[bytes] = []
        self._size = 0
        self._closed = False

    def add(self, piece: bytes) -> None:
        """Have this written, after all that was added before.

        Args:
            piece: The bytes.
        """
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size >= _LARGE:
            self._write()

    def flush(self) -> None:
        """Write what was added, and see to it that the reader gets it."""
        self._write()
        if not self._closed:
            try:
                self._out.flush()
            except (OSError, ValueError) as error:
                self._give_up(error)

    def _write(self) -> None:
        rest = memoryview(b"".join(self._pieces))
        self._pieces.clear()
        self._size = 0
        while rest and not self._closed:
            try:
                written: int | None = self._out.write(rest)
            except BlockingIOError as error:
                rest = rest[error.characters_written :]
                written = None
            except (OSError, ValueError) as error:
                self._give_up(error)
                return
            # A raw stream (python -u) may take less than all, and gives None where it would
            # block: another process that shares the terminal has made it non-blocking.
            rest = rest[written or 0 :]
            if written is None:
                select.select([], [self._out], [])

    def _give_up(self, error: OSError | ValueError) -> None:
        self._closed = True
        if isinstance(error, ValueError):  # the program has closed it: it wants to see no more
            return
        if self._out is getattr(sys.stdout, "buffer", None):
            forget_stdout()  # what it still holds would fail once more at the end of the program
        if not isinstance(error, BrokenPipeError):
            show(
                "Output error",
                f"The run log can no longer be written to stdout ({error.strerror}).\n"
                "The run goes on, and its log is stored: see the command `logs`.",
            )
