"""A queue in PostgreSQL: one table, rows that are skipped while others lock them, and NOTIFY.

Times are the server's. Who waits listens on a channel of the topic on one connection, which all
that wait share; when that is lost, they look and listen anew. What was put survives what the
database survives.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from aflow.errors import InvalidSetting, LeaseLost, MissingExtra, QueueUnavailable
from aflow.queue.base import (
    MAX_DELIVERIES,
    Buried,
    Depth,
    Lease,
    Message,
    check_messages,
    check_topic,
)

try:
    import asyncpg
except ImportError as error:
    raise MissingExtra(
        "A queue in PostgreSQL needs the package asyncpg: install aflow-runtime[postgres]."
    ) from error

CONNECTIONS = 8
LONGEST_WAIT = 10.0  # seconds after which who waits looks without having been notified
_LOCK = 0x61666C6F77  # "aflow": of the advisory lock under which the table is made

# `state` is r(eady), l(eased) or b(uried); `due` (seconds since the epoch) when a lease or a delay
# ends, of buried ones when they were buried.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS aflow_messages (
    number BIGSERIAL PRIMARY KEY,
    topic TEXT NOT NULL,
    id TEXT NOT NULL,
    body BYTEA NOT NULL,
    state "char" NOT NULL DEFAULT 'r',
    due DOUBLE PRECISION NOT NULL DEFAULT 0,
    token TEXT,
    deliveries INTEGER NOT NULL DEFAULT 0,
    UNIQUE (topic, id)
);
CREATE INDEX IF NOT EXISTS aflow_messages_ready ON aflow_messages (topic, number) WHERE state = 'r';
CREATE INDEX IF NOT EXISTS aflow_messages_due ON aflow_messages (topic, state, due);
"""
_NOW = "extract(epoch FROM clock_timestamp())::float8"
_PUT = """WITH put AS (
    INSERT INTO aflow_messages (topic, id, body)
    SELECT $1, id, body FROM unnest($2::text[], $3::bytea[]) AS put (id, body)
    ON CONFLICT DO NOTHING
) SELECT pg_notify($4, '')"""
_SETTLE = f"""UPDATE aflow_messages SET token = NULL,
state = CASE WHEN deliveries >= $2 THEN 'b'::"char" ELSE 'r'::"char" END,
due = CASE WHEN deliveries >= $2 THEN {_NOW} ELSE 0 END
WHERE number IN (
    SELECT number FROM aflow_messages WHERE topic = $1 AND state = 'l' AND due <= {_NOW}
    ORDER BY due LIMIT 1000 FOR UPDATE SKIP LOCKED
)"""  # noqa: S608 -- constants
_LEASE = f"""UPDATE aflow_messages AS m
SET state = 'l', due = {_NOW} + $3, token = $4 || m.number, deliveries = deliveries + 1
FROM (
    SELECT number FROM aflow_messages WHERE topic = $1 AND state = 'r' AND due <= {_NOW}
    ORDER BY number LIMIT $2 FOR UPDATE SKIP LOCKED
) AS chosen
WHERE m.number = chosen.number
RETURNING m.number, m.id, m.token, m.body, m.deliveries, m.due"""  # noqa: S608 -- constants
_NEXT_DUE = f"""SELECT min(due) - {_NOW} FROM aflow_messages
WHERE topic = $1 AND (state = 'l' OR state = 'r' AND due > 0)"""  # noqa: S608 -- constants
_HELD = f"""FROM unnest($1::text[], $2::text[], $3::text[]) AS held (topic, id, token)
WHERE m.topic = held.topic AND m.id = held.id AND m.token = held.token AND m.state = 'l'
AND m.due > {_NOW}"""
_EXTEND = f"UPDATE aflow_messages AS m SET due = {_NOW} + $4 {_HELD} RETURNING m.token, m.due"  # noqa: S608
_ACK = f"DELETE FROM aflow_messages AS m USING {_HELD[5:]} RETURNING m.token"  # noqa: S608
_RELEASE = f"""UPDATE aflow_messages AS m SET token = NULL, deliveries = m.deliveries - $5,
state = CASE WHEN m.deliveries - $5 >= $6 THEN 'b'::"char" ELSE 'r'::"char" END,
due = CASE WHEN m.deliveries - $5 >= $6 THEN {_NOW} WHEN $4 > 0 THEN {_NOW} + $4 ELSE 0 END
{_HELD} RETURNING held.token"""  # noqa: S608 -- constants
_REMOVE = """DELETE FROM aflow_messages
WHERE topic = $1 AND id = ANY ($2::text[]) AND state <> 'l'"""
_BURIED = """SELECT id, body, deliveries, due FROM aflow_messages
WHERE topic = $1 AND state = 'b' ORDER BY due, number LIMIT $2"""
_DEPTH = """SELECT count(*) FILTER (WHERE state = 'r'), count(*) FILTER (WHERE state = 'l'),
count(*) FILTER (WHERE state = 'b') FROM aflow_messages WHERE topic = $1"""

_AWAY = (
    OSError,
    TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # its connection was cut in the middle of a call
)


class PostgresQueue:
    """The queue in the database at `postgresql://user:password@host:port/name`."""

    def __init__(self, url: str, max_deliveries: int = MAX_DELIVERIES) -> None:
        parts = urlsplit(url)
        if not parts.hostname or not parts.path.strip("/"):
            raise InvalidSetting(
                f"{_shown(url)} is no place of a queue: use postgresql://user@host:port/database."
            )
        self._dsn = url
        self._url = _shown(url)
        self._max_deliveries = max_deliveries
        self._pool: Any = None
        self._listener: Any = None
        self._opening = asyncio.Lock()
        self._bells: dict[str, set[asyncio.Event]] = {}

    @property
    def url(self) -> str:
        """Where it is, without user and password."""
        return self._url

    # ------------------------------------------------------------------ calls

    async def put(self, topic: str, messages: Sequence[Message]) -> None:
        """Add messages; see the port."""
        check_topic(topic)
        names = [message.id for message in check_messages(messages)]
        if not names:
            return
        bodies = [message.body for message in messages]
        async with self._connection() as db:
            await db.execute(_PUT, topic, names, bodies, self._channel(topic))

    async def lease(
        self, topics: Sequence[str], limit: int, ttl: float, wait: float = 0.0
    ) -> list[Lease]:
        """Up to `limit` messages; see the port."""
        for topic in topics:
            check_topic(topic)
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + wait
        taken, _ = await self._take(topics, limit, ttl)
        if taken or wait <= 0:
            return taken
        async with self._listening(topics) as bell:
            while True:
                bell.clear()
                taken, due = await self._take(topics, limit, ttl)
                left = give_up_at - loop.time()
                if taken or left <= 0:
                    return taken
                try:
                    # Not wait_for: in Python 3.11 it loses a cancellation that comes with a ring.
                    async with asyncio.timeout(min(left, LONGEST_WAIT, *due)):
                        await bell.wait()
                except TimeoutError:
                    await self._listen(topics)  # the connection may have been lost meanwhile

    async def _take(
        self, topics: Sequence[str], limit: int, ttl: float
    ) -> tuple[list[Lease], list[float]]:
        """Leases, and in how many seconds there may be more."""
        taken: list[Lease] = []
        due: list[float] = []
        async with self._transaction() as db:
            for topic in topics:
                await db.execute(_SETTLE, topic, self._max_deliveries)
                token = f"{uuid.uuid4().hex}-"
                rows = await db.fetch(_LEASE, topic, limit - len(taken), ttl, token)
                taken += [Lease(topic, *row[1:]) for row in sorted(rows, key=lambda row: row[0])]
                if len(taken) >= limit:
                    break
                next_due = await db.fetchval(_NEXT_DUE, topic)
                if next_due is not None:
                    due.append(max(next_due, 0.0))
        return taken, due

    async def extend(self, leases: Sequence[Lease], ttl: float) -> list[Lease]:
        """Keep leases for longer; see the port."""
        rows = await self._held(leases, _EXTEND, ttl)
        until = {row[0]: row[1] for row in rows}
        extended = [
            each._replace(expires_at=until[each.token]) for each in leases if each.token in until
        ]
        _check(leases, until, extended)
        return extended

    async def ack(self, leases: Sequence[Lease]) -> None:
        """The messages are done with; see the port."""
        _check(leases, {row[0] for row in await self._held(leases, _ACK)})

    async def release(
        self, leases: Sequence[Lease], *, delay: float = 0.0, counted: bool = True
    ) -> None:
        """Give messages back; see the port."""
        back = 0 if counted else 1
        rows = await self._held(
            leases, _RELEASE, float(delay), back, self._max_deliveries, ring=True
        )
        _check(leases, {row[0] for row in rows})

    async def _held(
        self, leases: Sequence[Lease], sql: str, *values: Any, ring: bool = False
    ) -> list[Any]:
        """Do it to the messages of the leases that have not ended; what it returns."""
        if not leases:
            return []
        columns = [[each.topic, each.id, each.token] for each in leases]
        # One statement is a transaction of its own, and one message to the server instead of three.
        async with self._transaction() if ring else self._connection() as db:
            rows: list[Any] = await db.fetch(sql, *map(list, zip(*columns, strict=True)), *values)
            for topic in {each.topic for each in leases} if ring else ():
                await self._ring(db, topic)
        return rows

    async def remove(self, topic: str, ids: Sequence[str]) -> None:
        """Forget messages; see the port."""
        async with self._settled(topic) as db:
            await db.execute(_REMOVE, topic, [*ids])

    async def buried(self, topic: str, limit: int = 100) -> list[Buried]:
        """The buried messages; see the port."""
        async with self._settled(topic) as db:
            return [Buried(topic, *row) for row in await db.fetch(_BURIED, topic, limit)]

    async def depth(self, topic: str) -> Depth:
        """How many messages the topic has; see the port."""
        async with self._settled(topic) as db:
            return Depth(*await db.fetchrow(_DEPTH, topic))

    async def close(self) -> None:
        """Let go of connections; see the port."""
        pool, self._pool = self._pool, None
        listener, self._listener = self._listener, None
        if listener is not None and not listener.is_closed():
            await listener.close(timeout=5)
        if pool is not None:
            await pool.close()

    # ------------------------------------------------------------------ waiting

    @staticmethod
    def _channel(topic: str) -> str:
        # Names of channels are short, and topics may differ at their end alone.
        return f"aflow_{hashlib.sha256(topic.encode()).hexdigest()[:24]}"

    async def _ring(self, db: Any, topic: str) -> None:
        await db.execute("SELECT pg_notify($1, '')", self._channel(topic))

    @asynccontextmanager
    async def _listening(self, topics: Sequence[str]) -> AsyncIterator[asyncio.Event]:
        """An event that is set when there is news of one of the topics."""
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
        async with self._errors_named(), self._opening:
            if self._listener is None or self._listener.is_closed():
                self._listener = await asyncpg.connect(self._dsn, timeout=10)
                self._listener.add_termination_listener(lambda _: self._news(None))
                self._heard: set[str] = set()
            for channel in {self._channel(topic) for topic in topics} - self._heard:
                await self._listener.add_listener(channel, lambda *news: self._news(news[2]))
                self._heard.add(channel)

    def _news(self, channel: str | None) -> None:
        """Wake who waits for the channel; all, if the connection has been lost."""
        for each in [channel] if channel is not None else [*self._bells]:
            for bell in self._bells.get(each, ()):
                bell.set()

    # ------------------------------------------------------------------ the server

    @asynccontextmanager
    async def _settled(self, topic: str) -> AsyncIterator[Any]:
        async with self._transaction() as db:
            await db.execute(_SETTLE, topic, self._max_deliveries)
            yield db

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Any]:
        async with self._connection() as db, db.transaction():
            yield db

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        async with self._errors_named():
            if self._pool is None:
                await self._open()
            async with self._pool.acquire() as db:
                yield db

    async def _open(self) -> None:
        async with self._opening:
            if self._pool is None:
                pool = await asyncpg.create_pool(
                    self._dsn, min_size=0, max_size=CONNECTIONS, timeout=10, reset=_as_it_is
                )
                try:
                    async with pool.acquire() as db, db.transaction():
                        await db.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
                        await db.execute(_SCHEMA)
                except BaseException:
                    pool.terminate()
                    raise
                self._pool = pool

    @asynccontextmanager
    async def _errors_named(self) -> AsyncIterator[None]:
        try:
            yield
        except asyncpg.InvalidAuthorizationSpecificationError as error:
            raise QueueUnavailable(
                f"The queue {self._url} refuses us ({error}): correct user and password in its URL."
            ) from error
        except _AWAY as error:
            told = str(error) or type(error).__name__
            raise QueueUnavailable(
                f"The queue {self._url} does not answer ({told}): see whether the server runs, and "
                "has room."
            ) from error


async def _as_it_is(connection: Any) -> None:
    """Nothing is put back between two users of a connection: neither changes anything of it."""


def _shown(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _check(leases: Sequence[Lease], held: Any, extended: Sequence[Lease] = ()) -> None:
    lost = [each.id for each in leases if each.token not in held]
    if lost:
        raise LeaseLost.of(lost, extended)
