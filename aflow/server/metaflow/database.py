"""The database of registrations, accessed as rows in transactions.

Calls block and are thread-safe. SQL statements have `?` for values, and words in braces where
SQLite and PostgreSQL differ.
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
"""The version of the tables in schema.sql."""

_FOLDER = Path(__file__).parent


def sql() -> dict[str, str]:
    """Return the statements in queries.sql, by name."""
    return statements_in(_FOLDER / "queries.sql")


class Transaction:
    """A transaction. `placed` converts the placeholders `?` in SQL to those of the driver."""

    def __init__(self, connection: Any, placed: Callable[[str], Any] = str) -> None:
        self._connection = connection
        self._placed = placed

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[Row]:
        """Return all rows of a query.

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
            The number of changed rows.
        """
        return int(self._connection.execute(self._placed(sql), values).rowcount)

    def change_many(self, sql: str, values: Sequence[Sequence[Any]]) -> int:
        """Execute a statement once for each sequence of values.

        Args:
            sql: The SQL, with `?` for values.
            values: The values of each execution, one for each `?`.

        Returns:
            The total number of changed rows.
        """
        with closing(self._connection.cursor()) as cursor:
            cursor.executemany(self._placed(sql), values)
            return int(cursor.rowcount)


def make_tables(session: Transaction, words: Mapping[str, str], where: str) -> None:
    """Create the tables unless they exist.

    Args:
        session: The transaction; no other process may create the tables at the same time.
        words: The SQL fragments of the database: `serial` is the type of a generated key.
        where: The database, for the error.

    Raises:
        MetadataTooNew: If a newer version of aflow has created the tables.
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
    """A database of registrations. Methods raise MetadataUnavailable if it cannot be used."""

    words: dict[str, str]

    def read(self, work: Callable[[Transaction], T]) -> T:
        """Run work that only reads committed data.

        Args:
            work: Called with the transaction; it may be called again after a conflict.

        Returns:
            What the work returned.
        """

    def write(self, work: Callable[[Transaction], T]) -> T:
        """Run work in a transaction.

        Args:
            work: Called with the transaction; it may be called again after a conflict.

        Returns:
            What the work returned.
        """

    def close(self) -> None:
        """Close the connections. May be called twice."""


def open_database(url: str, durability: str = "power") -> Database:
    """Return the database at `sqlite:///path`, `memory:` or `postgresql://...`, after creating
    missing tables, which only one process does at a time.

    Args:
        url: The URL, with credentials if PostgreSQL needs them.
        durability: What committed data survives: a crash (`process`) or a power cut (`power`).

    Raises:
        InvalidSetting: If the URL does not have one of these forms.
        MissingExtra: If the driver of PostgreSQL is not installed.
        MetadataTooNew: If a newer version of aflow has created the tables.
        MetadataUnavailable: If the database does not respond or is damaged.
    """
    scheme, _, rest = url.partition(":")
    if scheme == "memory":
        return SqliteDatabase(None, durability)
    if scheme == "sqlite" and rest.startswith("///"):
        return SqliteDatabase(path_at(url), durability)
    if scheme in ("postgres", "postgresql"):
        # psycopg belongs to an extra, which SQLite does not need.
        from aflow.server.metaflow.database_postgres import PostgresDatabase

        return PostgresDatabase(url)
    raise InvalidSetting(
        f"{scheme!r} is not a metadata store that the service knows: use sqlite:///path, "
        "postgresql://user@host/database or memory:."
    )


class SqliteDatabase:
    """Additional tables in the SQLite file of aflow's own metadata. One connection writes; each
    thread has its own connection to read."""

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
    """Implement `value REGEXP pattern` for SQLite."""
    return value is not None and is_found(pattern, value)
