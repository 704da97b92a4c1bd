"""Transactions and the clock of leases, for SQLite files that several processes share."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from aflow._core.system import monotonic_domain

if TYPE_CHECKING:
    from aflow._core.clock import Clock

BUSY_TIMEOUT = 30.0  # seconds to wait for another process's transaction


def url_of(path: Path) -> str:
    """Return the URL of a file: `sqlite:///path`.

    Args:
        path: The absolute path of the file.
    """
    return "sqlite:///" + path.as_uri().removeprefix("file://")


def identity_of(path: Path | str) -> tuple[int, int] | None:
    """Return device and inode of a file; None if there is none, or it cannot be reached.

    SQLite does not notice if its open file is deleted or replaced: it goes on with the old one.

    Args:
        path: The path of the file.
    """
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


@contextmanager
def one_process_at_a_time(path: Path) -> Iterator[None]:
    """Lock the folder of a file, to switch a new file to write-ahead logging.

    Without the lock SQLite fails immediately, ignoring the busy timeout, if another process reads
    the file.

    Args:
        path: The file; its folder must exist.
    """
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Run the block in a write transaction: commit at its end, or roll back if it raises.

    Args:
        db: The connection, in autocommit mode.
    """
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # SQLite rolls back by itself after some errors, such as a full disk
            db.execute("ROLLBACK")
        raise


class LeaseClock:
    """The clock for the leases in a SQLite file, which all processes that use the file share.

    It is monotonic while the machine is up, even if the wall clock is set. Otherwise setting the
    wall clock back would extend the leases of crashed processes, and setting it forward would
    expire those of running ones. The file contains the offset to the monotonic time of the machine.
    The first process after a boot computes it from the wall clock, and writes it to the table
    lease_clocks (number INTEGER PRIMARY KEY, domain TEXT UNIQUE, ahead REAL).
    """

    _KEPT = 20  # the number of rows, one for each boot of a machine

    def __init__(self, clock: Clock, domain: str | None = None) -> None:
        self._clock = clock
        self._domain = monotonic_domain() if domain is None else domain
        self._ahead: float | None = None

    def now(self) -> float:
        """Return the time in seconds, approximately since the epoch."""
        if self._ahead is None:  # no process has written it since the boot
            return self._clock.now()
        return self._ahead + self._clock.monotonic()

    def read(self, db: sqlite3.Connection) -> None:
        """Read the offset from the file, unless it is already known.

        Args:
            db: The connection to the database.
        """
        if self._ahead is None and self._domain:
            found = db.execute(
                "SELECT ahead FROM lease_clocks WHERE domain = ?", (self._domain,)
            ).fetchone()
            self._ahead = None if found is None else float(found[0])

    def begin(self, db: sqlite3.Connection) -> bool:
        """Read the offset from the file, and write it if it is missing.

        Args:
            db: The connection to the database, in a write transaction.

        Returns:
            True if this is the first process since the boot of the machine. Then the holders of all
            leases in the file are gone, unless other machines use the file.
        """
        self.read(db)
        if self._ahead is not None or not self._domain:
            return False
        ahead = self._clock.now() - self._clock.monotonic()
        db.execute("INSERT INTO lease_clocks (domain, ahead) VALUES (?, ?)", (self._domain, ahead))
        db.execute(
            "DELETE FROM lease_clocks WHERE number <= (SELECT max(number) FROM lease_clocks) - ?",
            (self._KEPT,),
        )
        self._ahead = ahead
        return True

    @contextmanager
    def transaction(self, db: sqlite3.Connection, shorten: Callable[[], object]) -> Iterator[None]:
        """Run the block in a write transaction in which this clock can be used.

        Args:
            db: The connection, in autocommit mode.
            shorten: Called if this is the first process since the boot of the machine. Then the
                holders of all leases in the file are gone, unless other machines use the file.
        """
        first = False
        try:
            with transaction(db):
                first = self.begin(db)
                if first:
                    shorten()
                yield
        except BaseException:
            if first:
                self.forget()
            raise

    def forget(self) -> None:
        """Forget the offset, after a rollback of the transaction that wrote it or a new file."""
        self._ahead = None
