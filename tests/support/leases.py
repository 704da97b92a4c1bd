"""The leases of runs, which tests expire instead of waiting for that."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path


def expire_leases(folder: Path, ago: float = 0.0) -> None:
    """Let the leases of all runs in a folder be over, and have been for so many seconds, as if
    nobody had renewed them in time."""
    with closing(sqlite3.connect(folder / ".aflow" / "metadata.db")) as connection, connection:
        connection.execute(
            "UPDATE leases SET until = (julianday('now') - 2440587.5) * 86400.0 - ?", [ago]
        )
