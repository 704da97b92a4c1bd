"""Where registrations are kept: a database, seen as rows that are read and written in transactions.

Calls block, and are safe from many threads. SQL has `?` for values, and the few words on which the
two kinds of database differ in braces.
"""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol, TypeVar

from aflow._core.settings import path_at
from aflow._core.sqlite import transaction
from aflow._core.statements import statements_in
from aflow.errors import InvalidSetting, MetadataTooNew
from aflow.metadata.sqlite import OpenFiles, connect, errors_named
from aflow.server.metaflow.checks import is_found

T = TypeVar("T")
Row = Sequence[Any]

VERSION = 1
"""Of the tables in schema.sql."""

_FOLDER = Path(__file__).parent


def sql() -> dict[str, str]:
    """Return the statements of queries.sql, by name."""
    return statements_in(_FOLDER / "queries.sql")


class Transaction:
    """A transaction. `placed` turns SQL with `?` for values into that of the driver."""

    def __init__(self, connection: Any, placed: Callable[[str], Any] = str) -> None:
        self._connection = connection
        self._placed = placed

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """Return all rows of the answer.

        Args:
            sql: The SQL, with `?` for values.
            values: One value for each `?`.
        """
        return list(self._connection.execute(self._placed(sql), values).fetchall())

    def change(self, sql: str, values: Sequence[Any] = ()) -> int:
        """Execute a statement.

        Args:
            sql: The SQL, with `?` for values.
            values: One value for each `?`.

        Returns:
            How many rows it has changed.
        """
        return int(self._connection.execute(self._placed(sql), values).rowcount)

    def change_many(self, sql: str, values: Sequence[Sequence[Any]]) -> int:
        """Execute a statement for each of these.

        Args:
            sql: The SQL, with `?` for values.
            values: The values of each execution, one for each `?`.

        Returns:
            How many rows they have changed.
        """
        with closing(self._connection.cursor()) as cursor:
            cursor.executemany(self._placed(sql), values)
            return int(cursor.rowcount)


def make_tables(session: Transaction, words: Mapping[str, str], where: str) -> None:
    """Make the tables, unless they are there.

    Args:
        session: The transaction to write in, which no other process makes them in.
        words: What the kinds of database differ in: `serial` is the type of a generated key.
        where: The database, as the error names it.

    Raises:
        MetadataTooNew: A newer aflow has made the tables.
    """
    session.change("CREATE TABLE IF NOT EXISTS service_version (version INTEGER NOT NULL)")
    found = session.rows("SELECT max(version) FROM service_version")[0][0] or 0
    if found > VERSION:
        raise MetadataTooNew(
            f"The tables of the metadata service in {where} have version {found}, this aflow knows "
            f"versions up to {VERSION}: upgrade aflow."
        )
    if not found:
        text = re.sub(r"--[^\n]*", "", (_FOLDER / "schema.sql").read_text("utf-8"))
        for statement in filter(None, map(str.strip, text.split(";"))):
            session.change(statement.replace("{serial}", words["serial"]))
        session.change("INSERT INTO service_version VALUES (?)", [VERSION])


class Database(Protocol):
    """Raises MetadataUnavailable where the database cannot be used."""

    words: dict[str, str]

    def read(self, work: Callable[[Transaction], T]) -> T:
        """Run work that only reads, on what has been committed.

        Args:
            work: Called with the transaction; it may be called again after a conflict.

        Returns:
            What the work returned.
        """

    def write(self, work: Callable[[Transaction], T]) -> T:
        """Run work in one transaction, all of it or nothing.

        Args:
            work: Called with the transaction; it may be called again after a conflict.

        Returns:
            What the work returned.
        """

    def close(self) -> None:
        """Release the connections. May be called twice."""


def open_database(url: str, durability: str = "power") -> Database:
    """Return the database at `sqlite:///path`, `memory:` or `postgresql://...`, with its tables:
    what is missing is made, by one process at a time.

    Args:
        url: The URL, with credentials where PostgreSQL needs them.
        durability: What committed data survive: a crash (`process`) or a power cut (`power`).

    Raises:
        InvalidSetting: The URL is not of one of these forms.
        MissingExtra: The driver of PostgreSQL is not installed.
        MetadataTooNew: A newer aflow has made the tables.
        MetadataUnavailable: The database does not answer, or is damaged.
    """
    scheme, _, rest = url.partition(":")
    if scheme == "memory":
        return SqliteDatabase(None, durability)
    if scheme == "sqlite" and rest.startswith("///"):
        return SqliteDatabase(path_at(url), durability)
    if scheme in ("postgres", "postgresql"):
        # psycopg is of an extra, which a service on a file needs not.
        from aflow.server.metaflow.database_postgres import PostgresDatabase

        return PostgresDatabase(url)
    raise InvalidSetting(
        f"{scheme!r} is not a metadata store that the service knows: use sqlite:///path, "
        "postgresql://user@host/database or memory:."
    )


class SqliteDatabase:
    """The same file that aflow itself keeps metadata in, with more tables. One connection writes,
    and each thread has its own to read."""

    words = {
        "serial": "INTEGER PRIMARY KEY AUTOINCREMENT",
        "for_update": "",
        "matches": "REGEXP",
        "has_tag": "EXISTS (SELECT 1 FROM json_each(%s) WHERE value = ?)",
    }

    def __init__(self, path: Path | None, durability: str) -> None:
        self._path = path
        self._where = str(path or "memory")
        self._synchronous = "FULL" if durability == "power" else "NORMAL"
        self._lock = threading.RLock()
        self._local = threading.local()
        self._opened: list[sqlite3.Connection] = []
        self._writer = self._connect()
        self._files = None if path is None else OpenFiles(path, self._writer)
        self.write(lambda session: make_tables(session, self.words, self._where))

    def _connect(self) -> sqlite3.Connection:
        connection = connect(self._path, synchronous=self._synchronous, read_only=False)
        connection.create_function("regexp", 2, _regexp, deterministic=True)
        with self._lock:
            self._opened.append(connection)
        return connection

    def read(self, work: Callable[[Transaction], T]) -> T:
        """Read; see the port."""
        if self._path is None:
            with self._lock:
                return work(Transaction(self._writer))
        if not hasattr(self._local, "reader"):
            self._local.reader = self._connect()
        with errors_named(self._where):
            return work(Transaction(self._local.reader))

    def write(self, work: Callable[[Transaction], T]) -> T:
        """Write; see the port."""
        with self._lock, errors_named(self._where), transaction(self._writer):
            if self._files is not None:
                self._files.check()
            return work(Transaction(self._writer))

    def close(self) -> None:
        """Close; see the port."""
        with self._lock:
            for connection in self._opened:
                connection.close()
            self._opened.clear()


def _regexp(pattern: str, value: str | None) -> bool:
    """`value REGEXP pattern`, as SQLite calls it."""
    return value is not None and is_found(pattern, value)
