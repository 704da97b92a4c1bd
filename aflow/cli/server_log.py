"""What a server says of itself, line by line, on stderr.

Names in requests, and what runs print before they have begun, come from others. Whatever they
hold, a line of the log is a line of ours: characters that move the cursor, colour, hide or turn
text around are spelled out, and lines that follow the first one are indented.
"""

from __future__ import annotations

import logging
import re
import sys

_ODD = re.compile(r"[^ -~\n]")


class Plain(logging.Formatter):
    """Records with time and level, without characters that nobody sees."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines of a record.

        Args:
            record: The record of the log.
        """
        return _ODD.sub(_spelled, super().format(record)).replace("\n", "\n    ")


def _spelled(found: re.Match[str]) -> str:
    character = found[0]
    if character.isprintable():
        return character
    return character.encode("unicode_escape", "surrogatepass").decode()


def log_to_stderr() -> None:
    """Write what this process logs, from `INFO` on, to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Plain("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger().addHandler(handler)
    for name in ("aflow", "asyncio", "aiohttp.server"):
        logging.getLogger(name).setLevel(logging.INFO if name == "aflow" else logging.WARNING)
