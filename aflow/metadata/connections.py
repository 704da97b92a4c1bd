"""SQLite connections: how they are opened, brought up to date, and what their errors mean."""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from aflow.errors import MetadataTooNew, MetadataUnavailable
from aflow.metadata.statements import LATEST, migrations
from aflow.own_folders import make_private

BUSY_TIMEOUT = 30.0  # seconds to wait for another process's commit

_ADVICE = {
    "SQLITE_FULL": "the disk is full: free some space and resume the run",
    "SQLITE_IOERR": "the disk has failed or is full: check it and resume the run",
    "SQLITE_READONLY": "it cannot be written: check its permissions",
    "SQLITE_CANTOPEN": "it cannot be opened: check that its folder is there and may be written",
    "SQLITE_PERM": "it may not be opened: check its permissions",
    "SQLITE_BUSY": "another process has kept it locked for too long: see what else runs here",
    "SQLITE_LOCKED": "another process has kept it locked for too long: see what else runs here",
    "SQLITE_CORRUPT": "it is damaged: save what can be saved with `sqlite3 FILE .recover`",
    "SQLITE_NOTADB": "it is no database: move the file away",
}


@contextmanager
def errors_named(where: str) -> Iterator[None]:
    """Turn sqlite3's errors into one sentence with place, reason and advice. Our own mistakes
    (wrong SQL, wrong arguments) stay what they are."""
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


@contextmanager
def damage_named(where: str) -> Iterator[None]:
    """Turn what is raised by reading a record that is none into one sentence: SQLite notices
    damage in its own pages, not in what is written there."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise MetadataUnavailable(
            f"The metadata in {where} cannot be used: {_ADVICE['SQLITE_CORRUPT']}."
        ) from error


class OpenFiles:
    """The files of a database that is open for writing.

    SQLite does not notice when somebody deletes or replaces them: it goes on writing, without a
    word, into files that nobody will find again.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path = str(path)
        self._identity = _identity(self._path)
        # Some network drives cannot have the log beside the file; SQLite does without it there.
        mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
        self._beside = [f"{path}-wal", f"{path}-shm"] if mode == "wal" else []

    def check(self) -> None:
        """Raises MetadataUnavailable if one of them is gone. Inside of a transaction all of them
        are there; outside of one they need not be."""
        if _identity(self._path) != self._identity or not all(map(os.path.exists, self._beside)):
            raise MetadataUnavailable(
                f"The metadata in {self._path} cannot be used: its files were deleted or replaced "
                "while they were in use. Put them back if you can, and start again."
            )


def _identity(path: str) -> tuple[int, int] | None:
    """Which file is at the path; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:  # gone, or out of reach, which is the same to a writer
        return None
    return found.st_dev, found.st_ino


def connect(path: Path | None, *, synchronous: str, read_only: bool) -> sqlite3.Connection:
    """Open the database at `path` (None: one in memory), up to date.

    Raises MetadataUnavailable and MetadataTooNew."""
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
            _bring_up_to_date(connection, where, read_only)
        except BaseException:
            connection.close()
            raise
    return connection


class Snapshot(sqlite3.Connection):
    """A connection that takes for granted that nobody changes the file: it is good for one look."""


def _open(
    database: str, uri: bool = False, kind: type[sqlite3.Connection] = sqlite3.Connection
) -> sqlite3.Connection:
    return sqlite3.connect(
        database,
        timeout=BUSY_TIMEOUT,
        isolation_level=None,
        check_same_thread=False,
        uri=uri,
        factory=kind,
    )


def _open_to_read(path: Path) -> sqlite3.Connection:
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
        # SQLite reads a write-ahead log with the help of a file that it writes beside it. In
        # somebody else's folder, or on a disk that is mounted read-only, it cannot.
        if os.access(path.parent, os.W_OK) or not os.access(path, os.R_OK):
            raise
        log = Path(f"{path}-wal")
        if log.exists() and log.stat().st_size:
            return _copied(path, log)
        return _open(f"{place}?mode=ro&immutable=1", uri=True, kind=Snapshot)
    return connection


def _copied(path: Path, log: Path) -> sqlite3.Connection:
    """The database with its write-ahead log, whose writer has died, in memory: where it lies the
    log cannot be applied."""
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
    """Give a new database its write-ahead log, one process at a time: SQLite would turn away at
    once, without waiting, whoever does so while another one so much as looks at the file."""
    try:
        if path.stat().st_size:
            return
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            connection.execute("PRAGMA journal_mode = WAL")
        finally:
            os.close(folder)
    except OSError as error:
        raise MetadataUnavailable(
            f"The metadata in {path} cannot be made: {error.strerror}."
        ) from error


def _bring_up_to_date(connection: sqlite3.Connection, where: str, read_only: bool) -> None:
    version = _version(connection)
    if version > LATEST:
        raise MetadataTooNew(
            f"The metadata in {where} has version {version}, written by a newer aflow; this one "
            f"knows versions up to {LATEST}. Upgrade aflow, or use another folder."
        )
    if version == LATEST:
        return
    if read_only:
        raise MetadataUnavailable(
            f"The metadata in {where} has version {version} and cannot be read as it is: run any "
            "flow there once, which brings it up to date."
        )
    _migrate(connection, where)


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _migrate(connection: sqlite3.Connection, where: str) -> None:
    """Apply what is missing, in one transaction: of several processes one does it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = _version(connection)
        if version == 0 and connection.execute("SELECT 1 FROM sqlite_master").fetchone():
            raise MetadataUnavailable(
                f"The metadata in {where} cannot be used: it is a database of something else; name "
                "another file."
            )
        for number, text in migrations():
            if number > version:
                for statement in _split(text):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {number}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _split(text: str) -> Iterator[str]:
    """The statements of a script, one by one: executescript would commit before it begins."""
    statement = ""
    for line in text.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
