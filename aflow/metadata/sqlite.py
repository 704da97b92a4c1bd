"""The metadata store in SQLite: a file that several processes share, or in memory for tests.

The database uses a write-ahead log: readers see whole commits and never wait for the writer. With
durability `power` each commit is on disk before the call returns (synchronous FULL); with
`process` commits survive any crash except that of the machine (synchronous NORMAL).
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from weakref import finalize

from aflow._core.clock import Clock, SystemClock
from aflow._core.private_folders import make_private
from aflow._core.sqlite import (
    BUSY_TIMEOUT,
    LeaseClock,
    identity_of,
    one_process_at_a_time,
    transaction,
    url_of,
)
from aflow.errors import InvalidSetting, MetadataUnavailable, VersionConflict
from aflow.metadata import sql as rows
from aflow.metadata.base import LEASE, WORKER_EXPIRY, ReplacedLog, RunRecord
from aflow.metadata.sql import (
    LATEST,
    PAGE,
    Session,
    SqlMetadata,
    T,
    is_current,
    migrations,
    reading,
    statements,
)

# SQLite connections: opening, migrations and errors.


_ADVICE = {
    "SQLITE_FULL": "the disk is full: free some space and resume the run",
    "SQLITE_IOERR": "the disk has failed or is full: check it and resume the run",
    "SQLITE_READONLY": "it cannot be written: check its permissions",
    "SQLITE_CANTOPEN": "it cannot be opened: check that its folder is there and may be written",
    "SQLITE_PERM": "it may not be opened: check its permissions",
    "SQLITE_BUSY": "another process has kept it locked for too long: see what else runs here",
    "SQLITE_LOCKED": "another process has kept it locked for too long: see what else runs here",
    "SQLITE_CORRUPT": "it is damaged: save what can be saved with `sqlite3 FILE .recover`",
    "SQLITE_NOTADB": "it is not a database: move the file away",
}


@contextmanager
def errors_named(where: str) -> Iterator[None]:
    """Convert errors of sqlite3 to MetadataUnavailable, with place, reason and remedy in one
    sentence. Programming errors (wrong SQL or arguments) are not converted.

    Args:
        where: The place of the database, for the message.

    Raises:
        MetadataUnavailable: If SQLite raised an error in the block.
    """
    try:
        yield
    except (sqlite3.OperationalError, sqlite3.DatabaseError) as error:
        if isinstance(error, sqlite3.ProgrammingError | sqlite3.IntegrityError):
            raise
        name = getattr(error, "sqlite_errorname", "") or ""
        advice = next(
            (text for prefix, text in _ADVICE.items() if name.startswith(prefix)), str(error)
        )
        raise MetadataUnavailable(f"The metadata in {where} cannot be used: {advice}.") from error


class OpenFiles:
    """The files of a database that is open for writing: a writer would not notice if they are
    deleted or replaced."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path = str(path)
        self._identity = identity_of(self._path)
        # On some network drives SQLite cannot use a write-ahead log, and does without one.
        mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
        self._beside = [f"{path}-wal", f"{path}-shm"] if mode == "wal" else []

    def check(self) -> None:
        """Check that the files are still those that were opened. Call it inside of a transaction;
        outside of one, the files of the write-ahead log need not exist.

        Raises:
            MetadataUnavailable: If a file was deleted or replaced.
        """
        if identity_of(self._path) != self._identity or not all(map(os.path.exists, self._beside)):
            raise MetadataUnavailable(
                f"The metadata in {self._path} cannot be used: its files were deleted or replaced "
                "while they were in use. Put them back if you can, and start again."
            )


def connect(path: Path | None, *, synchronous: str, read_only: bool) -> Connection:
    """Open a database, and migrate it to the schema of this aflow version.

    Args:
        path: The file; None for a database in memory.
        synchronous: The value of SQLite's pragma `synchronous`.
        read_only: Whether to open the file for reading only; then it is not migrated.

    Returns:
        The connection, which the caller must close.

    Raises:
        MetadataUnavailable: If the file cannot be opened, is damaged, or needs a migration and is
            opened for reading only.
        MetadataTooNew: If a newer aflow has written it.
    """
    where = str(path or "memory")
    with errors_named(where):
        if path is None:
            connection = _open(":memory:")
        elif read_only:
            connection = _open_to_read(path)
        else:
            _make_folder(path)
            connection = _open(str(path))
        try:
            if path is not None and not read_only:
                _begin_log(connection, path)
            connection.execute(f"PRAGMA synchronous = {synchronous}")
            if synchronous == "FULL":  # on macOS, flush the cache of the disk too
                connection.execute("PRAGMA fullfsync = ON")
            _bring_up_to_date(connection, where, read_only)
        except BaseException:
            connection.close()
            raise
    return connection


class Connection(sqlite3.Connection):
    """A connection that supports weak references, which `aflow._core.ending` needs. `file`
    identifies the file that it reads."""

    file: tuple[int, int] | None = None


class Snapshot(Connection):
    """A connection that assumes that the file never changes, so it is used for one query only."""


def _open(database: str, uri: bool = False, kind: type[Connection] = Connection) -> Connection:
    return sqlite3.connect(
        database,
        timeout=BUSY_TIMEOUT,
        isolation_level=None,
        check_same_thread=False,
        uri=uri,
        factory=kind,
    )


def _open_to_read(path: Path) -> Connection:
    try:
        there = path.exists() and path.stat().st_size > 0
    except OSError as error:
        raise MetadataUnavailable(
            f"The metadata in {path} cannot be looked for: {error.strerror}."
        ) from error
    if not there:
        raise MetadataUnavailable(f"Nothing has run here yet: there is no {path}.")
    place = path.absolute().as_uri()
    connection = _open(f"{place}?mode=ro", uri=True)
    try:
        _version(connection)
    except sqlite3.OperationalError:
        connection.close()
        # To read a write-ahead log, SQLite writes a file next to it, which fails in a folder of
        # another user or on a read-only disk.
        if os.access(path.parent, os.W_OK) or not os.access(path, os.R_OK):
            raise
        log = Path(f"{path}-wal")
        if log.exists() and log.stat().st_size:
            return _copied(path, log)
        return _open(f"{place}?mode=ro&immutable=1", uri=True, kind=Snapshot)
    return connection


def _copied(path: Path, log: Path) -> Connection:
    """Return a copy in memory of a database and its write-ahead log, which cannot be applied in
    place because the folder is not writable."""
    from tempfile import TemporaryDirectory  # imported here as it is rarely needed

    with TemporaryDirectory(prefix="aflow-") as folder:
        copy = Path(folder) / path.name
        shutil.copyfile(path, copy)
        shutil.copyfile(log, f"{copy}-wal")
        made = _open(":memory:")
        with closing(_open(str(copy))) as source:
            source.backup(made)
    return made


def _make_folder(path: Path) -> None:
    try:
        make_private(path.parent)
    except OSError as error:
        raise MetadataUnavailable(
            f"The folder {path.parent} for the metadata cannot be made: {error.strerror}."
        ) from error


def _begin_log(connection: sqlite3.Connection, path: Path) -> None:
    """Set the journal mode of a new database to WAL."""
    try:
        if path.stat().st_size:
            return
        with one_process_at_a_time(path):
            connection.execute("PRAGMA journal_mode = WAL")
    except OSError as error:
        raise MetadataUnavailable(
            f"The metadata in {path} cannot be made: {error.strerror}."
        ) from error


def _bring_up_to_date(connection: sqlite3.Connection, where: str, read_only: bool) -> None:
    if not is_current(_version(connection), LATEST, where, "folder", read_only):
        _migrate(connection, where)


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _migrate(connection: sqlite3.Connection, where: str) -> None:
    """Apply the missing migrations in one transaction; concurrent processes wait for it."""
    with transaction(connection):
        version = _version(connection)
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master")]
        if tables and "runs" not in tables:
            raise MetadataUnavailable(
                f"The metadata in {where} cannot be used: it is a database of something else; name "
                "another file."
            )
        for number, text in migrations():
            if number > version:
                for statement in _split(text):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {number}")


def _split(text: str) -> Iterator[str]:
    """Yield the statements of a script: executescript would first commit the transaction."""
    statement = ""
    for line in text.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


_CHUNKS = (64, 16, 4, 1)  # rows per statement; 64 rows of 17 values are well below SQLite's limit
_MANY_ROWS = ("add_task", "put_attempt")  # inserted in such chunks
_SYNCHRONOUS = {"power": "FULL", "process": "NORMAL"}


class SqliteMetadata(SqlMetadata):
    """The metadata store of one file, or of memory (path ":memory:")."""

    _damaged = _ADVICE["SQLITE_CORRUPT"]

    def __init__(
        self,
        path: Path | str,
        durability: str = "power",
        read_only: bool = False,
        clock: Clock | None = None,
    ) -> None:
        if durability not in _SYNCHRONOUS:
            raise InvalidSetting(f"durability={durability!r} is unknown: use power or process.")
        # Absolute, since the program may change its working directory while it uses the store.
        self._path = None if str(path) == ":memory:" else Path(path).absolute()
        self._read_only = read_only
        self._synchronous = _SYNCHRONOUS[durability]
        self._lock = threading.RLock()
        self._writer: sqlite3.Connection | None = None
        self._files: OpenFiles | None = None
        self._idle: list[Connection] = []  # unused connections of readers
        self._idle_lock = threading.Lock()  # separate: readers never wait for a commit
        super().__init__()
        self._leases = LeaseClock(SystemClock() if clock is None else clock)
        if self._path is None:
            self._writer = self._connect(False)
            # A store in memory is readable after close(); the data are freed with the object.
            finalize(self, self._writer.close)

    @property
    def url(self) -> str:
        """The URL for messages: `sqlite:///path`, or `memory:`."""
        if self._path is None:
            return "memory:"
        return url_of(self._path)

    @property
    def address(self) -> str:
        """The URL that opens the store in another process."""
        return self.url

    # ------------------------------------------------------------------ writing

    def _transact(self, work: Callable[[Session], T]) -> T:
        with self._transaction() as db:
            return work(SqliteSession(db))

    def _add_run(self, session: Session, run: RunRecord, mark: str) -> tuple[int, bool]:
        session.do("add_flow", run.flow, run.created_at)
        try:
            session.do("add_run", *rows.run_row(run))
        except sqlite3.IntegrityError as error:
            raise VersionConflict(f"The run {run.flow}/{run.run} already exists.") from error
        return session.all("run", flow=run.flow, run=run.run)[0][0], True

    def _before_delete(self, session: Session, flow: str, run_key: int) -> None:
        session.do("retire_key", run_key)

    def replace_logs(self, run_key: int, logs: Sequence[ReplacedLog]) -> None:
        """Replace the logs of attempts, and erase the old ones; see `Records.replace_logs`."""
        if not logs:
            return
        super().replace_logs(run_key, logs)
        with self._lock, errors_named(self._where):
            # Pages keep deleted data until the whole file is rewritten, and the write-ahead log
            # keeps them until it is truncated.
            assert self._writer is not None, "there was a transaction"
            self._writer.execute("VACUUM")
            busy, *_ = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise MetadataUnavailable(
                f"The logs in {self._where} are redacted, but others use the file, and it may "
                "still hold the old ones: do the same again when they have ended."
            )

    # ------------------------------------------------------------------ connections

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Yield the writing connection in a transaction, committed unless the block raises."""
        with self._lock, errors_named(self._where):
            if self._writer is None:
                self._writer = self._connect(self._read_only)
                self._files = OpenFiles(self._path, self._writer) if self._path else None
            db = self._writer

            def shorten() -> None:  # coordinators on other machines renew their leases
                db.execute(statements("write")["shorten_leases"], (LEASE,))
                db.execute(statements("write")["shorten_workers"], (WORKER_EXPIRY,))

            with self._leases.transaction(db, shorten):
                if self._files is not None:
                    self._files.check()
                yield db

    def _all(self, name: str, light: bool = False, **values: Any) -> list[Any]:
        with errors_named(self._where), self._reading() as db:
            return db.execute(reading(name, light), _plain(values)).fetchall()

    def _stream(self, name: str, light: bool = False, **values: Any) -> Iterator[Any]:
        if self._path is None:  # all threads share its connection: never hold it
            yield from self._all(name, light, **values)
            return
        with (
            errors_named(self._where),
            self._reading() as db,
            closing(db.execute(reading(name, light), _plain(values))) as cursor,
        ):
            while page := cursor.fetchmany(PAGE):
                yield from page

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection for one query. It is exclusive to the caller: an unfinished stream
        keeps its snapshot of the database, which no other query must see."""
        if self._path is None:
            assert self._writer is not None, "a store in memory is open from the start"
            with self._lock:
                yield self._writer
            return
        idle = self._idle
        reader = self._reader(idle)
        try:
            self._leases.read(reader)
            yield reader
        finally:
            with self._idle_lock:
                if idle is self._idle and not isinstance(reader, Snapshot):
                    idle.append(reader)
                else:  # a snapshot, or the store was closed in the meantime
                    reader.close()

    def _reader(self, idle: list[Connection]) -> Connection:
        """Return an unused connection, or a new one. A store that only reads, such as that of a
        client in a notebook, goes over to the new file if its file was replaced."""
        file = identity_of(str(self._path)) if self._read_only else None
        while True:
            try:
                reader = idle.pop()
            except IndexError:
                break
            if reader.file == file:
                return reader
            reader.close()
            self._leases.forget()
        reader = self._connect(self._read_only)
        reader.file = file
        return reader

    def _connect(self, read_only: bool) -> Connection:
        db = connect(self._path, synchronous=self._synchronous, read_only=read_only)
        db.create_function("lease_now", 0, self._leases.now)
        return db

    @property
    def _where(self) -> str:
        return str(self._path or "memory")

    def close(self) -> None:
        """Close files and connections. Idempotent."""
        with self._idle_lock:
            idle, self._idle = self._idle, []
        for reader in idle:
            reader.close()
        with self._lock:
            if self._writer is not None and self._path is not None:
                self._writer.close()
                self._writer = None


class SqliteSession(Session):
    """Statements in a transaction of one connection."""

    _db: sqlite3.Connection

    def do(self, name: str, *values: Any) -> int:
        """Execute a writing statement; return the number of changed rows."""
        return self._db.execute(self._sql[name], values).rowcount

    def do_all(self, name: str, values: Sequence[rows.Row]) -> None:
        """Execute a writing statement for each row."""
        if name in _MANY_ROWS:
            _insert(self._db, self._sql[name], values)
        elif values:
            self._db.executemany(self._sql[name], values)

    def all(self, name: str, **values: Any) -> list[Any]:
        """Return the rows of a reading statement."""
        return self._db.execute(reading(name), _plain(values)).fetchall()


def _insert(db: sqlite3.Connection, sql: str, values: Sequence[rows.Row]) -> None:
    """Insert rows with few statements of many rows each.

    sqlite3 releases the GIL for each statement, and has to reacquire it from the busy thread of the
    coordinator: a statement per row would cost more than the inserts themselves. There are only a
    few statement sizes, so that prepared statements are reused.
    """
    head, _, row = sql.partition("VALUES ")
    at = 0
    for size in _CHUNKS:
        while len(values) - at >= size:
            statement = f"{head}VALUES {', '.join([row] * size)}"
            db.execute(statement, [value for each in values[at : at + size] for value in each])
            at += size


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Convert values for SQLite: lists to JSON."""
    return {
        name: json.dumps(value) if type(value) is list else value for name, value in values.items()
    }
