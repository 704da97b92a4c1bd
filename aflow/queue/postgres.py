"""A queue in PostgreSQL: one table, rows that are skipped while others lock them, and NOTIFY.

Times are the server's. A waiting call listens on a channel of the topic on one connection, which
all that wait share; when that is lost, they look and listen again. What was put survives what the
database survives.

Behind a pooler that hands each transaction to another connection (PgBouncer with
pool_mode=transaction), statements are not prepared, each call is a transaction of its own, tables
are named with their schema, and waiters look once a second, since a LISTEN would be another's.
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
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from aflow._core.postgres import SETTINGS, advice, line, psycopg, state_of
from aflow._core.secret import as_mentioned, revealed, sealed, without_account
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
)

CONNECTIONS = 8
LONGEST_WAIT = 10.0  # seconds after which a waiter looks without having been notified
LOOK_AGAIN = 1.0  # the same, where it cannot be notified
_FORGET = 60.0  # seconds between looks at what can be forgotten of a topic
_LOCK = 0x61666C6F77  # "aflow": of the advisory lock under which the table is made

# `state` is r(eady), d(elayed), l(eased) or b(uried); `due` (seconds since the epoch) when a lease
# or a delay ends, or when a message was buried, or became ready. The lowest `turn` goes first: see
# _PUT.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS {schema}aflow_messages (
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
DROP INDEX IF EXISTS {schema}aflow_messages_ready;
DROP INDEX IF EXISTS {schema}aflow_messages_due;
ALTER TABLE {schema}aflow_messages ADD COLUMN IF NOT EXISTS priority INTEGER NOT NULL DEFAULT 0;
ALTER TABLE {schema}aflow_messages ADD COLUMN IF NOT EXISTS turn BIGINT NOT NULL DEFAULT 0;
UPDATE {schema}aflow_messages SET state = 'd' WHERE state = 'r' AND due > 0;
CREATE INDEX IF NOT EXISTS aflow_messages_turn
    ON {schema}aflow_messages (topic, priority DESC, turn, number) WHERE state = 'r';
CREATE INDEX IF NOT EXISTS aflow_messages_timed
    ON {schema}aflow_messages (topic, state, due) WHERE state <> 'r';
CREATE TABLE IF NOT EXISTS {schema}aflow_turns (
    topic TEXT NOT NULL,
    grp TEXT NOT NULL,
    priority INTEGER NOT NULL,
    last BIGINT NOT NULL,
    PRIMARY KEY (topic, grp, priority)
);
CREATE TABLE IF NOT EXISTS {schema}aflow_workers (
    name TEXT PRIMARY KEY, body BYTEA NOT NULL, until DOUBLE PRECISION NOT NULL
)
"""
# Whether that has been done: two of its parts, the last of them.
_IS_THERE = """SELECT count(*) = 2 FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname IN ('aflow_messages_timed', 'aflow_workers')"""
_HAS_SCHEMA = "SELECT count(*) = 1 FROM pg_catalog.pg_namespace WHERE nspname = $1"
_NOW = "extract(epoch FROM clock_timestamp())::float8"
_GROUP = "CASE WHEN strpos(id, ':') > 0 THEN split_part(id, ':', 1) ELSE '' END"
# A group's next message has the turn that is being handed out; or, while the group's last message
# waits, the one after that. So groups take turns. Those of no group come in the order of their
# numbers.
_PUT = f"""WITH put AS (
    SELECT id, body, {_GROUP} AS grp, place
    FROM unnest($2::text[], $3::bytea[]) WITH ORDINALITY AS put (id, body, place)
), new AS (
    SELECT *, CASE WHEN grp = '' THEN 0
        ELSE row_number() OVER (PARTITION BY grp ORDER BY place) - 1 END AS step
    FROM put
), present AS (
    SELECT coalesce((
        SELECT turn FROM {{schema}}aflow_messages
        WHERE topic = $1 AND state = 'r' AND priority = $5 ORDER BY turn LIMIT 1
    ), 0) AS turn
), begun AS (
    SELECT groups.grp, groups.steps, greatest(present.turn, coalesce((
        SELECT t.last + 1 FROM {{schema}}aflow_turns AS t
        WHERE t.topic = $1 AND t.grp = groups.grp AND t.priority = $5 AND EXISTS (
            SELECT FROM {{schema}}aflow_messages AS m
            WHERE m.topic = $1 AND m.state = 'r' AND m.priority = $5 AND m.turn = t.last
            AND starts_with(m.id, t.grp || ':')
        )
    ), 0)) AS turn
    FROM (SELECT grp, max(step) AS steps FROM new GROUP BY grp) AS groups, present
), noted AS (
    INSERT INTO {{schema}}aflow_turns (topic, grp, priority, last)
    SELECT $1, grp, $5, turn + steps FROM begun WHERE grp <> ''
    ON CONFLICT (topic, grp, priority) DO UPDATE SET last = excluded.last
), inserted AS (
    INSERT INTO {{schema}}aflow_messages (topic, id, body, priority, turn, due)
    SELECT $1, new.id, new.body, $5, begun.turn + new.step, {_NOW} FROM new JOIN begun USING (grp)
    ORDER BY new.place
    ON CONFLICT DO NOTHING
) SELECT pg_notify($4, '')"""  # noqa: S608 -- constants
_FIRST = """coalesce((SELECT o.turn FROM {schema}aflow_messages AS o WHERE o.topic = m.topic
AND o.state = 'r' AND o.priority = m.priority ORDER BY o.turn LIMIT 1), 0)"""
_SETTLE = f"""UPDATE {{schema}}aflow_messages AS m SET token = NULL, turn = {_FIRST},
state = CASE WHEN state = 'l' AND deliveries >= $2 THEN 'b'::"char" ELSE 'r'::"char" END,
due = {_NOW}
WHERE number IN (
    SELECT number FROM {{schema}}aflow_messages
    WHERE topic = $1 AND state IN ('l', 'd') AND state <> 'r' AND due <= {_NOW}
    ORDER BY due LIMIT 1000 FOR UPDATE SKIP LOCKED
)"""  # noqa: S608 -- constants
_LEASE = f"""UPDATE {{schema}}aflow_messages AS m
SET state = 'l', due = {_NOW} + $3, token = $4 || m.number, deliveries = deliveries + 1
FROM (
    SELECT number FROM {{schema}}aflow_messages
    WHERE topic = $1 AND state = 'r' AND (cardinality($5::text[]) = 0 OR {_GROUP} <> ALL ($5))
    ORDER BY priority DESC, turn, number LIMIT $2 FOR UPDATE SKIP LOCKED
) AS chosen
WHERE m.number = chosen.number
RETURNING -m.priority, m.turn, m.number, m.id, m.token, m.body, m.deliveries, m.due"""  # noqa: S608
_NEXT_DUE = f"""SELECT min(due) - {_NOW} FROM {{schema}}aflow_messages
WHERE topic = $1 AND state IN ('l', 'd') AND state <> 'r'"""  # noqa: S608 -- constants
_FORGET_TURNS = "DELETE FROM {schema}aflow_turns WHERE topic = $1"
_HELD = f"""FROM unnest($1::text[], $2::text[], $3::text[]) AS held (topic, id, token)
WHERE m.topic = held.topic AND m.id = held.id AND m.token = held.token AND m.state = 'l'
AND m.due > {_NOW}"""
_EXTEND = f"""UPDATE {{schema}}aflow_messages AS m SET due = {_NOW} + $4 {_HELD}
RETURNING m.token, m.due"""  # noqa: S608 -- constants
_ACK = f"DELETE FROM {{schema}}aflow_messages AS m USING {_HELD[5:]} RETURNING m.token"  # noqa: S608
_RELEASE = f"""UPDATE {{schema}}aflow_messages AS m
SET token = NULL, deliveries = m.deliveries - $5, turn = {_FIRST},
state = CASE WHEN m.deliveries - $5 >= $6 THEN 'b' WHEN $4 > 0 THEN 'd' ELSE 'r' END::"char",
due = {_NOW} + CASE WHEN m.deliveries - $5 < $6 AND $4 > 0 THEN $4 ELSE 0 END
{_HELD} RETURNING held.token"""  # noqa: S608 -- constants
_BURY_THESE = f"""UPDATE {{schema}}aflow_messages AS m SET token = NULL, state = 'b', due = {_NOW}
{_HELD} RETURNING held.token"""  # noqa: S608 -- constants
_REMOVE = """DELETE FROM {schema}aflow_messages
WHERE topic = $1 AND id = ANY ($2::text[]) AND (state <> 'l' OR $3)"""
_KNOWN = "SELECT id FROM {schema}aflow_messages WHERE topic = $1 AND id = ANY ($2::text[])"
_DROP = """WITH turns AS (DELETE FROM {schema}aflow_turns WHERE topic = $1)
DELETE FROM {schema}aflow_messages WHERE topic = $1"""
_BURIED = """SELECT id, body, deliveries, due FROM {schema}aflow_messages
WHERE topic = $1 AND state = 'b' ORDER BY due, number LIMIT $2"""
_REDRIVE = f"""UPDATE {{schema}}aflow_messages AS m
SET state = 'r', due = {_NOW}, deliveries = 0, turn = {_FIRST}
WHERE topic = $1 AND id = ANY ($2::text[]) AND state = 'b' RETURNING id"""  # noqa: S608 -- constants
_PEEK = """SELECT id, body FROM {schema}aflow_messages WHERE topic = $1 AND state = 'r'
ORDER BY priority DESC, turn, number LIMIT $2"""
_TOPICS = "SELECT DISTINCT topic FROM {schema}aflow_messages ORDER BY topic"
_DEPTH = """SELECT count(*) FILTER (WHERE state IN ('r', 'd')),
count(*) FILTER (WHERE state = 'l'), count(*) FILTER (WHERE state = 'b')
FROM {schema}aflow_messages WHERE topic = $1"""
_LONGEST_WAIT = f"""SELECT {_NOW} - min(due) FROM {{schema}}aflow_messages
WHERE topic = $1 AND state = 'r' AND due > 0"""  # noqa: S608 -- constants
_ANNOUNCE = f"""INSERT INTO {{schema}}aflow_workers (name, body, until)
VALUES ($1, $2, {_NOW} + $3)
ON CONFLICT (name) DO UPDATE SET body = excluded.body, until = excluded.until"""  # noqa: S608
_UNANNOUNCE = "DELETE FROM {schema}aflow_workers WHERE name = $1"
_ANNOUNCED = f"""WITH gone AS (
    DELETE FROM {{schema}}aflow_workers WHERE until < {_NOW} - 3600
) SELECT name, body FROM {{schema}}aflow_workers WHERE until > {_NOW}"""  # noqa: S608 -- constants

Connection = psycopg.AsyncConnection[Any]


class PostgresQueue(Queue):
    """The queue in the database at `postgresql://user:password@host:port/name`."""

    def __init__(self, url: str, max_deliveries: int = MAX_DELIVERIES) -> None:
        refused = InvalidSetting(
            f"{as_mentioned(url)} is not a place of a queue: use "
            "postgresql://user@host:port/database, and ?schema=name for tables in another schema "
            "than the user's own."
        )
        try:
            parts = urlsplit(revealed(sealed(url)))
            is_place = parts.hostname and parts.path.strip("/") and parts.port != 0
        except ValueError:  # the port is not a number, or too large for one; an open bracket
            raise refused from None
        options = parse_qsl(parts.query, keep_blank_values=True)
        given = dict(options).get("schema")
        if not is_place or not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", given or "_"):
            raise refused
        self._url = without_account(url)
        rest = urlencode([each for each in options if each[0] != "schema"])
        self._dsn = urlunsplit(parts._replace(query=rest))
        self._schema_name = given  # None: the one that the user's search_path begins with
        self._schema = ""  # as it stands before names of tables, with its dot
        self._is_pooled = False  # each transaction may be another connection's
        self._sql: dict[str, bytes] = {}
        self._max_deliveries = max_deliveries
        self._is_open = False
        self._idle: list[Connection] = []
        self._free = asyncio.Semaphore(CONNECTIONS)
        self._listener: Connection | None = None
        self._listened: set[str] = set()  # channels that the listener listens on
        self._opening = asyncio.Lock()
        self._bells: dict[str, set[asyncio.Event]] = {}
        self._forgot_at: dict[str, float] = {}

    @property
    def url(self) -> str:
        """Where it is, without user and password."""
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
                await self._do(db, _PUT, topic, names, bodies, channel, priority)

    async def lease(
        self,
        topics: Sequence[str],
        limit: int,
        ttl: float,
        wait: float = 0.0,
        skip: Collection[str] = (),
    ) -> list[Lease]:
        """Up to `limit` messages; see the port."""
        for topic in topics:
            check_topic(topic)
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + wait
        taken, _ = await self._take(topics, limit, ttl, skip)
        if taken or wait <= 0:
            return taken
        async with self._listening(topics) as bell:
            while True:
                bell.clear()
                taken, due = await self._take(topics, limit, ttl, skip)
                left = give_up_at - loop.time()
                if taken or left <= 0:
                    return taken
                try:
                    # Not wait_for: in Python 3.11 it loses a cancellation that comes with a ring.
                    longest = LOOK_AGAIN if self._is_pooled else LONGEST_WAIT
                    async with asyncio.timeout(min(left, longest, *due)):
                        await bell.wait()
                except TimeoutError:
                    pass  # nobody has notified us: look whether there is something all the same
                await self._listen(topics)  # the connection may have been lost meanwhile

    async def _take(
        self, topics: Sequence[str], limit: int, ttl: float, skip: Collection[str]
    ) -> tuple[list[Lease], list[float]]:
        """Leases, and in how many seconds there may be more."""
        taken: list[Lease] = []
        due: list[float] = []
        async with self._transaction() as db:
            for topic in topics:
                await self._do(db, _SETTLE, topic, self._max_deliveries)
                token = f"{uuid.uuid4().hex}-"
                some = limit - len(taken)
                rows = await self._rows(db, _LEASE, topic, some, float(ttl), token, [*skip])
                taken += [Lease(topic, *row[3:]) for row in sorted(rows, key=lambda row: row[:3])]
                if len(taken) >= limit:
                    break
                await self._forget_turns(db, topic, len(rows))
                ((next_due,),) = await self._rows(db, _NEXT_DUE, topic)
                if next_due is not None:
                    due.append(max(next_due, 0.0))
        return taken, due

    async def _forget_turns(self, db: Connection, topic: str, found: int) -> None:
        """Forget whose turn it was, now and then, where nobody waits for one."""
        now = asyncio.get_running_loop().time()
        if not found and now - self._forgot_at.get(topic, -_FORGET) >= _FORGET:
            self._forgot_at[topic] = now
            await self._do(db, _FORGET_TURNS, topic)

    async def extend(self, leases: Sequence[Lease], ttl: float) -> list[Lease]:
        """Keep leases for longer; see the port."""
        rows = await self._held(leases, _EXTEND, float(ttl))
        until = {row[0]: row[1] for row in rows}
        extended = [
            each._replace(expires_at=until[each.token]) for each in leases if each.token in until
        ]
        check_held(leases, until, extended)
        return extended

    async def ack(self, leases: Sequence[Lease]) -> None:
        """The messages are done with; see the port."""
        check_held(leases, {row[0] for row in await self._held(leases, _ACK)})

    async def release(
        self, leases: Sequence[Lease], *, delay: float = 0.0, counted: bool = True
    ) -> None:
        """Give messages back; see the port."""
        back = 0 if counted else 1
        rows = await self._held(
            leases, _RELEASE, float(delay), back, self._max_deliveries, ring=True
        )
        check_held(leases, {row[0] for row in rows})

    async def _held(
        self, leases: Sequence[Lease], sql: str, *values: Any, ring: bool = False
    ) -> list[Any]:
        """Do it to the messages of the leases that have not ended; what it returns."""
        if not leases:
            return []
        held = [[each.topic, each.id, each.token] for each in leases]
        # One statement is a transaction of its own, and one message to the server instead of three.
        async with self._transaction() if ring else self._connection() as db:
            columns = map(list, zip(*held, strict=True))
            rows = await self._rows(db, sql, *columns, *values)
            for topic in {each.topic for each in leases} if ring else ():
                await self._ring(db, topic)
        return rows

    async def bury(self, leases: Sequence[Lease]) -> None:
        """Keep messages to be looked at; see the port."""
        check_held(leases, {row[0] for row in await self._held(leases, _BURY_THESE)})

    async def remove(self, topic: str, ids: Sequence[str], *, leased: bool = False) -> None:
        """Forget messages; see the port."""
        async with self._settled(topic) as db:
            await self._do(db, _REMOVE, topic, [*ids], leased)

    async def known(self, topic: str, ids: Sequence[str]) -> set[str] | None:
        """Which of these there are; see the port."""
        async with self._connection() as db:
            return {row[0] for row in await self._rows(db, _KNOWN, topic, [*ids])}

    async def drop(self, topic: str) -> None:
        """Forget the topic; see the port."""
        async with self._connection() as db:
            await self._do(db, _DROP, topic)

    async def buried(self, topic: str, limit: int = 100) -> list[Buried]:
        """The buried messages; see the port."""
        async with self._settled(topic) as db:
            return [Buried(topic, *row) for row in await self._rows(db, _BURIED, topic, limit)]

    async def redrive(self, topic: str, ids: Sequence[str]) -> int:
        """Make buried messages ready; see the port."""
        async with self._transaction() as db:
            rows = await self._rows(db, _REDRIVE, topic, [*ids])
            await self._ring(db, topic)
        return len(rows)

    async def peek(self, topic: str, limit: int = 100) -> list[Message] | None:
        """The messages that are ready; see the port."""
        async with self._settled(topic) as db:
            return [Message(*row) for row in await self._rows(db, _PEEK, topic, limit)]

    async def topics(self) -> list[str] | None:
        """The topics that have messages; see the port."""
        async with self._connection() as db:
            return [row[0] for row in await self._rows(db, _TOPICS)]

    async def announce(self, name: str, body: bytes, ttl: float) -> None:
        """Let others see this of a worker; see the port."""
        async with self._connection() as db:
            if body:
                await self._do(db, _ANNOUNCE, name, body, float(ttl))
            else:
                await self._do(db, _UNANNOUNCE, name)

    async def announced(self) -> Mapping[str, bytes] | None:
        """What workers have announced; see the port."""
        async with self._connection() as db:
            return dict(await self._rows(db, _ANNOUNCED))

    async def depth(self, topic: str) -> Depth:
        """How many messages the topic has; see the port."""
        async with self._settled(topic) as db:
            return Depth(*(await self._rows(db, _DEPTH, topic))[0])

    async def longest_wait(self, topic: str) -> float | None:
        """How long the oldest message waits; see the port."""
        async with self._settled(topic) as db:
            ((found,),) = await self._rows(db, _LONGEST_WAIT, topic)
        return 0.0 if found is None else max(float(found), 0.0)

    async def close(self) -> None:
        """Release connections; see the port."""
        self._is_open = False
        self._drop_listener()
        await self._close_idle()

    # ------------------------------------------------------------------ waiting

    @staticmethod
    def _channel(topic: str) -> str:
        # Names of channels are short, and topics may differ at their end alone.
        return f"aflow_{hashlib.sha256(topic.encode()).hexdigest()[:24]}"

    async def _ring(self, db: Connection, topic: str) -> None:
        await self._do(db, "SELECT pg_notify($1, '')", self._channel(topic))

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
                self._drop_listener()  # nobody reads what comes by it
                raise
            # The driver itself hears of news while it waits for an answer alone.
            asyncio.get_running_loop().add_reader(self._listener.fileno(), self._read_notifications)

    def _read_notifications(self) -> None:
        """Take in what came on the listener's connection between two commands."""
        assert self._listener is not None, "it is dropped together with its reader"
        try:
            self._listener.pgconn.consume_input()
            while news := self._listener.pgconn.notifies():
                self._news(news.relname.decode())
        except psycopg.OperationalError:
            self._drop_listener()

    def _drop_listener(self) -> None:
        """Close its connection, and wake all that wait: they look, and listen again."""
        listener, self._listener = self._listener, None
        self._listened.clear()
        if listener is not None:
            if not listener.closed:
                asyncio.get_running_loop().remove_reader(listener.fileno())
            listener.pgconn.finish()
            for channel in self._bells:
                self._news(channel)

    def _news(self, channel: str) -> None:
        """Wake the calls that wait for the channel."""
        for bell in self._bells.get(channel, ()):
            bell.set()

    # ------------------------------------------------------------------ the server

    async def _do(self, db: Connection, sql: str, *values: Any) -> None:
        """Execute a statement. In a transaction it is only sent: the answer comes with that of the
        next one that has rows, or with the end."""
        await db.execute(self._of(sql), values, binary=True)

    async def _rows(self, db: Connection, sql: str, *values: Any) -> list[Any]:
        cursor = await db.execute(self._of(sql), values, binary=True)
        return await cursor.fetchall()

    @asynccontextmanager
    async def _settled(self, topic: str) -> AsyncIterator[Connection]:
        async with self._transaction() as db:
            await self._do(db, _SETTLE, topic, self._max_deliveries)
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
        """A connection that nobody uses; those that the server has closed meanwhile are dropped."""
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
            self._dsn,
            autocommit=True,
            cursor_factory=psycopg.AsyncRawCursor,
            prepare_threshold=None if self._is_pooled else 0,
            **SETTINGS,
        )

    def _of(self, sql: str) -> bytes:
        """The statement, with the schema that the tables are in."""
        made = self._sql.get(sql)
        if made is None:
            made = self._sql[sql] = sql.replace("{schema}", self._schema).encode()
        return made

    async def _open(self) -> None:
        async with self._opening:
            if self._is_open:
                return
            async with await self._connect() as db, db.transaction():
                db.prepare_threshold = None  # whether there is a pooler is not known yet
                cursor = await db.execute("SELECT pg_backend_pid(), current_schema()")
                pid, name = (await cursor.fetchall())[0]
                # A pooler between us and the server gives its clients numbers of its own for the
                # process that serves them.
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
        if not (await self._rows(db, _IS_THERE, name))[0][0]:
            await self._do(db, "SELECT pg_advisory_xact_lock($1)", _LOCK)
            if not (await self._rows(db, _HAS_SCHEMA, name))[0][0]:
                await db.execute(f'CREATE SCHEMA "{quoted}"'.encode())
            await db.execute(self._of(_SCHEMA))

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
        except OSError as error:  # TimeoutError is one
            raise self._no_answer(str(error) or type(error).__name__) from error

    def _no_answer(self, detail: str) -> QueueUnavailable:
        return QueueUnavailable(
            f"The queue {self._url} does not answer ({detail}): see whether the server runs, and "
            "has room."
        )


def _is_at_rest(db: Connection) -> bool:
    return not db.closed and db.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


def _is_silent(db: Connection) -> bool:
    """Whether the server has sent nothing since the connection was last used: an error, the end."""
    poll = select.poll()
    poll.register(db.fileno(), select.POLLIN)
    return not poll.poll(0)
