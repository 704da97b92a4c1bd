"""Metadata in PostgreSQL: one database, many machines.

The tables are in a schema of their own. Each commit is on the server's disk before it returns,
whatever the durability, as far as the server keeps `synchronous_commit`.

A server that was reached once may go away for a while (it is restarted, say): calls wait for it, up
to PATIENCE seconds. What was lost with a connection is done again: reading and setting are the same
twice, and a commit leaves its mark, so that it is seen whether it was carried out.
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
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

from aflow._core.backoff import Backoff, Tries
from aflow._core.postgres import (
    REFUSALS,
    SETTINGS,
    TextBinaryLoader,
    adapt_texts,
    advice,
    line,
    psycopg,
    state_of,
    unescaped,
)
from aflow._core.secret import revealed, sealed, without_passwords
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
"""The number of the last migration; tests check that it is."""
SCHEMA = "aflow"
_KEPT = 8  # connections that wait for the next user
_LOCK = 0x61666C6F77  # the advisory lock that is held while migrations run
_LOCK_TIMEOUT = 30_000  # milliseconds to wait for another's commit
# Every statement is answered from an index, in its order. Without statistics, which a run that has
# just been written has not, the server would rather collect and sort all of it for each page, or
# read whole tables for each range of tasks.
_PLANS = {"enable_bitmapscan": "off", "enable_seqscan": "off", "jit": "off"}


class PostgresAddress:
    """Where a database is: what `postgresql://user:password@host:port/name?schema=...` says.

    Everything but `schema` (of aflow's tables, `aflow` by default) is libpq's. Raises
    InvalidSetting.
    """

    def __init__(self, url: str) -> None:
        self.address = sealed(url)
        try:
            parts = urlsplit(revealed(self.address))
        except ValueError:  # a bracket that is not closed; its text may hold the password
            raise InvalidSetting(
                f"{self.address} is not a place of metadata: write "
                "postgresql://user:password@host:port/database, and %5B for a [ in it."
            ) from None
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        self.schema = options.pop("schema", SCHEMA)
        if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", self.schema):
            raise InvalidSetting(
                f"{self.schema!r} cannot be a schema: use a-z, 0-9 and _, and no digit first."
            )
        self.is_pooled: bool | None = None  # not known before the first connection
        self._conninfo = urlunsplit(parts._replace(scheme="postgresql", query=urlencode(options)))
        user = f"{quote(unquote(parts.username), safe='')}@" if parts.username else ""
        host = parts.netloc.rpartition("@")[2]
        shown = {**options, "schema": self.schema} if self.schema != SCHEMA else options
        whole = urlunsplit(("postgresql", user + host, parts.path, urlencode(shown), ""))
        self.url = without_passwords(whole)

    def connect(self, read_only: bool) -> Connection:
        """Return a new connection, in autocommit mode. Raises MetadataUnavailable; of these
        MetadataAway where the server does not answer.

        Args:
            read_only: Whether to open the store for reading only.
        """
        given = {f"-c {name}={value}" for name, value in self._settings(read_only).items()}
        made = self._connected(" ".join(sorted(given)), read_only)
        adapt_texts(made.adapters)
        if self.is_pooled is None:
            self.is_pooled = _is_behind_a_pooler(made)
        if self.is_pooled:
            made.prepare_threshold = (
                None  # a prepared statement would belong to another connection, or to none
            )
        return made

    def _connected(self, options: str, read_only: bool) -> Connection:
        try:
            return psycopg.connect(self._conninfo, autocommit=True, options=options, **SETTINGS)
        except psycopg.Error as error:
            if options and "unsupported startup parameter" in str(error):
                self.is_pooled = True  # a pooler, which takes none: they are set in transactions
                return self._connected("", read_only)
            refused = state_of(error) in REFUSALS
            raise self.named(error, away=not refused) from error

    def _settings(self, read_only: bool) -> dict[str, str]:
        more = {"default_transaction_read_only": "on"} if read_only else {}
        return {"search_path": self.schema, "lock_timeout": str(_LOCK_TIMEOUT), **_PLANS, **more}

    @contextmanager
    def using(self, connection: Connection, read_only: bool) -> Iterator[None]:
        """Enclose the use of a connection. Behind a pooler that hands each transaction to another
        connection (PgBouncer with pool_mode=transaction) all of it is one transaction, with our
        settings.

        Args:
            connection: A connection that nobody else uses meanwhile.
            read_only: Whether to open the store for reading only.
        """
        if not self.is_pooled:
            yield
            return
        settings = [f"SET LOCAL {name} = {value}" for name, value in self._settings(False).items()]
        with connection.transaction():
            connection.execute("; ".join([*settings, *["SET TRANSACTION READ ONLY"] * read_only]))
            yield

    def named(self, error: psycopg.Error, *, away: bool = False) -> MetadataUnavailable:
        """Return an error of the driver as one sentence with place, reason and advice, and without
        a password.

        Args:
            error: The error of the driver.
            away: Whether the server could not be reached, so that another try may succeed.
        """
        kind = MetadataAway if away else MetadataUnavailable
        return kind(f"The metadata in {self.url} cannot be used: {advice(error) or line(error)}.")


def _is_behind_a_pooler(connection: Connection) -> bool:
    """Whether there is a pooler between us and the server: it gives its clients numbers of its own
    for the process that serves them."""
    with connection.transaction():
        row = connection.execute("SELECT pg_backend_pid()", prepare=False).fetchone()
    return row is None or row[0] != connection.info.backend_pid


class Connections:
    """Connections of one store, each for one user at a time. May be used from many threads."""

    def __init__(self, place: PostgresAddress, read_only: bool) -> None:
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
        """Yield a connection, for one use.

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


def bring_up_to_date(connection: Connection, place: PostgresAddress, read_only: bool) -> None:
    """Migrate the schema to the version of this aflow; of several processes one does it.

    Args:
        connection: A connection outside of a transaction.
        place: The address of the database, which names the schema.
        read_only: Whether to open the store for reading only.

    Raises:
        MetadataTooNew: If a newer aflow has made the schema.
        MetadataUnavailable: If the schema is missing or old, and this connection may not write.
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


PATIENCE = 30.0  # seconds to wait for a server that has gone away
_BACKOFF = Backoff(0.1, 2.0)
_DIALECT = "postgres"
_RANGE = 20_000  # tasks that are read at once for a timeline
# Their conditions may be left out: by a plan for any values, which a statement gets that is
# prepared, the rows of all runs are looked at where one for these values finds all in the index.
_FILTERED = frozenset({"runs", "all_runs", "runs_of_keys"})
_HOST = TaskColumns._fields.index("host")
_Rows = Generator[Any, None, None]


class PostgresMetadata(SqlMetadata):
    """The metadata store of one database, named by a URL (see `PostgresAddress`).

    `pause(seconds)` waits while the server does not answer; `clock` says for how long it was."""

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
        """Where it is, without the password."""
        return self._place.url

    @property
    def address(self) -> str:
        """What it takes to open it; see the port."""
        return self._place.address

    # ------------------------------------------------------------------ writing

    def _transact(self, work: Callable[[Session], T]) -> T:
        """Do the work in a transaction, which is kept if the work ends well."""

        def attempt() -> T:
            with self._connections.one() as db, db.transaction():
                return work(PostgresSession(db))

        return self._patiently(attempt)

    def _mark(self, mark: str) -> str:
        return mark or uuid.uuid4().hex  # the answer to any try may be lost

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
        """A range of tasks after another, each read while the one before it is used. What is
        written between two of them comes again with the next version of the run."""

        def read(after: int) -> tuple[list[Any], int | None]:
            """The rows of the range after this task, and where the next one begins."""
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
        """The rows of a query of which only the host may hold escaped characters. They are looked
        for where they may be: our own loader, which is called for each text, takes half of the time
        in which a million tasks are read."""
        with self._connections.one() as db, db.cursor(binary=True) as cursor:
            cursor.adapters.register_loader("text", TextBinaryLoader)
            found = cursor.execute(reading(name, dialect=_DIALECT), values).fetchall()
        if not any("\x1a" in host for host in {row[_HOST] for row in found}):
            return found
        return [(*row[:_HOST], unescaped(row[_HOST]), *row[_HOST + 1 :]) for row in found]

    def _begin(
        self, sql: str, values: dict[str, Any]
    ) -> tuple[list[Any], Generator[Any, None, None]]:
        """The first row of a stream, if there is one, and what will give the others. Once a row
        was given nothing can be done again."""
        rest = self._rows(sql, values)
        return [*islice(rest, 1)], rest

    def _rows(self, sql: str, values: dict[str, Any]) -> _Rows:
        # With a cursor of its own on the server, so that a stream that is left alone costs neither
        # memory here nor the reading of the rest.
        with (
            self._connections.one() as db,
            db.transaction(),
            db.cursor(name="stream", binary=True) as cursor,
        ):
            cursor.itersize = PAGE
            yield from cursor.execute(sql, values)

    def _patiently(self, attempt: Callable[[], T]) -> T:
        """Try until the server answers, for as long as it was there before and PATIENCE lasts."""
        try:
            return attempt()
        except MetadataAway:
            if not self._connections.were_good:
                raise
        what = f"the metadata in {self.url}"
        tries = Tries(_BACKOFF, patience=PATIENCE, waiting_for=what, clock=self._clock)
        return tries.retry(attempt, MetadataAway, pause=self._pause)

    def close(self) -> None:
        """Release connections. May be called twice."""
        self._connections.close()


class PostgresSession(Session):
    """Writes in a transaction of a connection."""

    dialect = _DIALECT
    _db: Connection

    def do(self, name: str, *values: Any) -> int:
        """Run a writing statement; how many rows it has changed."""
        return int(self._db.execute(self._sql[name], values).rowcount)

    def do_all(self, name: str, values: Sequence[rows.Row]) -> None:
        """Run a writing statement for each of these rows."""
        if values:
            with self._db.cursor() as cursor:
                cursor.executemany(self._sql[name], values)

    def all(self, name: str, **values: Any) -> list[Any]:
        """The rows of a reading statement."""
        return self._db.execute(reading(name, dialect=_DIALECT), values).fetchall()

    def together(self) -> AbstractContextManager[Any]:
        """What is written inside of the block goes to the server in one go."""
        return self._db.pipeline()
