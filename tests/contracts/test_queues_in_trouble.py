"""Queues whose broker becomes unavailable, denies access, or contains invalid messages."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path

import psycopg
import pytest
from redis import Redis

from aflow._core import sqlite as files
from aflow.errors import InvalidSetting, QueueUnavailable
from aflow.metadata.base import Batch
from aflow.metadata.postgres import PostgresMetadata
from aflow.queue.base import Lease, Message, Queue
from aflow.queue.factory import open_queue
from aflow.queue.sqlite import SqliteQueue
from tests.contracts.metadata_stores import a_run
from tests.support.clocks import FakeClock
from tests.support.servers import (
    Server,
    free_port,
    new_database,
    pgbouncer,
    postgres_for_one,
    redis_server,
)
from tests.support.waiting import select_nothing

pytestmark = pytest.mark.asyncio
WAIT = 20.0
Broker = tuple[Server, str, signal.Signals]  # how to crash it comes last


@pytest.mark.parametrize(
    ("url", "reported"),
    [
        ("amqp://host", "'amqp' is not a kind of queue"),
        ("queue.db", "not a kind of queue"),
        ("redis://host?colour=red", "not a place of a queue"),
        ("redis://host:port/0", "not a place of a queue"),
        ("redis://host:99999/0", "not a place of a queue"),
        ("redis://host/main", "db is a number"),
        ("redis://host/0/1", "not a place of a queue"),
        ("redis+sentinel://host:26379", "not a place of a queue"),
        ("redis+sentinel://host/name", "not a place of a queue"),
        ("sqs+http://[::1/prefix", "not a place of a queue"),
        ("postgresql://host", "not a place of a queue"),
        ("postgresql://host:99999/name", "not a place of a queue"),
        ("postgresql://a..b/name", "not a place of a queue"),
        ("postgresql://host/name?colour=red", "not a place of a queue"),
        ("postgresql://host:port/name", "not a place of a queue"),
        ("postgresql://host/name?schema=a-b", "not a place of a queue"),
        ("sqlite:relative", "names no path"),
    ],
)
async def test_what_is_no_queue_is_refused_in_a_sentence(url: str, reported: str) -> None:
    with pytest.raises(InvalidSetting, match=reported):
        open_queue(url)


@pytest.mark.parametrize("scheme", ["redis", "postgresql"])
async def test_a_broker_that_is_not_there_is_named_without_its_password(scheme: str) -> None:
    queue = open_queue(f"{scheme}://me:secret@127.0.0.1:{free_port()}/0")
    with pytest.raises(QueueUnavailable, match="does not answer") as caught:
        await queue.put("t", [Message("a", b"")])
    assert "secret" not in str(caught.value)
    assert "secret" not in queue.url
    await queue.close()


async def test_wrong_credentials_are_refused_in_a_sentence(
    postgres_server: Server, tmp_path: Path
) -> None:
    redis = redis_server(tmp_path, "--requirepass", "right")
    try:
        with new_database(postgres_server) as url:
            for wrong in (
                url.replace("secret", "wrong"),
                f"redis://:wrong@127.0.0.1:{redis.port}/0",
            ):
                queue = open_queue(wrong)
                with pytest.raises(QueueUnavailable, match="correct user and password"):
                    await queue.lease(["t"], 1, 1.0)
                await queue.close()
    finally:
        redis.kill()


@contextmanager
def _redis(folder: Path) -> Iterator[Broker]:
    server = redis_server(folder)
    try:
        yield server, f"redis://127.0.0.1:{server.port}/0", signal.SIGKILL
    finally:
        server.kill()


@contextmanager
def _postgres(folder: Path) -> Iterator[Broker]:
    with postgres_for_one() as server, new_database(server) as url:
        # A crash as well, but its children are gone after it: they keep a new one from starting.
        yield server, url, signal.SIGQUIT


@pytest.mark.parametrize("broker", [_redis, _postgres])
async def test_a_broker_that_is_killed_and_comes_back_has_lost_nothing(
    broker: Callable[[Path], AbstractContextManager[Broker]], tmp_path: Path
) -> None:
    with broker(tmp_path) as (server, url, crash):
        queue = open_queue(url)
        await queue.put("t", [Message(name, b"") for name in "abc"])
        (held,) = await queue.lease(["t"], 1, 60.0)
        waiting = asyncio.create_task(queue.lease(["empty"], 1, 60.0, WAIT))
        await asyncio.sleep(0)
        server.kill(crash)

        with pytest.raises(QueueUnavailable):
            await queue.put("t", [Message("d", b"")])
        with pytest.raises(QueueUnavailable):
            await waiting
        server.start()

        await queue.ack([held])
        assert ["b", "c"] == [each.id for each in await queue.lease(["t"], 9, 60.0)]
        await queue.close()


async def test_who_waits_for_messages_goes_on_after_the_loss_of_the_connection_that_listens(
    postgres_server: Server,
) -> None:
    with new_database(postgres_server) as url:
        queue, other = open_queue(url), open_queue(url)
        for name in "abc":
            waiting = asyncio.create_task(queue.lease(["t"], 1, 60.0, WAIT))
            while queue._watched is None:  # type: ignore[attr-defined]
                await asyncio.sleep(0)
            async with other._connection() as db:  # type: ignore[attr-defined]
                await db.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND query LIKE 'LISTEN %'"
                )
            await other.put("t", [Message(name, b"")])
            found = await waiting
            assert [name] == [each.id for each in found]
            await queue.ack(found)
        await queue.close()
        await other.close()


async def test_connections_that_the_server_drops_are_made_anew(postgres_server: Server) -> None:
    with new_database(postgres_server) as url:
        queue = open_queue(url)
        await queue.put("t", [Message("a", b"")])
        waiting = asyncio.create_task(queue.lease(["u"], 1, 60.0, WAIT))
        await asyncio.sleep(0)
        other = open_queue(url)
        async with other._transaction() as db:  # type: ignore[attr-defined]
            await db.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        await other.put("u", [Message("b", b"")])

        try:
            found = await waiting
        except QueueUnavailable:  # it was in the middle of a call
            found = await queue.lease(["u"], 1, 60.0, WAIT)
        assert ["b"] == [each.id for each in found]
        await queue.close()
        await other.close()


async def test_a_file_that_is_no_queue_is_named(tmp_path: Path) -> None:
    (tmp_path / "queue.db").write_text("nothing of the kind, and long enough to be read " * 10)
    queue = SqliteQueue(tmp_path / "queue.db")
    with pytest.raises(QueueUnavailable, match=r"queue\.db cannot be used"):
        await queue.put("t", [Message("a", b"")])
    await queue.close()
    (tmp_path / "queue.db").unlink()
    db = sqlite3.connect(tmp_path / "queue.db")
    db.execute("CREATE TABLE photos (name TEXT)")
    with pytest.raises(QueueUnavailable, match="a database of something else"):
        await queue.put("t", [Message("a", b"")])
    await queue.close()
    assert [("photos",)] == db.execute("SELECT name FROM sqlite_master").fetchall()
    db.close()


async def test_clients_of_a_file_that_is_deleted_or_replaced_meet_in_the_new_one(
    tmp_path: Path,
) -> None:
    queue, other = (SqliteQueue(tmp_path / "queue.db") for _ in range(2))
    for name in "abc":
        await queue.put("t", [Message(name, b"")])
        assert {name} == await other.known("t", ["a", "b", "c"])
        for file in tmp_path.iterdir():
            file.unlink()
    waiting = asyncio.create_task(queue.lease(["t"], 1, 60.0, WAIT))
    await other.put("t", [Message("d", b"")])
    assert ["d"] == [each.id for each in await waiting]
    await queue.close()
    await other.close()


async def test_a_lease_that_is_cancelled_while_the_file_is_locked_raises_the_cancellation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aflow.queue.sqlite.BUSY_TIMEOUT", 0.1)
    queue = SqliteQueue(tmp_path / "queue.db")
    await queue.put("t", [Message("a", b"")])
    holder = sqlite3.connect(tmp_path / "queue.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    waiting = asyncio.create_task(queue.lease(["t"], 1, 60.0, WAIT))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    holder.close()
    assert ["a"] == [each.id for each in await queue.lease(["t"], 1, 60.0)]
    await queue.close()


@pytest.mark.parametrize("hours", [-100.0, -1.0, 1.0])
async def test_leases_of_a_queue_in_a_file_end_in_time_though_the_clock_is_set(
    tmp_path: Path, hours: float
) -> None:
    clock = FakeClock()
    dead = SqliteQueue(tmp_path / "queue.db", clock=clock)
    await dead.put("t", messages("a", "b"))
    await dead.announce("worker", b"here", 60.0)
    _, given_back = await dead.lease(["t"], 2, 60.0)
    await dead.release([given_back], delay=60.0)
    clock.jump(hours * 3600)
    queue = SqliteQueue(tmp_path / "queue.db", clock=clock)

    clock.advance(59.0)
    assert [] == await queue.lease(["t"], 2, 60.0)
    assert ["worker"] == [*(await queue.announced() or ())]
    clock.advance(2.0)
    assert ["a", "b"] == sorted(each.id for each in await queue.lease(["t"], 2, 60.0))
    assert {} == await queue.announced()
    for each in (dead, queue):
        await each.close()


async def test_after_a_start_of_the_machine_with_an_earlier_time_leases_in_a_file_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = FakeClock(2_000_000_000.0), FakeClock(1_000.0)
    queue = SqliteQueue(tmp_path / "queue.db", clock=before)
    await queue.put("t", messages("a"))
    await queue.lease(["t"], 1, 60.0)
    await queue.close()
    monkeypatch.setattr(files, "monotonic_domain", lambda: "another start of the machine")

    queue = SqliteQueue(tmp_path / "queue.db", clock=after)
    assert [] == await queue.lease(["t"], 1, 60.0)
    after.advance(3601.0)
    assert ["a"] == [each.id for each in await queue.lease(["t"], 1, 60.0)]
    await queue.close()


def messages(*names: str) -> list[Message]:
    return [Message(name, b"") for name in names]


@pytest.fixture
def short_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        yield Path(name)


async def test_a_queue_in_a_file_wakes_waiters_and_removes_nothing_but_dead_sockets(
    tmp_path: Path, short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = short_folder  # names of sockets are short
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(session))
    queue, other = (SqliteQueue(tmp_path / "queue.db") for _ in range(2))
    waiting = asyncio.ensure_future(queue.lease(["t"], 1, 60, WAIT))
    while not (sockets := [path for path in session.rglob("*") if path.is_socket()]):
        await asyncio.to_thread(select_nothing, 0.01)
    folder = sockets[0].parent
    (folder / "thesis.tex").write_text("precious")
    (folder / "link").symlink_to(folder / "thesis.tex")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead:
        dead.bind(str(folder / "dead"))

    await other.put("t", [Message("a", b"")])
    assert ["a"] == [lease.id for lease in await waiting]

    assert {"thesis.tex", "link"} == {path.name for path in folder.iterdir()}
    for each in (queue, other):
        await each.close()


async def test_a_queue_in_a_file_whose_wake_ups_are_another_s_looks_for_messages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    session = tmp_path / "session"
    session.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(session))
    (session / "aflow").mkdir()
    (session / "aflow").chmod(0o777)
    queue, other = (SqliteQueue(tmp_path / "queue.db") for _ in range(2))
    waiting = asyncio.ensure_future(queue.lease(["t"], 1, 60, WAIT))
    while "open to other users" not in caplog.text:
        await asyncio.to_thread(select_nothing, 0.01)
    await other.put("t", [Message("a", b"")])

    assert ["a"] == [lease.id for lease in await waiting]
    assert [] == [*(session / "aflow").iterdir()]
    for each in (queue, other):
        await each.close()


# ------------------------------------------------------------------ Redis


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Queue]:
    queue = open_queue(url)
    try:
        yield queue
    finally:
        await queue.close()


def ids(leases: list[Lease]) -> list[str]:
    return [each.id for each in leases]


async def test_a_server_that_has_become_a_replica_is_left_and_asked_again(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for each in folders:
        each.mkdir()
    server, other = (redis_server(each) for each in folders)
    admin = Redis(port=server.port)
    try:
        async with opened(f"redis://127.0.0.1:{server.port}/0") as queue:
            await queue.put("t", [Message("a", b"")])
            waiting = asyncio.ensure_future(queue.lease(["empty"], 1, 60, WAIT))
            while not (before := {c["id"] for c in admin.client_list() if c["cmd"] == "blpop"}):
                await asyncio.to_thread(select_nothing, 0.01)
            admin.execute_command("REPLICAOF", "127.0.0.1", other.port)

            with pytest.raises(QueueUnavailable, match="is a replica, or is being made one"):
                await queue.put("t", [Message("b", b"")])
            with pytest.raises(QueueUnavailable):
                await waiting
            while before & {each["id"] for each in admin.client_list()}:
                await asyncio.to_thread(select_nothing, 0.01)

            admin.execute_command("REPLICAOF", "NO", "ONE")
            await queue.put("t", [Message("c", b"")])
    finally:
        admin.close()
        server.kill()
        other.kill()


async def test_what_was_evicted_is_not_handed_out_and_can_be_put_again(tmp_path: Path) -> None:
    server = redis_server(tmp_path, "--maxmemory-policy", "allkeys-lru")
    admin = Redis(port=server.port)
    try:
        async with opened(f"redis://127.0.0.1:{server.port}/0") as queue:
            for gone in ("body", "ready", "count", "turn"):
                await queue.put("t", [Message(name, name.encode()) for name in ("g:1", "g:2")])
                await queue.lease(["t"], 1, 0.01)
                admin.delete(f"{{aflow:t}}:{gone}")
                known = await queue.known("t", ["g:1", "g:2"])
                assert known is not None
                found = [each for _ in range(3) for each in await queue.lease(["t"], 1, 60, 0.1)]
                assert all(each.body == each.id.encode() for each in found), gone
                await queue.put("t", [Message(name, name.encode()) for name in ("g:1", "g:2")])
                found += await queue.lease(["t"], 5, 60)
                assert ["g:1", "g:2"] == sorted({each.id for each in found}), gone
                await queue.drop("t")
    finally:
        admin.close()
        server.kill()


async def test_a_server_that_may_forget_messages_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = redis_server(tmp_path, "--maxmemory-policy", "allkeys-lru")
    try:
        async with opened(f"redis://127.0.0.1:{server.port}/0") as queue:
            for _ in range(2):
                await queue.depth("t")
        assert 1 == caplog.text.count("set maxmemory-policy to noeviction")
    finally:
        server.kill()


async def filled(queue: Queue) -> None:
    await queue.put("t", [Message("a", bytes(2_000_000))])
    await queue.put("t", [Message("b", b"")])


async def test_a_wrong_database_a_full_server_and_a_cluster_are_named(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for each in folders:
        each.mkdir()
    server = redis_server(folders[0], "--maxmemory", "1mb")
    of_bus = str(free_port())
    cluster = redis_server(folders[1], "--cluster-enabled", "yes", "--cluster-port", of_bus)
    try:
        for url, reported in (
            (f"redis://127.0.0.1:{server.port}/99", "has no database of that number"),
            (f"redis://127.0.0.1:{server.port}/0", "is full"),
            (
                f"redis://127.0.0.1:{cluster.port}/0",
                "a Redis Cluster, which aflow does not",
            ),
        ):
            async with opened(url) as queue:
                with pytest.raises(QueueUnavailable, match=reported):
                    await filled(queue)
    finally:
        server.kill()
        cluster.kill()


async def test_sentinels_are_asked_for_the_primary(tmp_path: Path) -> None:
    server = redis_server(tmp_path)
    port = free_port()
    (tmp_path / "sentinel").mkdir()
    config = tmp_path / "sentinel" / "sentinel.conf"
    config.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {tmp_path}/sentinel\n"
        f"sentinel monitor primary 127.0.0.1 {server.port} 1\n"
    )
    program = shutil.which("redis-server")
    assert program is not None
    command = [program, str(config), "--sentinel"]
    sentinel = Server("sentinel", command, port, tmp_path / "sentinel.log").start()
    try:
        places = f"127.0.0.1:{free_port()},127.0.0.1:{port}"
        async with opened(f"redis+sentinel://{places}/primary/3?prefix=p") as queue:
            waiting = asyncio.ensure_future(queue.lease(["t"], 1, 60, WAIT))
            await queue.put("t", [Message("a", b"")])
            assert ["a"] == ids(await waiting)
        admin = Redis(port=server.port, db=3)
        assert admin.exists("{p:t}:body")
        admin.close()
        async with opened(f"redis+sentinel://127.0.0.1:{port}/nobody") as queue:
            with pytest.raises(QueueUnavailable, match="nobody"):
                await queue.depth("t")
    finally:
        sentinel.kill()
        server.kill()


# ------------------------------------------------------------------ PostgreSQL behind a pooler


async def test_messages_and_metadata_pass_through_a_pooler_of_transactions(
    postgres_server: Server,
) -> None:
    with new_database(postgres_server) as direct, pgbouncer(direct) as url:
        users = [open_queue(each) for each in (url, url, url, f"{url}?schema=other")]

        async def work(number: int, queue: Queue) -> set[str]:
            mine = [Message(f"g{number}:{each}", b"x", each % 2) for each in range(40)]
            await queue.put(f"t{number}", mine)
            done: set[str] = set()
            while leases := await queue.lease([f"t{number}"], 7, 60, 0.0):
                await queue.extend(leases, 60)
                await queue.release(leases[:1], counted=False)
                await queue.ack(leases[1:] or await queue.lease([f"t{number}"], 1, 60))
                done.update(ids(leases))
                await queue.announce(f"worker-{number}", b"here", 60)
            assert tuple(await queue.depth(f"t{number}")) == (0, 0, 0)
            return done

        found = await asyncio.gather(*(work(number, each) for number, each in enumerate(users)))
        assert [40] * 4 == [len(each) for each in found]
        assert {"worker-0", "worker-1", "worker-2"} == set(await users[0].announced() or ())
        waiting = asyncio.ensure_future(users[0].lease(["later"], 1, 60, WAIT))
        await users[1].put("later", [Message("a", b"")])
        assert ["a"] == ids(await waiting)
        for each in users:
            await each.close()

        def record(number: int) -> None:
            store = PostgresMetadata(url)
            for each in range(20):
                run = store.create_run(a_run(run=f"{number}-{each}"), b"", "owner", 10.0)
                store.commit(run.key, 0, Batch(events=b"\x90"))
                assert store.acquire_lease(run.key, "owner", 10.0, 0.0).mine
            store.close()

        await asyncio.gather(*(asyncio.to_thread(record, number) for number in range(3)))
        store = PostgresMetadata(direct, read_only=True)
        assert 60 == sum(1 for _ in store.runs("Flow"))
        store.close()


# ------------------------------------------------------------------ queues of the version before

OLD = """
CREATE TABLE {name} (
    number {number}, topic TEXT NOT NULL, id TEXT NOT NULL, body {bytes} NOT NULL,
    state {state} NOT NULL DEFAULT 'r', due {float} NOT NULL DEFAULT 0, token TEXT,
    deliveries INTEGER NOT NULL DEFAULT 0, UNIQUE (topic, id)
);
INSERT INTO {name} (topic, id, body, state, due, token, deliveries) VALUES
('t', 'g:1', 'x', 'r', 0, NULL, 0), ('t', 'g:2', 'x', 'l', 0, 'token', 1),
('t', 'g:3', 'x', 'r', 5, NULL, 1), ('t', 'g:4', 'x', 'b', 5, NULL, 5);
"""


async def test_a_file_of_the_version_before_keeps_its_messages(tmp_path: Path) -> None:
    words = {"number": "INTEGER PRIMARY KEY AUTOINCREMENT", "bytes": "BLOB", "state": "TEXT",
             "float": "REAL", "name": "messages"}  # fmt: skip
    db = sqlite3.connect(tmp_path / "queue.db")
    db.executescript(OLD.format_map(words))
    db.execute("CREATE INDEX by_state ON messages (topic, state, due, number)")
    db.execute("UPDATE messages SET body = CAST(body AS BLOB)")
    db.commit()
    db.close()
    found = await messages_in(f"sqlite:///{tmp_path}/queue.db")
    assert (["g:4"], ["g:1", "g:2", "g:3", "g:5"]) == found
    db = sqlite3.connect(tmp_path / "queue.db")
    db.execute("PRAGMA user_version = 99")
    db.close()
    async with opened(f"sqlite:///{tmp_path}/queue.db") as queue:
        with pytest.raises(QueueUnavailable, match="made by a newer aflow"):
            await queue.depth("t")


async def test_a_database_of_the_version_before_keeps_its_messages(postgres_server: Server) -> None:
    words = {"number": "BIGSERIAL PRIMARY KEY", "bytes": "BYTEA", "state": '"char"',
             "float": "DOUBLE PRECISION", "name": "aflow_messages"}  # fmt: skip
    with new_database(postgres_server) as url:
        db = await psycopg.AsyncConnection.connect(url, autocommit=True)
        await db.execute(OLD.format_map(words).encode())
        await db.close()
        assert (["g:4"], ["g:1", "g:2", "g:3", "g:5"]) == await messages_in(url)


async def messages_in(url: str) -> tuple[list[str], list[str]]:
    """Return the ids of dead messages, and of those that are delivered, with a new one."""
    async with opened(url) as queue:
        await queue.put("t", [Message("g:5", b"x")])
        buried = [each.id for each in await queue.buried("t")]
        return buried, sorted(ids(await queue.lease(["t"], 9, 60)))
