"""A queue in PostgreSQL: one table, read with SKIP LOCKED, and NOTIFY to wake waiters.

Times are those of the server. Waiting calls share one connection that listens on a channel per
topic; if it is lost, they poll once and listen again. Messages are as durable as the database.

Behind a pooler that assigns connections per transaction (PgBouncer with pool_mode=transaction),
statements are not prepared, each call is a separate transaction, tables are qualified with their
schema, and waiters poll once a second, since a LISTEN would belong to another connection.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import select
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aflow._core.postgres import advice, connection_options, line, psycopg, state_of
from aflow._core.secret import as_mentioned, without_account
from aflow._core.statements import statements_in
from aflow.errors import InvalidSetting, QueueUnavailable
from aflow.queue.base import (
    MAX_DELIVERIES,
    Buried,
    Depth,
    Lease,
    Message,
    Queue,
    check_held,
    check_messages,
    check_topic,
    released_if_cancelled,
)

CONNECTIONS = 8
LONGEST_WAIT = 10.0  # seconds after which a waiter polls without having been notified
LOOK_AGAIN = 1.0  # the same behind a pooler, where it cannot be notified
_FORGET = 60.0  # seconds between deletions of the unused turns of a topic
_LOCK = 0x61666C6F77  # "aflow": the advisory lock that is held while the table is created

_SQL = statements_in(Path(__file__).parent / "queries" / "postgres.sql")

Connection = psycopg.AsyncConnection[Any]


class PostgresQueue(Queue):
    """The queue in the database at `postgresql://user:password@host:port/name`, or at another URL
    of libpq's that names a database or a service."""

    def __init__(self, url: str, max_deliveries: int = MAX_DELIVERIES) -> None:
        refused = InvalidSetting(
            f"{as_mentioned(url)} is not a place of a queue: use "
            "postgresql://user@host:port/database, and ?schema=name for tables in another schema "
            "than the user's own."
        )
        try:
            self._options, given = connection_options(url)
        except ValueError:  # an unclosed bracket, or an option that libpq does not know
            raise refused from None
        self._url = without_account(url)
        is_place = {"dbname", "service"} & self._options.keys()
        ports = [each for each in self._options.get("port", "").split(",") if each]
        if not is_place or not all(each.isdecimal() and 0 < int(each) < 1 << 16 for each in ports):
            raise refused
        if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", given or "_"):
            raise refused
        self._schema_name = given  # None: the first schema of the user's search_path
        self._schema = ""  # the prefix of table names, with its dot
        self._is_pooled = False  # whether each transaction may use another connection
        self._sql: dict[str, bytes] = {}
        self._max_deliveries = max_deliveries
        self._is_open = False
        self._idle: list[Connection] = []
        self._free = asyncio.Semaphore(CONNECTIONS)
        self._listener: Connection | None = None
        self._listened: set[str] = set()  # the channels of the listener
        # The descriptor that the event loop watches for the listener: a connection that is lost no
        # longer knows it, and the next one is likely to get it.
        self._watched: int | None = None
        self._opening = asyncio.Lock()
        self._bells: dict[str, set[asyncio.Event]] = {}
        self._forgot_at: dict[str, float] = {}

    @property
    def url(self) -> str:
        """The URL for messages, without user and password."""
        return self._url

    # ------------------------------------------------------------------ calls

    async def put(self, topic: str, messages: Sequence[Message]) -> None:
        """Add messages; see the port."""
        check_topic(topic)
        by_priority: defaultdict[int, list[Message]] = defaultdict(list)
        for message in check_messages(messages):
            by_priority[message.priority].append(message)
        if not messages:
            return
        async with self._transaction() if len(by_priority) > 1 else self._connection() as db:
            for priority, several in by_priority.items():
                names, bodies = [each.id for each in several], [each.body for each in several]
                channel = self._channel(topic)
                await self._do(db, "put", topic, names, bodies, channel, priority)

    async def lease(
        self,
        topics: Sequence[str],
        limit: int,
        ttl: float,
        wait: float = 0.0,
        skip: Collection[str] = (),
    ) -> list[Lease]:
        """Lease messages; see the port."""
        for topic in topics:
            check_topic(topic)
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + wait
        # A transaction whose caller is cancelled may be committed all the same.
        taken, _ = await released_if_cancelled(self, self._take(topics, limit, ttl, skip))
        if taken or wait <= 0:
            return taken
        async with self._listening(topics) as bell:
            while True:
                bell.clear()
                taking = self._take(topics, limit, ttl, skip)
                taken, due = await released_if_cancelled(self, taking)
                left = give_up_at - loop.time()
                if taken or left <= 0:
                    return taken
                try:
                    # Not wait_for: in Python 3.11 it loses a cancellation concurrent with an event.
                    longest = LOOK_AGAIN if self._is_pooled else LONGEST_WAIT
                    async with asyncio.timeout(min(left, longest, *due)):
                        await bell.wait()
                except TimeoutError:
                    pass  # poll, although there was no notification
                await self._listen(topics)  # the connection may have been lost in the meantime

    async def _take(
        self, topics: Sequence[str], limit: int, ttl: float, skip: Collection[str]
    ) -> tuple[list[Lease], list[float]]:
        """Return the leases, and the seconds until leased or delayed messages become ready."""
        taken: list[Lease] = []
        due: list[float] = []
        async with self._transaction() as db:
            for topic in topics:
                await self._do(db, "settle", topic, self._max_deliveries)
                token = f"{uuid.uuid4().hex}-"
                some = limit - len(taken)
                rows = await self._rows(db, "lease", topic, some, float(ttl), token, [*skip])
                taken += [Lease(topic, *row[3:]) for row in sorted(rows, key=lambda row: row[:3])]
                if len(taken) >= limit:
                    break
                await self._forget_turns(db, topic, len(rows))
                ((next_due,),) = await self._rows(db, "next_due", topic)
                if next_due is not None:
                    due.append(max(next_due, 0.0))
        return taken, due

    async def _forget_turns(self, db: Connection, topic: str, found: int) -> None:
        """Delete the turns of a topic from time to time, if no messages wait for one."""
        now = asyncio.get_running_loop().time()
        if not found and now - self._forgot_at.get(topic, -_FORGET) >= _FORGET:
            self._forgot_at[topic] = now
            await self._do(db, "forget_turns", topic)

    async def extend(self, leases: Sequence[Lease], ttl: float) -> list[Lease]:
        """Extend leases; see the port."""
        rows = await self._held(leases, "extend", float(ttl))
        until = {row[0]: row[1] for row in rows}
        extended = [
            each._replace(expires_at=until[each.token]) for each in leases if each.token in until
        ]
        check_held(leases, until, extended)
        return extended

    async def ack(self, leases: Sequence[Lease]) -> None:
        """Delete messages; see the port."""
        check_held(leases, {row[0] for row in await self._held(leases, "ack")})

    async def release(
        self, leases: Sequence[Lease], *, delay: float = 0.0, counted: bool = True
    ) -> None:
        """Make messages available for redelivery; see the port."""
        back = 0 if counted else 1
        rows = await self._held(
            leases, "release", float(delay), back, self._max_deliveries, ring=True
        )
        check_held(leases, {row[0] for row in rows})

    async def _held(
        self, leases: Sequence[Lease], name: str, *values: Any, ring: bool = False
    ) -> list[Any]:
        """Execute a statement for the leases that have not ended; return its rows."""
        if not leases:
            return []
        held = [[each.topic, each.id, each.token] for each in leases]
        # A single statement is its own transaction, with one roundtrip instead of three.
        async with self._transaction() if ring else self._connection() as db:
            columns = map(list, zip(*held, strict=True))
            rows = await self._rows(db, name, *columns, *values)
            for topic in {each.topic for each in leases} if ring else ():
                await self._ring(db, topic)
        return rows

    async def bury(self, leases: Sequence[Lease]) -> None:
        """Keep messages for inspection; see the port."""
        check_held(leases, {row[0] for row in await self._held(leases, "bury")})

    async def remove(self, topic: str, ids: Sequence[str], *, leased: bool = False) -> None:
        """Delete messages; see the port."""
        async with self._settled(topic) as db:
            await self._do(db, "remove", topic, [*ids], leased)

    async def known(self, topic: str, ids: Sequence[str]) -> set[str] | None:
        """Return which of these messages exist; see the port."""
        async with self._connection() as db:
            return {row[0] for row in await self._rows(db, "known", topic, [*ids])}

    async def drop(self, topic: str) -> None:
        """Delete the topic; see the port."""
        async with self._connection() as db:
            await self._do(db, "drop", topic)

    async def buried(self, topic: str, limit: int = 100) -> list[Buried]:
        """Return the buried messages; see the port."""
        async with self._settled(topic) as db:
            return [Buried(topic, *row) for row in await self._rows(db, "buried", topic, limit)]

    async def redrive(self, topic: str, ids: Sequence[str]) -> int:
        """Make buried messages ready; see the port."""
        async with self._transaction() as db:
            rows = await self._rows(db, "redrive", topic, [*ids])
            await self._ring(db, topic)
        return len(rows)

    async def peek(self, topic: str, limit: int = 100) -> list[Message] | None:
        """Return the ready messages; see the port."""
        async with self._settled(topic) as db:
            return [Message(*row) for row in await self._rows(db, "peek", topic, limit)]

    async def topics(self) -> list[str] | None:
        """Return the topics that have messages; see the port."""
        async with self._connection() as db:
            return [row[0] for row in await self._rows(db, "topics")]

    async def announce(self, name: str, body: bytes, ttl: float) -> None:
        """Publish a record of a worker; see the port."""
        async with self._connection() as db:
            if body:
                await self._do(db, "announce", name, body, float(ttl))
            else:
                await self._do(db, "unannounce", name)

    async def announced(self) -> Mapping[str, bytes] | None:
        """Return the unexpired records of workers; see the port."""
        async with self._connection() as db:
            return dict(await self._rows(db, "announced"))

    async def depth(self, topic: str) -> Depth:
        """Return the numbers of messages of the topic; see the port."""
        async with self._settled(topic) as db:
            return Depth(*(await self._rows(db, "depth", topic))[0])

    async def longest_wait(self, topic: str) -> float | None:
        """Return the waiting time of the oldest ready message; see the port."""
        async with self._settled(topic) as db:
            ((found,),) = await self._rows(db, "longest_wait", topic)
        return 0.0 if found is None else max(float(found), 0.0)

    async def close(self) -> None:
        """Close connections; see the port."""
        self._is_open = False
        self._drop_listener()
        await self._close_idle()

    # ------------------------------------------------------------------ waiting

    @staticmethod
    def _channel(topic: str) -> str:
        # A digest, since names of channels are truncated, and topics may differ only at their ends.
        return f"aflow_{hashlib.sha256(topic.encode()).hexdigest()[:24]}"

    async def _ring(self, db: Connection, topic: str) -> None:
        await self._do(db, "ring", self._channel(topic))

    @asynccontextmanager
    async def _listening(self, topics: Sequence[str]) -> AsyncIterator[asyncio.Event]:
        """Yield an event that is set when one of the topics may have new messages."""
        bell = asyncio.Event()
        for topic in topics:
            self._bells.setdefault(self._channel(topic), set()).add(bell)
        try:
            await self._listen(topics)
            yield bell
        finally:
            for topic in topics:
                self._bells[self._channel(topic)].discard(bell)

    async def _listen(self, topics: Sequence[str]) -> None:
        new = {self._channel(topic) for topic in topics}
        if self._is_pooled or (self._listener is not None and new <= self._listened):
            return
        async with self._errors_named(), self._opening:
            try:
                if self._listener is None:
                    self._listener = await self._connect()
                    self._listener.add_notify_handler(lambda each: self._news(each.channel))
                for channel in new - self._listened:
                    await self._listener.execute(f"LISTEN {channel}".encode())
                    self._listened.add(channel)
            except BaseException:
                self._drop_listener()  # its notifications would not be read
                raise
            # The driver reads notifications only while it waits for a response.
            self._watched = self._listener.fileno()
            asyncio.get_running_loop().add_reader(self._watched, self._read_notifications)

    def _read_notifications(self) -> None:
        """Process the notifications that arrived on the listener's connection between commands."""
        assert self._listener is not None, "it is dropped together with its reader"
        try:
            self._listener.pgconn.consume_input()
            while news := self._listener.pgconn.notifies():
                self._news(news.relname.decode())
        except psycopg.OperationalError:
            self._drop_listener()

    def _drop_listener(self) -> None:
        """Close the listener's connection, and wake all waiters, which poll and listen again."""
        listener, self._listener = self._listener, None
        self._listened.clear()
        if listener is not None:
            watched, self._watched = self._watched, None
            if watched is not None:
                asyncio.get_running_loop().remove_reader(watched)
            listener.pgconn.finish()
            for channel in self._bells:
                self._news(channel)

    def _news(self, channel: str) -> None:
        """Wake the calls that wait for the channel."""
        for bell in self._bells.get(channel, ()):
            bell.set()

    # ------------------------------------------------------------------ the server

    async def _do(self, db: Connection, name: str, *values: Any) -> None:
        """Execute a statement. In a pipeline it is only sent; the response is read with that of the
        next statement that returns rows, or at the end."""
        await db.execute(self._statement(name), values, binary=True)

    async def _rows(self, db: Connection, name: str, *values: Any) -> list[Any]:
        cursor = await db.execute(self._statement(name), values, binary=True)
        return await cursor.fetchall()

    @asynccontextmanager
    async def _settled(self, topic: str) -> AsyncIterator[Connection]:
        async with self._transaction() as db:
            await self._do(db, "settle", topic, self._max_deliveries)
            yield db

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Connection]:
        async with self._connection() as db, db.pipeline(), db.transaction():
            yield db

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        async with self._errors_named():
            if not self._is_open:
                await self._open()
            async with self._free:
                db = self._next_idle() or await self._connect()
                try:
                    yield db
                finally:
                    if self._is_open and _is_at_rest(db):
                        self._idle.append(db)
                    else:
                        await db.close()

    def _next_idle(self) -> Connection | None:
        """Return an idle connection; those that the server has closed are dropped."""
        while self._idle:
            db = self._idle.pop()
            if _is_silent(db):
                return db
            db.pgconn.finish()
        return None

    async def _close_idle(self) -> None:
        idle, self._idle = self._idle, []
        for each in idle:
            await each.close()

    async def _connect(self) -> Connection:
        return await psycopg.AsyncConnection.connect(
            autocommit=True,
            cursor_factory=psycopg.AsyncRawCursor,
            prepare_threshold=None if self._is_pooled else 0,
            **self._options,
        )

    def _statement(self, name: str) -> bytes:
        """Return the statement, with the schema of the tables."""
        made = self._sql.get(name)
        if made is None:
            made = self._sql[name] = _SQL[name].replace("{schema}", self._schema).encode()
        return made

    async def _open(self) -> None:
        async with self._opening:
            if self._is_open:
                return
            async with await self._connect() as db, db.transaction():
                db.prepare_threshold = None  # it is not known yet whether there is a pooler
                cursor = await db.execute("SELECT pg_backend_pid(), current_schema()")
                pid, name = (await cursor.fetchall())[0]
                # Poolers report a process id that is not the backend's.
                self._is_pooled = pid != db.info.backend_pid
                await self._make_tables(db, self._schema_name or name)
            self._is_open = True

    async def _make_tables(self, db: Connection, name: str | None) -> None:
        if name is None:
            raise QueueUnavailable(
                f"The queue {self._url} has no schema to put its tables into: name one "
                "by ?schema= in its URL."
            )
        quoted = name.replace('"', '""')
        self._schema, self._sql = f'"{quoted}".', {}
        if not (await self._rows(db, "is_there", name))[0][0]:
            await self._do(db, "lock", _LOCK)
            if not (await self._rows(db, "has_schema", name))[0][0]:
                await db.execute(f'CREATE SCHEMA "{quoted}"'.encode())
            await db.execute(self._statement("tables"))

    @asynccontextmanager
    async def _errors_named(self) -> AsyncIterator[None]:
        try:
            yield
        except psycopg.Error as error:
            state, detail = state_of(error), line(error)
            if state.startswith("28"):
                raise QueueUnavailable(
                    f"The queue {self._url} refuses us ({detail}): correct user and password in "
                    "its URL."
                ) from error
            if state:
                raise QueueUnavailable(
                    f"The queue {self._url} cannot be used: {advice(error) or detail}."
                ) from error
            raise self._no_answer(detail) from error
        except OSError as error:  # includes TimeoutError
            raise self._no_answer(str(error) or type(error).__name__) from error

    def _no_answer(self, detail: str) -> QueueUnavailable:
        return QueueUnavailable(
            f"The queue {self._url} does not answer ({detail}): see whether the server runs, and "
            "has room."
        )


def _is_at_rest(db: Connection) -> bool:
    return not db.closed and db.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


def _is_silent(db: Connection) -> bool:
    """Return whether the server has sent nothing (an error, or the end) since the last use."""
    poll = select.poll()
    poll.register(db.fileno(), select.POLLIN)
    return not poll.poll(0)
