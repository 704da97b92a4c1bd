"""Expire the leases of runs without waiting."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path


def expire_leases(folder: Path, ago: float = 0.0) -> None:
    """Set the leases of all runs in a folder to have expired `ago` seconds ago, as if they had not
    been renewed."""
    with closing(sqlite3.connect(folder / ".aflow" / "metadata.db")) as connection, connection:
        connection.execute(
            "UPDATE leases SET until = (julianday('now') - 2440587.5) * 86400.0 - ?", [ago]
        )
