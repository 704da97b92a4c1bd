"""A queue for the processes of one machine: a SQLite file, and a datagram to each waiting process;
or one in memory, for a single process.

Each call is a transaction in a write-ahead log. Messages in a file survive any crash except that of
the machine.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import logging
import os
import socket
import sqlite3
import stat
import uuid
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import finalize

from aflow._core.clock import SystemClock
from aflow._core.private_folders import (
    make_private,
    open_checked,
    open_folder,
    runtime_folder,
)
from aflow._core.sqlite import (
    BUSY_TIMEOUT,
    LeaseClock,
    identity_of,
    one_process_at_a_time,
    url_of,
)
from aflow._core.statements import statements_in
from aflow._core.system import DESCRIPTORS
from aflow.errors import QueueUnavailable, UnsafeFolder
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
    group_of,
    released_if_cancelled,
)

if TYPE_CHECKING:
    from aflow._core.clock import Clock

# Waking the processes of this machine that wait for a queue, with a datagram to each, instead of
# polling.
#
# Each waiter binds a socket in a folder that is named after the queue's path, inside of the user's
# runtime folder (not next to the queue, since addresses of sockets must be short); a `put` sends
# a datagram to all of them. A lost datagram only costs time, since waiters also poll at a low rate.
# Processes without a runtime folder, or with different ones, rely on this polling.


_TRIES = 10
LOOK_AGAIN = 1.0  # seconds after which a waiter polls without having been woken
_log = logging.getLogger("aflow.queue")


class WakeUp:
    """The sockets of the processes that wait for the queue at this path."""

    def __init__(self, path: Path) -> None:
        self._name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
        self._sender: socket.socket | None = None
        self._found: Path | None = None
        self._is_warned = False

    def _folder(self) -> Path:
        """Return the folder of the sockets; raises UnsafeFolder and OSError."""
        if self._found is None:
            self._found = runtime_folder("queues") / self._name
        return self._found

    def ring(self) -> None:
        """Wake all waiters."""
        try:
            folder = open_checked(self._folder())
        except (OSError, UnsafeFolder):  # there is no folder, so there are no waiters
            return
        try:
            for name in os.listdir(folder):
                self._send(folder, name)
        finally:
            os.close(folder)

    def _send(self, folder: int, name: str) -> None:
        if self._sender is None:
            self._sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._sender.setblocking(False)
        try:
            self._sender.sendto(b"!", _address(folder, self._folder(), name))
        except BlockingIOError:
            return  # the buffer of the socket is full, so the waiter will wake up anyway
        except ConnectionRefusedError:  # the waiter was killed without unlinking its socket
            with suppress(OSError):
                # Relative to the checked folder, since its path may have been replaced.
                if stat.S_ISSOCK(os.lstat(name, dir_fd=folder).st_mode):
                    os.unlink(name, dir_fd=folder)
        except OSError:  # the socket was unlinked, or the file is not a socket
            return

    def listen(self) -> Bell:
        """Start to listen for new messages of other processes.

        Returns:
            The bell to wait for: a socket or, if that is impossible, a timer.
        """
        try:
            return self._listen()
        except (OSError, UnsafeFolder) as error:
            if not self._is_warned:
                self._is_warned = True
                _log.warning("New messages are looked for once a second: %s", error)
            return Bell(None, None)

    def _listen(self) -> Bell:
        bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            bell.setblocking(False)
            for _ in range(_TRIES):
                try:
                    path = self._folder() / uuid.uuid4().hex[:16]
                    with open_folder(path.parent) as folder:
                        bell.bind(_address(folder, path.parent, path.name))
                    return Bell(bell, path)
                except FileNotFoundError:  # another waiter or a cleanup has removed the folder
                    self._found = None
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self._name)
        except BaseException:
            bell.close()
            raise

    def close(self) -> None:
        """Close the sending socket. Idempotent."""
        if self._sender is not None:
            self._sender.close()
            self._sender = None


def _address(folder: int, path: Path, name: str) -> str:
    """Return the address of a socket in the open folder: through the folder's descriptor if the
    system supports it, since addresses must be short, and the path may have been replaced."""
    return str(path / name) if DESCRIPTORS is None else f"{DESCRIPTORS}/{folder}/{name}"


class Bell:
    """The listening socket of one waiter; a timer if it has none."""

    def __init__(self, bell: socket.socket | None, path: Path | None) -> None:
        self._bell = bell
        self._path = path

    def clear(self) -> None:
        """Discard all datagrams received so far. Call it before checking for messages."""
        if self._bell is None:
            return
        try:
            while self._bell.recv(16):
                continue
        except BlockingIOError:
            return

    async def wait(self, seconds: float) -> None:
        """Wait for a datagram, at most LOOK_AGAIN seconds.

        Args:
            seconds: Maximum number of seconds to wait.
        """
        seconds = min(seconds, LOOK_AGAIN)
        if self._bell is None:
            await asyncio.sleep(seconds)
            return
        loop = asyncio.get_running_loop()
        try:
            # Not wait_for: in Python 3.11 it loses a cancellation that coincides with the datagram.
            async with asyncio.timeout(seconds):
                await loop.sock_recv(self._bell, 16)
        except TimeoutError:
            return

    def close(self) -> None:
        """Close and unlink the socket. Idempotent."""
        if self._bell is None or self._path is None:
            return
        self._bell.close()
        with suppress(OSError, UnsafeFolder):
            folder = open_checked(self._path.parent)
            try:
                with suppress(FileNotFoundError):
                    os.unlink(self._path.name, dir_fd=folder)
            finally:
                os.close(folder)
            self._path.parent.rmdir()  # fails if there are other waiters


T = TypeVar("T")

_VERSION = 3
# The first process after a boot limits all leases to this. Processes on other machines can still
# hold leases, and renew them; all others must end even if the clock was set back.
_LONGEST_WAIT = 3600.0  # seconds
_SQL = statements_in(Path(__file__).parent / "queries" / "sqlite.sql")


class SqliteQueue(Queue):
    """The queue in the file at `path`, which is created if it does not exist; None for a queue in
    memory, which is lost with this object, and keeps its messages when it is closed."""

    def __init__(
        self,
        path: Path | None = None,
        max_deliveries: int = MAX_DELIVERIES,
        clock: Clock | None = None,
    ) -> None:
        self._path = None if path is None else path.absolute()
        self._max_deliveries = max_deliveries
        self._clock = clock or SystemClock()
        self._leases = LeaseClock(self._clock)
        self._thread: ThreadPoolExecutor | None = None
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None  # which the connection uses
        self._wake_up = WakeUp(self._path or Path(uuid.uuid4().hex))

    @property
    def url(self) -> str:
        """`sqlite:///path`, or `memory:`."""
        return "memory:" if self._path is None else url_of(self._path)

    # ------------------------------------------------------------------ calls

    async def put(self, topic: str, messages: Sequence[Message]) -> None:
        """Add messages; see the port."""
        check_topic(topic)
        if check_messages(messages):
            await self._do(lambda db: self._put(db, topic, messages, self._leases.now()))
            self._wake_up.ring()

    @staticmethod
    def _put(db: sqlite3.Connection, topic: str, messages: Sequence[Message], now: float) -> None:
        groups: defaultdict[tuple[str, int], list[Message]] = defaultdict(list)
        for message in messages:
            groups[group_of(message.id), message.priority].append(message)
        for (group, priority), members in groups.items():
            turn = _turn(db, topic, group, priority)
            step = 1 if group else 0  # messages without a group keep the order of insertion
            rows = [
                (topic, each.id, each.body, priority, turn + step * place, now)
                for place, each in enumerate(members)
            ]
            db.executemany(_SQL["put"], rows)
            if group:
                db.execute(
                    _SQL["note_last_turn"], (topic, group, priority, turn + len(members) - 1)
                )

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
        taken, _ = await self._take(topics, limit, ttl, skip)
        if taken or wait <= 0:
            return taken
        give_up_at = self._clock.monotonic() + wait
        bell = self._wake_up.listen()
        try:
            while True:
                bell.clear()
                taken, due_in = await self._take(topics, limit, ttl, skip)
                left = give_up_at - self._clock.monotonic()
                if taken or left <= 0:
                    return taken
                await bell.wait(min(left, due_in))
        finally:
            bell.close()

    async def _take(
        self, topics: Sequence[str], limit: int, ttl: float, skip: Collection[str]
    ) -> tuple[list[Lease], float]:
        """Return the leases, and the seconds until a leased or delayed message becomes ready."""
        taking = self._do(lambda db: self._taken(db, topics, limit, ttl, skip))
        return await released_if_cancelled(self, taking)

    def _taken(
        self,
        db: sqlite3.Connection,
        topics: Sequence[str],
        limit: int,
        ttl: float,
        skip: Collection[str],
    ) -> tuple[list[Lease], float]:
        now, expires_at = self._leases.now(), self._clock.now() + ttl
        taken: list[Lease] = []
        due = float("inf")
        left_out = json.dumps([*skip])
        for topic in topics:
            self._settle(db, topic, now)
            token = f"{uuid.uuid4().hex}-"
            values = (topic, now + ttl, token, limit - len(taken), left_out)
            rows = sorted(db.execute(_SQL["lease"], values).fetchall())
            taken += [Lease._make((topic, *row[3:], expires_at)) for row in rows]
            if len(taken) >= limit:
                break
            if not rows and not skip:
                db.execute(_SQL["forget_turns"], (topic,))  # no messages wait for a turn
            (next_due,) = db.execute(_SQL["next_due"], (topic,)).fetchone()
            if next_due is not None:
                due = min(due, next_due)
        return taken, max(0.0, due - now)

    def _settle(self, db: sqlite3.Connection, topic: str, now: float) -> None:
        """Make messages whose lease or delay has ended ready, or bury them."""
        (due,) = db.execute(_SQL["next_due"], (topic,)).fetchone()
        if due is not None and due <= now:
            db.execute(_SQL["bury_spent"], (topic, now, self._max_deliveries))
            for state in ("leased", "delayed"):
                db.execute(_SQL[f"come_back_{state}"], (topic, now))

    async def extend(self, leases: Sequence[Lease], ttl: float) -> list[Lease]:
        """Extend leases; see the port."""
        held = await self._held(leases, _SQL["extend"], lambda now: (now + ttl,))
        expires_at = self._clock.now() + ttl
        extended = [each._replace(expires_at=expires_at) for each in leases if each.token in held]
        check_held(leases, held, extended)
        return extended

    async def ack(self, leases: Sequence[Lease]) -> None:
        """Delete messages; see the port."""
        check_held(leases, await self._held(leases, _SQL["ack"], lambda _: ()))

    async def release(
        self, leases: Sequence[Lease], *, delay: float = 0.0, counted: bool = True
    ) -> None:
        """Make messages available for redelivery; see the port."""
        back, state = 0 if counted else 1, "d" if delay > 0 else "r"
        most = self._max_deliveries
        held = await self._held(
            leases, _SQL["release"], lambda now: (now + max(0.0, delay), back, back, most, state)
        )
        self._wake_up.ring()
        check_held(leases, held)

    async def _held(
        self, leases: Sequence[Lease], sql: str, values_at: Callable[[float], tuple[Any, ...]]
    ) -> set[str]:
        """Execute a statement, with the values for the current time, for each lease that has not
        ended; return the tokens of these leases."""

        def do(db: sqlite3.Connection) -> set[str]:
            now = self._leases.now()
            values = values_at(now)
            return {
                lease.token
                for lease in leases
                if db.execute(sql, (*values, lease.topic, lease.id, lease.token, now)).rowcount
            }

        return await self._do(do) if leases else set()

    async def bury(self, leases: Sequence[Lease]) -> None:
        """Keep messages for inspection; see the port."""
        check_held(leases, await self._held(leases, _SQL["bury"], lambda now: (now,)))

    async def remove(self, topic: str, ids: Sequence[str], *, leased: bool = False) -> None:
        """Delete messages; see the port."""

        def remove(db: sqlite3.Connection) -> None:
            now = self._leases.now()
            db.executemany(_SQL["remove"], [(topic, name, now, leased) for name in ids])

        if ids:
            await self._do(remove)

    async def known(self, topic: str, ids: Sequence[str]) -> set[str] | None:
        """Return which of these messages exist; see the port."""
        if not ids:
            return set()
        return await self._do(
            lambda db: {name for name in ids if db.execute(_SQL["known"], (topic, name)).fetchone()}
        )

    async def drop(self, topic: str) -> None:
        """Delete the topic; see the port."""

        def drop(db: sqlite3.Connection) -> None:
            db.execute(_SQL["drop"], (topic,))
            db.execute(_SQL["forget_turns"], (topic,))

        await self._do(drop)

    async def buried(self, topic: str, limit: int = 100) -> list[Buried]:
        """Return the buried messages; see the port."""

        def find(db: sqlite3.Connection) -> list[Any]:
            self._settle(db, topic, self._leases.now())
            return db.execute(_SQL["buried"], (topic, limit)).fetchall()

        found = await self._do(find)
        ahead = self._clock.now() - self._leases.now()
        return [Buried._make((topic, *row, at + ahead)) for *row, at in found]

    async def redrive(self, topic: str, ids: Sequence[str]) -> int:
        """Make buried messages ready; see the port."""

        def redrive(db: sqlite3.Connection) -> int:
            now = self._leases.now()
            return sum(db.execute(_SQL["redrive"], (now, topic, name)).rowcount for name in ids)

        redriven = await self._do(redrive)
        self._wake_up.ring()
        return redriven

    async def peek(self, topic: str, limit: int = 100) -> list[Message] | None:
        """Return the ready messages; see the port."""

        def find(db: sqlite3.Connection) -> list[Any]:
            self._settle(db, topic, self._leases.now())
            return db.execute(_SQL["peek"], (topic, limit)).fetchall()

        return [Message(*row) for row in await self._do(find)]

    async def topics(self) -> list[str] | None:
        """Return the topics that have messages; see the port."""
        found = await self._do(lambda db: db.execute(_SQL["topics"]).fetchall())
        return [topic for (topic,) in found]

    async def depth(self, topic: str) -> Depth:
        """Return the numbers of messages of the topic; see the port."""

        def count(db: sqlite3.Connection) -> dict[str, int]:
            self._settle(db, topic, self._leases.now())
            return dict(db.execute(_SQL["depth"], (topic,)).fetchall())

        found = await self._do(count)
        ready = found.get("r", 0) + found.get("d", 0)
        return Depth(ready, found.get("l", 0), found.get("b", 0))

    async def longest_wait(self, topic: str) -> float | None:
        """Return the waiting time of the oldest ready message; see the port."""

        def find(db: sqlite3.Connection) -> float:
            now = self._leases.now()
            self._settle(db, topic, now)
            (since,) = db.execute(_SQL["ready_since"], (topic,)).fetchone()
            return 0.0 if since is None else max(now - float(since), 0.0)

        return await self._do(find)

    async def announce(self, name: str, body: bytes, ttl: float) -> None:
        """Publish a record of a worker; see the port."""
        await self._do(
            lambda db: db.execute(
                _SQL["announce"], (name, body, self._leases.now() + ttl if body else -1e99)
            )
        )

    async def announced(self) -> Mapping[str, bytes] | None:
        """Return the unexpired records of workers; see the port."""

        def find(db: sqlite3.Connection) -> list[Any]:
            db.execute(_SQL["expire_workers"], (self._leases.now(),))
            return db.execute(_SQL["announced"]).fetchall()

        return dict(await self._do(find))

    async def close(self) -> None:
        """Close the file; see the port."""
        self._wake_up.close()
        thread, self._thread = self._thread, None
        if thread is not None:
            await asyncio.get_running_loop().run_in_executor(thread, self._disconnect)
            thread.shutdown(wait=False)

    # ------------------------------------------------------------------ the file

    async def _do(self, what: Callable[[sqlite3.Connection], T]) -> T:
        """Call `what` in a transaction, in the thread that owns the connection."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "aflow-queue")
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._transact, what)

    def _transact(self, what: Callable[[sqlite3.Connection], T]) -> T:
        with self._errors_named():
            if self._path is not None and identity_of(self._path) != self._file:
                self._disconnect()  # the file was deleted or replaced: its messages are lost
                self._leases.forget()
            if self._connection is None:
                self._connection = self._connect()
                self._file = None if self._path is None else identity_of(self._path)
            db = self._connection

            def shorten() -> None:
                for table in ("messages", "workers"):
                    db.execute(_SQL[f"shorten_{table}"], (self._leases.now() + _LONGEST_WAIT,))

            with self._leases.transaction(db, shorten):
                return what(db)

    def _connect(self) -> sqlite3.Connection:
        path = self._path
        if path is not None:
            make_private(path.parent)
        db = sqlite3.connect(
            path or ":memory:", timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
        )
        if path is None:
            finalize(self, db.close)
            self._prepare(db)
            return db
        try:
            db.execute("PRAGMA synchronous = NORMAL")
            with one_process_at_a_time(path):
                if path.stat().st_size == 0:
                    db.execute("PRAGMA journal_mode = WAL")
                self._prepare(db)
        except BaseException:
            db.close()
            raise
        return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        """Create the tables, or those that an earlier version did not have."""
        (version,) = db.execute("PRAGMA user_version").fetchone()
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master")]
        if tables and "messages" not in tables:
            raise QueueUnavailable(
                f"The queue in {self._path} cannot be used: it is a database of something else; "
                "name another file."
            )
        if version > _VERSION:
            raise QueueUnavailable(
                f"The queue in {self._path} was made by a newer aflow: upgrade this one."
            )
        if version < _VERSION:
            names = ["lease_clocks"] if version == 2 else ["schema", "lease_clocks"]
            missing = "".join(_SQL[name] for name in names)
            db.executescript(
                f"BEGIN IMMEDIATE; {missing} PRAGMA user_version = {_VERSION}; COMMIT;"
            )

    def _disconnect(self) -> None:
        if self._connection is not None and self._path is not None:
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
                f"The queue in {self._path or 'memory'} cannot be used: {error}. Check that its "
                "folder is there, may be written, and has room."
            ) from error


def _turn(db: sqlite3.Connection, topic: str, group: str, priority: int) -> int:
    """Return the turn of a group's next message: the turn that is being delivered or, if the
    group's last message is still waiting, the turn after that. So groups take turns, and a group
    with few messages is served soon."""
    found = db.execute(_SQL["present_turn"], (topic, priority)).fetchone()
    now = int(found[0]) if found else 0
    last = db.execute(_SQL["last_turn"], (topic, group, priority)).fetchone() if group else None
    if last and db.execute(_SQL["is_ready"], (topic, priority, *last, group)).fetchone():
        return max(now, int(last[0]) + 1)
    return now
