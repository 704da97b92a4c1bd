"""SQLite files that several processes of a machine use: transactions, and the clock of leases."""

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
    """Return the URL of a file, as `sqlite:///path`.

    Args:
        path: The absolute path of the file.
    """
    return "sqlite:///" + path.as_uri().removeprefix("file://")


@contextmanager
def one_process_at_a_time(path: Path) -> Iterator[None]:
    """Enclose what gives a new file its write-ahead log: SQLite would turn away at once, without
    waiting, a process that does so while another one reads the file.

    Args:
        path: The file, whose folder exists and is locked.
    """
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Enclose a transaction that may write: it is kept if the block ends well, also on the disk.

    Args:
        db: The connection, in autocommit mode.
    """
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # else SQLite has ended it, as after a full disk
            db.execute("ROLLBACK")
        raise


class LeaseClock:
    """The time that leases in a SQLite file are measured with, the same for all its processes.

    It advances evenly while the machine is up, even if the wall clock is set: a clock that is set
    back would keep the leases of dead processes for as long, and one that is set forward would end
    those of living processes. The file says what to add to the monotonic time of this machine; the
    first process after a start of the machine writes that, by the clock as it is then, into the
    table lease_clocks (number INTEGER PRIMARY KEY, domain TEXT UNIQUE, ahead REAL).
    """

    _KEPT = 20  # rows: starts of machines

    def __init__(self, clock: Clock, domain: str | None = None) -> None:
        self._clock = clock
        self._domain = monotonic_domain() if domain is None else domain
        self._ahead: float | None = None

    def now(self) -> float:
        """Seconds; near to those since the epoch."""
        if self._ahead is None:  # nobody has written it since the start of the machine
            return self._clock.now()
        return self._ahead + self._clock.monotonic()

    def read(self, db: sqlite3.Connection) -> None:
        """Take over what the file says, if it says something. Cheap where it is known already.

        Args:
            db: The connection to the database; `begin` has to be called inside of a transaction
                that may write.
        """
        if self._ahead is None and self._domain:
            found = db.execute(
                "SELECT ahead FROM lease_clocks WHERE domain = ?", (self._domain,)
            ).fetchone()
            self._ahead = None if found is None else float(found[0])

    def begin(self, db: sqlite3.Connection) -> bool:
        """Read the file's clock within a transaction that may write, and write it if it is not
        there yet.

        Args:
            db: The connection to the database; `begin` has to be called inside of a transaction
                that may write.

        Returns:
            True if this is the first process since the machine was started. Then the holder of no
            lease in the file is alive, unless other machines use the file.
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
        """Enclose a transaction that may write, and that this clock can be used in.

        Args:
            db: The connection, in autocommit mode.
            shorten: Called if this is the first process since the machine was started. Then the
                holder of no lease in the file is alive, unless other machines use the file.
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
        """Read it from the file the next time: a transaction that wrote it was rolled back, or the
        file is another one now."""
        self._ahead = None
