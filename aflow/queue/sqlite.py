"""A queue for the processes of one machine: a SQLite file, and a datagram to whoever waits.

Write-ahead log; a transaction per call. What was put survives any crash but that of the machine.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from aflow.clock import SystemClock
from aflow.errors import LeaseLost, QueueUnavailable
from aflow.queue.base import (
    MAX_DELIVERIES,
    Buried,
    Depth,
    Lease,
    Message,
    check_messages,
    check_topic,
)
from aflow.queue.wakeup import WakeUp

if TYPE_CHECKING:
    from aflow.clock import Clock

T = TypeVar("T")

BUSY_TIMEOUT = 30.0  # seconds to wait for another process's transaction

# `state` is r(eady), l(eased) or b(uried); `due` when a lease or a delay ends.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS messages (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    topic TEXT NOT NULL,
    id TEXT NOT NULL,
    body BLOB NOT NULL,
    state TEXT NOT NULL DEFAULT 'r',
    due REAL NOT NULL DEFAULT 0,
    token TEXT,
    deliveries INTEGER NOT NULL DEFAULT 0,
    UNIQUE (topic, id)
) STRICT;
CREATE INDEX IF NOT EXISTS by_state ON messages (topic, state, due, number);
"""
_PUT = "INSERT INTO messages (topic, id, body) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
_BURY = """UPDATE messages SET state = 'b', token = NULL
WHERE topic = ?1 AND state = 'l' AND due <= ?2 AND deliveries >= ?3"""
_COME_BACK = """UPDATE messages SET state = 'r', token = NULL
WHERE topic = ?1 AND state = 'l' AND due <= ?2"""
_LEASE = """UPDATE messages
SET state = 'l', due = ?3, token = ?4 || number, deliveries = deliveries + 1
WHERE number IN (
    SELECT number FROM messages WHERE topic = ?1 AND state = 'r' AND due <= ?2
    ORDER BY due, number LIMIT ?5
) RETURNING number, id, token, body, deliveries, due"""
_NEXT_DUE = "SELECT min(due) FROM messages WHERE topic = ? AND state IN ('r', 'l')"
_HELD = "topic = ? AND id = ? AND token = ? AND state = 'l' AND due > ?"
_EXTEND = f"UPDATE messages SET due = ? WHERE {_HELD}"  # noqa: S608 -- a constant
_ACK = f"DELETE FROM messages WHERE {_HELD}"  # noqa: S608 -- a constant
_RELEASE = f"""UPDATE messages SET token = NULL, due = ?, deliveries = deliveries - ?,
state = CASE WHEN deliveries - ? >= ? THEN 'b' ELSE 'r' END WHERE {_HELD}"""  # noqa: S608
_REMOVE = "DELETE FROM messages WHERE topic = ? AND id = ? AND (state <> 'l' OR due <= ?)"
_BURIED = """SELECT id, body, deliveries, due FROM messages WHERE topic = ? AND state = 'b'
ORDER BY due, number LIMIT ?"""
_DEPTH = "SELECT state, count(*) FROM messages WHERE topic = ? GROUP BY state"


class SqliteQueue:
    """The queue in the file at `path`, which is made if it is not there."""

    def __init__(
        self, path: Path, max_deliveries: int = MAX_DELIVERIES, clock: Clock | None = None
    ) -> None:
        self._path = path.absolute()
        self._max_deliveries = max_deliveries
        self._clock = clock or SystemClock()
        self._thread: ThreadPoolExecutor | None = None
        self._connection: sqlite3.Connection | None = None
        self._wake_up = WakeUp(self._path)

    @property
    def url(self) -> str:
        """`sqlite:///path`"""
        return "sqlite:///" + self._path.as_uri().removeprefix("file://")

    # ------------------------------------------------------------------ calls

    async def put(self, topic: str, messages: Sequence[Message]) -> None:
        """Add messages; see the port."""
        check_topic(topic)
        rows = [(topic, message.id, message.body) for message in check_messages(messages)]
        if rows:
            await self._do(lambda db: db.executemany(_PUT, rows))
            self._wake_up.ring()

    async def lease(
        self, topics: Sequence[str], limit: int, ttl: float, wait: float = 0.0
    ) -> list[Lease]:
        """Up to `limit` messages; see the port."""
        for topic in topics:
            check_topic(topic)
        taken, _ = await self._take_or_give_back(topics, limit, ttl)
        if taken or wait <= 0:
            return taken
        return await self._wait(topics, limit, ttl, self._clock.monotonic() + wait)

    async def _wait(
        self, topics: Sequence[str], limit: int, ttl: float, give_up_at: float
    ) -> list[Lease]:
        bell = self._wake_up.listen()
        try:
            while True:
                bell.clear()
                taken, due = await self._take_or_give_back(topics, limit, ttl)
                left = give_up_at - self._clock.monotonic()
                if taken or left <= 0:
                    return taken
                if due is not None:
                    left = min(left, max(0.0, due - self._clock.now()))
                await bell.wait(left)
        finally:
            bell.close()

    async def _take_or_give_back(
        self, topics: Sequence[str], limit: int, ttl: float
    ) -> tuple[list[Lease], float | None]:
        """The same as `_take`; what it took for somebody who is cancelled meanwhile goes back."""
        taking = self._begin(lambda db: self._take(db, topics, limit, ttl))
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            taken, _ = await taking
            await self.release(taken, counted=False)
            raise

    def _take(
        self, db: sqlite3.Connection, topics: Sequence[str], limit: int, ttl: float
    ) -> tuple[list[Lease], float | None]:
        """Leases, and when there may be more if there are none."""
        now = self._clock.now()
        taken: list[Lease] = []
        due: float | None = None
        for topic in topics:
            db.execute(_BURY, (topic, now, self._max_deliveries))
            db.execute(_COME_BACK, (topic, now))
            values = (topic, now, now + ttl, f"{uuid.uuid4().hex}-", limit - len(taken))
            rows = sorted(db.execute(_LEASE, values).fetchall())
            taken += [Lease(topic, *row[1:]) for row in rows]
            if len(taken) >= limit:
                break
            (next_due,) = db.execute(_NEXT_DUE, (topic,)).fetchone()
            if next_due is not None:
                due = next_due if due is None else min(due, next_due)
        return taken, due

    async def extend(self, leases: Sequence[Lease], ttl: float) -> list[Lease]:
        """Keep leases for longer; see the port."""
        until = self._clock.now() + ttl
        held = await self._held(leases, _EXTEND, (until,))
        extended = [lease._replace(expires_at=until) for lease in held]
        self._check(leases, held, extended)
        return extended

    async def ack(self, leases: Sequence[Lease]) -> None:
        """The messages are done with; see the port."""
        self._check(leases, await self._held(leases, _ACK, ()))

    async def release(
        self, leases: Sequence[Lease], *, delay: float = 0.0, counted: bool = True
    ) -> None:
        """Give messages back; see the port."""
        back = 0 if counted else 1
        due = self._clock.now() + delay if delay > 0 else 0.0
        held = await self._held(leases, _RELEASE, (due, back, back, self._max_deliveries))
        self._wake_up.ring()
        self._check(leases, held)

    async def _held(
        self, leases: Sequence[Lease], sql: str, values: tuple[Any, ...]
    ) -> list[Lease]:
        """Do it to the messages of the leases that have not ended: those leases."""
        now = self._clock.now()

        def do(db: sqlite3.Connection) -> list[Lease]:
            return [
                lease
                for lease in leases
                if db.execute(sql, (*values, lease.topic, lease.id, lease.token, now)).rowcount
            ]

        return await self._do(do) if leases else []

    @staticmethod
    def _check(
        leases: Sequence[Lease], held: Sequence[Lease], extended: Sequence[Lease] = ()
    ) -> None:
        tokens = {lease.token for lease in held}
        lost = [lease.id for lease in leases if lease.token not in tokens]
        if lost:
            raise LeaseLost.of(lost, extended)

    async def remove(self, topic: str, ids: Sequence[str]) -> None:
        """Forget messages; see the port."""
        now = self._clock.now()
        rows = [(topic, name, now) for name in ids]
        if rows:
            await self._do(lambda db: db.executemany(_REMOVE, rows))

    async def buried(self, topic: str, limit: int = 100) -> list[Buried]:
        """The buried messages; see the port."""

        def find(db: sqlite3.Connection) -> list[Any]:
            db.execute(_BURY, (topic, self._clock.now(), self._max_deliveries))
            return db.execute(_BURIED, (topic, limit)).fetchall()

        return [Buried(topic, *row) for row in await self._do(find)]

    async def depth(self, topic: str) -> Depth:
        """How many messages the topic has; see the port."""

        def count(db: sqlite3.Connection) -> dict[str, int]:
            now = self._clock.now()
            db.execute(_BURY, (topic, now, self._max_deliveries))
            db.execute(_COME_BACK, (topic, now))
            return dict(db.execute(_DEPTH, (topic,)).fetchall())

        found = await self._do(count)
        return Depth(found.get("r", 0), found.get("l", 0), found.get("b", 0))

    async def close(self) -> None:
        """Let go of the file; see the port."""
        self._wake_up.close()
        thread, self._thread = self._thread, None
        if thread is not None:
            await asyncio.get_running_loop().run_in_executor(thread, self._disconnect)
            thread.shutdown(wait=False)

    # ------------------------------------------------------------------ the file

    async def _do(self, what: Callable[[sqlite3.Connection], T]) -> T:
        """One transaction, in the thread that has the connection."""
        return await self._begin(what)

    def _begin(self, what: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "aflow-queue")
        return asyncio.get_running_loop().run_in_executor(self._thread, self._transact, what)

    def _transact(self, what: Callable[[sqlite3.Connection], T]) -> T:
        with self._errors_named():
            if self._connection is None:
                self._connection = self._connect()
            db = self._connection
            db.execute("BEGIN IMMEDIATE")
            try:
                answer = what(db)
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")
            return answer

    def _connect(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(
            self._path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
        )
        db.execute("PRAGMA synchronous = NORMAL")
        # One process at a time: SQLite turns others away at once while it gets its log.
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            if self._path.stat().st_size == 0:
                db.execute("PRAGMA journal_mode = WAL")
                db.executescript(_SCHEMA)
        finally:
            os.close(folder)
        return db

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.OperationalError, sqlite3.DatabaseError) as error:
            if isinstance(error, sqlite3.ProgrammingError | sqlite3.IntegrityError):
                raise
            raise QueueUnavailable(
                f"The queue in {self._path} cannot be used: {error}. Check that its folder is "
                "there, may be written, and has room."
            ) from error
