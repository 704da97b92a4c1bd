"""The metadata store in PostgreSQL: one database for many machines.

The tables are in a separate schema. A commit is on the server's disk when the call returns,
whatever the durability, unless the server's `synchronous_commit` is off.

If a server that has been reached before becomes unavailable (it restarts, for example), calls are
retried for up to PATIENCE seconds. Repeating a call is safe: reads and assignments are idempotent,
and a commit stores its mark, which shows whether it was executed.
"""

from __future__ import annotations

import re
import threading
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode

from aflow._core.backoff import Backoff, Tries
from aflow._core.postgres import (
    REFUSALS,
    ROLLED_BACK,
    TextBinaryLoader,
    adapt_texts,
    advice,
    connection_options,
    line,
    psycopg,
    state_of,
    unescaped,
)
from aflow._core.secret import sealed
from aflow.errors import (
    InvalidSetting,
    MetadataAway,
    MetadataUnavailable,
    VersionConflict,
)
from aflow.metadata import sql as rows
from aflow.metadata.base import RunRecord, TaskColumns
from aflow.metadata.sql import PAGE, Session, SqlMetadata, T, is_current, migrations, reading

if TYPE_CHECKING:
    from aflow._core.clock import Clock

Connection = psycopg.Connection[Any]

LATEST = 7
"""The number of the last migration, which tests verify."""
SCHEMA = "aflow"
_KEPT = 8  # idle connections that are kept open
_LOCK = 0x61666C6F77  # the advisory lock that is held during migrations
_LOCK_TIMEOUT = 30_000  # milliseconds to wait for another client's commit
# Every query can be answered from an index, in the order of the index. Without statistics, which
# a new run does not have yet, the planner would otherwise collect and sort all rows for each page,
# or scan whole tables for each range of tasks.
_PLANS = {"enable_bitmapscan": "off", "enable_seqscan": "off", "jit": "off"}


class PostgresAddress:
    """The address of a database, from `postgresql://user:password@host:port/name?schema=...`.

    `schema` (default `aflow`) is the schema of aflow's tables; libpq interprets all the rest.
    Raises InvalidSetting.
    """

    def __init__(self, url: str) -> None:
        self.address = sealed(url)
        try:
            self._options, schema = connection_options(url)
        except ValueError as error:
            raise InvalidSetting(
                f"{self.address} is not a place of metadata ({error}): write "
                "postgresql://user:password@host:port/database, and %5B for a [ in it."
            ) from None
        self.schema = SCHEMA if schema is None else schema
        if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", self.schema):
            raise InvalidSetting(
                f"{self.schema!r} cannot be a schema: use a-z, 0-9 and _, and no digit first."
            )
        self.is_pooled: bool | None = None  # unknown before the first connection
        place, _, query = str(self.address).partition("://")[2].partition("?")
        shown = dict(parse_qsl(query, keep_blank_values=True))
        if self.schema == SCHEMA:
            shown.pop("schema", None)
        self.url = f"postgresql://{place}{f'?{urlencode(shown)}' if shown else ''}"

    def connect(self, read_only: bool) -> Connection:
        """Return a new connection, in autocommit mode. Raises MetadataUnavailable, or its subclass
        MetadataAway if the server does not respond.

        Args:
            read_only: Whether transactions are read-only by default.
        """
        given = sorted(f"-c {name}={value}" for name, value in self._settings(read_only).items())
        made = self._connected(given, read_only)
        adapt_texts(made.adapters)
        if self.is_pooled is None:
            self.is_pooled = _is_behind_a_pooler(made)
        if self.is_pooled:
            made.prepare_threshold = (
                None  # behind a pooler, a transaction may not see the statements prepared earlier
            )
        return made

    def _connected(self, settings: Sequence[str], read_only: bool) -> Connection:
        own = self._options.get("options", "")
        options = {**self._options, "options": " ".join([own, *settings])}
        try:
            return psycopg.connect(autocommit=True, **options)
        except psycopg.Error as error:
            if settings and "unsupported startup parameter" in str(error):
                self.is_pooled = True  # poolers reject options: transactions set them instead
                return self._connected((), read_only)
            refused = state_of(error) in REFUSALS
            raise self.named(error, away=not refused) from error

    def _settings(self, read_only: bool) -> dict[str, str]:
        more = {"default_transaction_read_only": "on"} if read_only else {}
        return {"search_path": self.schema, "lock_timeout": str(_LOCK_TIMEOUT), **_PLANS, **more}

    @contextmanager
    def using(self, connection: Connection, read_only: bool) -> Iterator[None]:
        """Enclose the use of a connection. Behind a pooler that assigns connections per transaction
        (PgBouncer with pool_mode=transaction), the block is one transaction, with aflow's settings.

        Args:
            connection: A connection that is used only by the caller.
            read_only: Whether the transaction is read-only.
        """
        if not self.is_pooled:
            yield
            return
        settings = [f"SET LOCAL {name} = {value}" for name, value in self._settings(False).items()]
        with connection.transaction():
            connection.execute("; ".join([*settings, *["SET TRANSACTION READ ONLY"] * read_only]))
            yield

    def named(self, error: psycopg.Error, *, away: bool = False) -> MetadataUnavailable:
        """Return an error of the driver as one sentence with place, reason and remedy, without
        passwords.

        Args:
            error: An error that psycopg raised.
            away: Whether the server could not be reached, so that a retry may succeed.
        """
        kind = MetadataAway if away else MetadataUnavailable
        return kind(f"The metadata in {self.url} cannot be used: {advice(error) or line(error)}.")


def _is_behind_a_pooler(connection: Connection) -> bool:
    """Return whether there is a pooler between client and server: poolers report a process id that
    is not the backend's."""
    with connection.transaction():
        row = connection.execute("SELECT pg_backend_pid()", prepare=False).fetchone()
    return row is None or row[0] != connection.info.backend_pid


class Connections:
    """The connection pool of a store; each connection has one user at a time. Thread-safe."""

    def __init__(self, place: PostgresAddress, read_only: bool) -> None:
        self._place = place
        self._read_only = read_only
        self._idle: list[Connection] = []
        self._lock = threading.Lock()
        self._is_current = False  # whether the schema exists in the current version

    @property
    def were_good(self) -> bool:
        """Whether the database has been reached before."""
        return self._is_current

    @contextmanager
    def one(self) -> Iterator[Connection]:
        """Yield a connection, for one use.

        Raises MetadataUnavailable and MetadataTooNew; MetadataAway if the connection fails or
        breaks during use, in which case it is unknown whether the last statement was executed, or
        if the server has rolled the transaction back for the sake of others.
        Programming errors (wrong SQL or arguments) are not converted.
        """
        connection = self._take()
        try:
            with self._place.using(connection, self._read_only):
                yield connection
        except (psycopg.DataError, psycopg.IntegrityError, psycopg.ProgrammingError) as error:
            if isinstance(error, psycopg.errors.InsufficientPrivilege):
                raise self._place.named(error) from error
            raise
        except psycopg.Error as error:
            away = connection.closed or state_of(error) in ROLLED_BACK
            raise self._place.named(error, away=away) from error
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
        """Close all idle connections; connections in use are not closed. Idempotent."""
        with self._lock:
            idle, self._idle = self._idle, []
        for each in idle:
            each.close()


def bring_up_to_date(connection: Connection, place: PostgresAddress, read_only: bool) -> None:
    """Migrate the schema to the current version. A lock ensures that only one process does so.

    Args:
        connection: A connection outside of a transaction.
        place: The address of the database, with the name of the schema.
        read_only: Whether to raise instead of migrating.

    Raises:
        MetadataTooNew: If a newer aflow has written the schema.
        MetadataUnavailable: If the schema is missing or old, and `read_only` is set.
    """
    version = _version(connection, place.schema)
    if version == 0 and read_only:
        raise MetadataUnavailable(f"Nothing has run here yet: there is no metadata in {place.url}.")
    if is_current(version, LATEST, place.url, "database", read_only):
        return
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
    # Reads the catalog's table, since to_regclass may use a cache of this session from before it
    # waited for the lock.
    there = connection.execute(
        "SELECT 1 FROM pg_tables WHERE schemaname = %s AND tablename = 'version'", (schema,)
    ).fetchone()
    if there is None:
        return 0
    found = connection.execute("SELECT number FROM version").fetchone()
    assert found is not None, "it was filled when it was made"
    return int(found[0])


PATIENCE = 30.0  # seconds for which calls are retried if the server becomes unavailable
_BACKOFF = Backoff(0.1, 2.0)
_DIALECT = "postgres"
_RANGE = 20_000  # tasks read by one query for a timeline
# Filters of these statements are optional. The generic plan of a prepared statement would scan the
# rows of all runs; a plan for the actual values finds them in an index. So they are not prepared.
_FILTERED = frozenset({"runs", "all_runs", "runs_of_keys"})
_HOST = TaskColumns._fields.index("host")
_Rows = Generator[Any, None, None]


class PostgresMetadata(SqlMetadata):
    """The metadata store in one database, given by a URL (see `PostgresAddress`).

    `pause(seconds)` waits between retries; `clock` measures how long the server has been
    unavailable.
    """

    def __init__(
        self,
        url: str,
        read_only: bool = False,
        pause: Callable[[float], object] | None = None,
        clock: Clock | None = None,
    ) -> None:
        super().__init__()
        self._clock = clock
        self._place = PostgresAddress(url)
        self._connections = Connections(self._place, read_only)
        self._pause = pause

    @property
    def url(self) -> str:
        """The URL for messages, without the password."""
        return self._place.url

    @property
    def address(self) -> str:
        """The URL that opens the store in another process; see the port."""
        return self._place.address

    # ------------------------------------------------------------------ writing

    def _transact(self, work: Callable[[Session], T]) -> T:
        """Call `work` in a transaction, which is rolled back if it raises; return its result."""
        tried = False

        def attempt() -> T:
            nonlocal tried
            again, tried = tried, True
            with self._connections.one() as db, db.transaction():
                return work(PostgresSession(db, again))

        return self._patiently(attempt)

    def _mark(self, mark: str) -> str:
        return mark or uuid.uuid4().hex  # any response may be lost and the call repeated

    def _add_run(self, session: Session, run: RunRecord, mark: str) -> tuple[int, bool]:
        session.do("lock_flow", run.flow)
        session.do("add_flow", run.flow, run.created_at)
        is_new = session.do("add_run", *rows.run_row(run), mark) == 1
        made = session.all("made_by", flow=run.flow, run=run.run, mark=mark)
        if not made:
            raise VersionConflict(f"The run {run.flow}/{run.run} already exists.")
        return int(made[0][0]), is_new

    def _before_delete(self, session: Session, flow: str, run_key: int) -> None:
        session.do("lock_flow", flow)

    # ------------------------------------------------------------------ statements

    def _all(self, name: str, light: bool = False, **values: Any) -> list[Any]:
        prepare = False if name in _FILTERED else None

        def attempt() -> list[Any]:
            with self._connections.one() as db, db.cursor(binary=True) as cursor:
                return cursor.execute(
                    reading(name, light, _DIALECT), values, prepare=prepare
                ).fetchall()

        return self._patiently(attempt)

    def _stream(self, name: str, light: bool = False, **values: Any) -> Iterator[Any]:
        limit = values.get("limit")
        if limit is not None and limit <= PAGE:
            yield from self._all(name, light, **values)
            return
        first, rest = self._patiently(lambda: self._begin(reading(name, light, _DIALECT), values))
        with closing(rest):
            yield from first
            yield from rest

    def _all_task_columns(self, run_key: int) -> Iterator[Any]:
        """Yield the tasks in ranges; each is read while the previous one is consumed. A task
        written between two reads is reported again with the next version of the run."""

        def read(after: int) -> tuple[list[Any], int | None]:
            """Return the rows after this task, and where the next range starts (None if last)."""
            last = after + _RANGE
            values = {"run_key": run_key, "after": after, "last": last}
            rows = self._patiently(lambda: self._plain_texts("all_task_columns", values))
            if not rows:  # a gap, or the end
                ((found,),) = self._all("next_task", run_key=run_key, after=last)
                return [], None if found is None else found - 1
            return rows, last

        with ThreadPoolExecutor(1) as ahead:
            at: int | None = -1
            coming = ahead.submit(read, -1)
            while at is not None:
                rows, at = coming.result()
                if at is not None:
                    coming = ahead.submit(read, at)
                yield from rows

    def _plain_texts(self, name: str, values: dict[str, Any]) -> list[Any]:
        """Return the rows of a query in which only `host` may contain escaped characters. Calling
        our loader for each text would take half of the time of reading a million tasks, so only
        hosts are unescaped."""
        with self._connections.one() as db, db.cursor(binary=True) as cursor:
            cursor.adapters.register_loader("text", TextBinaryLoader)
            found = cursor.execute(reading(name, dialect=_DIALECT), values).fetchall()
        if not any("\x1a" in host for host in {row[_HOST] for row in found}):
            return found
        return [(*row[:_HOST], unescaped(row[_HOST]), *row[_HOST + 1 :]) for row in found]

    def _begin(
        self, sql: str, values: dict[str, Any]
    ) -> tuple[list[Any], Generator[Any, None, None]]:
        """Return the first row of a stream, if there is one, and the iterator over the others.
        After the first row was consumed the query cannot be retried."""
        rest = self._rows(sql, values)
        return [*islice(rest, 1)], rest

    def _rows(self, sql: str, values: dict[str, Any]) -> _Rows:
        # With a server-side cursor, so that an unfinished stream neither uses memory here nor reads
        # the remaining rows.
        with (
            self._connections.one() as db,
            db.transaction(),
            db.cursor(name="stream", binary=True) as cursor,
        ):
            cursor.itersize = PAGE
            yield from cursor.execute(sql, values)

    def _patiently(self, attempt: Callable[[], T]) -> T:
        """Retry for up to PATIENCE seconds if a server that was reached before does not respond."""
        try:
            return attempt()
        except MetadataAway:
            if not self._connections.were_good:
                raise
        what = f"the metadata in {self.url}"
        tries = Tries(_BACKOFF, patience=PATIENCE, waiting_for=what, clock=self._clock)
        return tries.retry(attempt, MetadataAway, pause=self._pause)

    def close(self) -> None:
        """Close idle connections. Idempotent."""
        self._connections.close()


class PostgresSession(Session):
    """Statements in a transaction of one connection."""

    dialect = _DIALECT
    _db: Connection

    def do(self, name: str, *values: Any) -> int:
        """Execute a writing statement; return the number of changed rows."""
        return int(self._db.execute(self._sql[name], values).rowcount)

    def do_all(self, name: str, values: Sequence[rows.Row]) -> None:
        """Execute a writing statement for each row."""
        if values:
            with self._db.cursor() as cursor:
                cursor.executemany(self._sql[name], values)

    def all(self, name: str, **values: Any) -> list[Any]:
        """Return the rows of a reading statement."""
        return self._db.execute(reading(name, dialect=_DIALECT), values).fetchall()

    def together(self) -> AbstractContextManager[Any]:
        """Send the writes in the block to the server in one pipeline."""
        return self._db.pipeline()
