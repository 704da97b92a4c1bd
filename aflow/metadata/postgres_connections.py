"""Connections to PostgreSQL: how they are made and brought up to date; what their errors mean."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

from aflow.errors import (
    InvalidSetting,
    MetadataAway,
    MetadataTooNew,
    MetadataUnavailable,
    MissingExtra,
)
from aflow.metadata.statements import migrations

try:
    import psycopg
    from psycopg.types.string import StrDumper, TextBinaryLoader, TextLoader
except ImportError as error:
    raise MissingExtra(
        "Metadata in PostgreSQL needs the package psycopg: install aflow-runtime[postgres]."
    ) from error

Connection = psycopg.Connection[Any]

LATEST = 5
"""The number of the last migration; tests check that it is."""
SCHEMA = "aflow"
_KEPT = 8  # connections that wait for the next user
_LOCK = 0x61666C6F77  # the advisory lock that is held while migrations run
_SETTINGS = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,  # milliseconds
    "application_name": "aflow",
}
_LOCK_TIMEOUT = 30_000  # milliseconds to wait for another's commit
# Every statement is answered from an index, in its order. Without statistics, which a run that has
# just been written has not, the server would rather collect and sort all of it for each page.
_PLANS = {"enable_bitmapscan": "off", "jit": "off"}

# What the first characters of an SQLSTATE mean.
_ADVICE = {
    "28": "the user or the password is wrong: check them in the URL",
    "3D000": "there is no such database: create it with `createdb`",
    "53100": "the disk of the server is full: free some space and resume the run",
    "53300": "the server has too many connections: raise its max_connections",
    "25006": "it is read-only: name the primary server",
    "42501": "the user may not do this: grant it CREATE on the database",
    "55P03": "it was kept locked for too long: see what else runs there",
    "57P01": "the server was shut down: start it and resume the run",
    "57P02": "the server has crashed: start it and resume the run",
    "57P03": "the server is starting: try again in a moment",
    "XX": "it is damaged: see the log of the server",
}

_REFUSALS = ("28", "3D000")  # of a connection, by a server that answers


class _Dumper(StrDumper):
    """PostgreSQL holds every text but those with the character 0: it is escaped."""

    def dump(self, obj: str) -> Any:
        return super().dump(obj.replace("\x1a", "\x1a1").replace("\0", "\x1a0"))


class _Loader(TextLoader):
    def load(self, data: Any) -> str:
        return _unescaped(str(super().load(data)))


class _BinaryLoader(TextBinaryLoader):
    def load(self, data: Any) -> str:
        return _unescaped(str(super().load(data)))


def _unescaped(text: str) -> str:
    return text.replace("\x1a0", "\0").replace("\x1a1", "\x1a") if "\x1a" in text else text


class Place:
    """Where a database is: what `postgresql://user:password@host:port/name?schema=...` says.

    Everything but `schema` (of aflow's tables, `aflow` by default) is libpq's. Raises
    InvalidSetting.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        self.schema = options.pop("schema", SCHEMA)
        if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", self.schema):
            raise InvalidSetting(
                f"{self.schema!r} cannot be a schema: use a-z, 0-9 and _, and no digit first."
            )
        self.address = url
        self.is_pooled: bool | None = None  # not known before the first connection
        self._conninfo = urlunsplit(parts._replace(scheme="postgresql", query=urlencode(options)))
        user = f"{quote(unquote(parts.username), safe='')}@" if parts.username else ""
        host = parts.netloc.rpartition("@")[2]
        shown = {name: value for name, value in options.items() if name != "password"}
        if self.schema != SCHEMA:
            shown["schema"] = self.schema
        self.url = urlunsplit(("postgresql", user + host, parts.path, urlencode(shown), ""))

    def connect(self, read_only: bool) -> Connection:
        """A new connection, in autocommit mode. Raises MetadataUnavailable; of these MetadataAway
        where the server does not answer."""
        given = {f"-c {name}={value}" for name, value in self._settings(read_only).items()}
        made = self._connected(" ".join(sorted(given)), read_only)
        made.adapters.register_dumper(str, _Dumper)
        made.adapters.register_loader("text", _Loader)
        made.adapters.register_loader("text", _BinaryLoader)
        if self.is_pooled is None:
            self.is_pooled = _is_behind_a_pooler(made)
        if self.is_pooled:
            made.prepare_threshold = None  # what is prepared would be another's, or nobody's
        return made

    def _connected(self, options: str, read_only: bool) -> Connection:
        try:
            return psycopg.connect(self._conninfo, autocommit=True, options=options, **_SETTINGS)  # type: ignore[arg-type]
        except psycopg.Error as error:
            if options and "unsupported startup parameter" in str(error):
                self.is_pooled = True  # a pooler, which takes none: they are set in transactions
                return self._connected("", read_only)
            refused = _state_of(str(error)) in _REFUSALS
            raise self.named(error, away=not refused) from error

    def _settings(self, read_only: bool) -> dict[str, str]:
        more = {"default_transaction_read_only": "on"} if read_only else {}
        return {"search_path": self.schema, "lock_timeout": str(_LOCK_TIMEOUT), **_PLANS, **more}

    @contextmanager
    def using(self, connection: Connection, read_only: bool) -> Iterator[None]:
        """Use a connection. Behind a pooler that hands each transaction to another connection
        (PgBouncer with pool_mode=transaction) all of it is one transaction, with our settings."""
        if not self.is_pooled:
            yield
            return
        settings = [f"SET LOCAL {name} = {value}" for name, value in self._settings(False).items()]
        with connection.transaction():
            connection.execute("; ".join([*settings, *["SET TRANSACTION READ ONLY"] * read_only]))
            yield

    def named(self, error: psycopg.Error, *, away: bool = False) -> MetadataUnavailable:
        """The error as one sentence with place, reason and advice. No password is in it."""
        kind = MetadataAway if away else MetadataUnavailable
        state = error.sqlstate or _state_of(str(error))
        advice = next(
            (text for prefix, text in _ADVICE.items() if state.startswith(prefix)), _line(error)
        )
        return kind(f"The metadata in {self.url} cannot be used: {advice}.")


def _is_behind_a_pooler(connection: Connection) -> bool:
    """Whether there is a pooler between us and the server: it gives its clients numbers of its own
    for the process that serves them."""
    with connection.transaction():
        told = connection.execute("SELECT pg_backend_pid()", prepare=False).fetchone()
    return told is None or told[0] != connection.info.backend_pid


def _state_of(text: str) -> str:
    """libpq tells no SQLSTATE of a connection that failed, only the server's words."""
    if "authentication failed" in text or "no password supplied" in text:
        return "28"
    if "database" in text and "does not exist" in text:
        return "3D000"
    return "57P03" if "starting up" in text else ""


def _line(error: psycopg.Error) -> str:
    """What the library says, in one line."""
    text = " ".join(str(error).split()).rstrip(".?")
    return text or "the server cannot be reached"


class Connections:
    """Connections of one store, each for one user at a time. May be used from many threads."""

    def __init__(self, place: Place, read_only: bool) -> None:
        self._place = place
        self._read_only = read_only
        self._idle: list[Connection] = []
        self._lock = threading.Lock()
        self._is_current = False  # the schema is there, and of the version that we know

    @property
    def were_good(self) -> bool:
        """Whether the database has been reached before."""
        return self._is_current

    @contextmanager
    def one(self) -> Iterator[Connection]:
        """A connection, for one use.

        Raises MetadataUnavailable and MetadataTooNew; MetadataAway where the connection cannot be
        made, or broke while it was in use: whether the last statement was carried out is not known
        then. Our own mistakes (wrong SQL, wrong arguments) stay what they are."""
        connection = self._take()
        try:
            with self._place.using(connection, self._read_only):
                yield connection
        except (psycopg.DataError, psycopg.IntegrityError, psycopg.ProgrammingError) as error:
            if isinstance(error, psycopg.errors.InsufficientPrivilege):
                raise self._place.named(error) from error
            raise
        except psycopg.Error as error:
            raise self._place.named(error, away=connection.closed) from error
        finally:
            self._give_back(connection)

    def _take(self) -> Connection:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        connection = self._place.connect(self._read_only)
        try:
            if not self._is_current:
                with self._place.using(connection, self._read_only):
                    bring_up_to_date(connection, self._place, self._read_only)
                self._is_current = True
        except psycopg.Error as error:
            connection.close()
            raise self._place.named(error) from error
        except BaseException:
            connection.close()
            raise
        return connection

    def _give_back(self, connection: Connection) -> None:
        idle = psycopg.pq.TransactionStatus.IDLE
        if not connection.closed and connection.info.transaction_status == idle:
            with self._lock:
                if len(self._idle) < _KEPT:
                    self._idle.append(connection)
                    return
        connection.close()

    def close(self) -> None:
        """Close those that nobody uses. What is in use is closed when it is given back too late to
        be of use: the next `close` takes it. May be called twice."""
        with self._lock:
            idle, self._idle = self._idle, []
        for each in idle:
            each.close()


def bring_up_to_date(connection: Connection, place: Place, read_only: bool) -> None:
    """See that the schema is there and of our version; of several processes one makes it so.

    Raises MetadataTooNew, and MetadataUnavailable where only a writer could."""
    version = _version(connection, place.schema)
    if version > LATEST:
        raise MetadataTooNew(
            f"The metadata in {place.url} has version {version}, written by a newer aflow; this "
            f"one knows versions up to {LATEST}. Upgrade aflow, or use another database."
        )
    if version == LATEST:
        return
    if read_only:
        raise MetadataUnavailable(
            f"Nothing has run here yet: there is no metadata in {place.url}."
            if version == 0
            else f"The metadata in {place.url} has version {version} and cannot be read as it is: "
            "run any flow there once, which brings it up to date."
        )
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        version = _version(connection, place.schema)
        if version == 0:
            connection.execute(f"CREATE SCHEMA IF NOT EXISTS {place.schema}")
            connection.execute("CREATE TABLE version (number INTEGER NOT NULL)")
            connection.execute("INSERT INTO version VALUES (0)")
        for number, text in migrations("migrations_postgres"):
            if number > version:
                connection.execute(text)
                connection.execute("UPDATE version SET number = %s", (number,))


def _version(connection: Connection, schema: str) -> int:
    # Asked of the tables of the catalog: to_regclass may answer from what this session knew before
    # it waited for the lock.
    there = connection.execute(
        "SELECT 1 FROM pg_tables WHERE schemaname = %s AND tablename = 'version'", (schema,)
    ).fetchone()
    if there is None:
        return 0
    found = connection.execute("SELECT number FROM version").fetchone()
    assert found is not None, "it was filled when it was made"
    return int(found[0])
