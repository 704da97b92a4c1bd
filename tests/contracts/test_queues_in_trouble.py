"""Queues whose broker goes away, refuses, or is told nonsense."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from aflow import backends
from aflow.errors import InvalidSetting, QueueUnavailable
from aflow.queue.base import Message
from aflow.queue.sqlite import SqliteQueue
from tests.support.servers import (
    Server,
    free_port,
    new_database,
    postgres_for_one,
    redis_server,
)

pytestmark = pytest.mark.asyncio
WAIT = 20.0
Broker = tuple[Server, str, signal.Signals]  # how to crash it comes last


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("amqp://host", "'amqp' is no kind of queue"),
        ("queue.db", "no kind of queue"),
        ("redis://host?colour=red", "no place of a queue"),
        ("postgresql://host", "no place of a queue"),
        ("sqlite:relative", "names no path"),
    ],
)
async def test_what_is_no_queue_is_refused_in_a_sentence(url: str, told: str) -> None:
    with pytest.raises(InvalidSetting, match=told):
        backends.open_queue(url)


@pytest.mark.parametrize("scheme", ["redis", "postgresql"])
async def test_a_broker_that_is_not_there_is_named_without_its_password(scheme: str) -> None:
    queue = backends.open_queue(f"{scheme}://me:secret@127.0.0.1:{free_port()}/0")
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
                queue = backends.open_queue(wrong)
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
        queue = backends.open_queue(url)
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


async def test_connections_that_the_server_drops_are_made_anew(postgres_server: Server) -> None:
    with new_database(postgres_server) as url:
        queue = backends.open_queue(url)
        await queue.put("t", [Message("a", b"")])
        waiting = asyncio.create_task(queue.lease(["u"], 1, 60.0, WAIT))
        await asyncio.sleep(0)
        other = backends.open_queue(url)
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


async def test_a_queue_in_a_file_wakes_waiters_and_removes_nothing_but_dead_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = tmp_path / "session"
    session.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(session))
    queue, other = (SqliteQueue(tmp_path / "queue.db") for _ in range(2))
    waiting = asyncio.ensure_future(queue.lease(["t"], 1, 60, WAIT))
    while not (sockets := [path for path in session.rglob("*") if path.is_socket()]):
        await asyncio.sleep(0.01)
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
        await asyncio.sleep(0.01)
    await other.put("t", [Message("a", b"")])

    assert ["a"] == [lease.id for lease in await waiting]
    assert [] == [*(session / "aflow").iterdir()]
    for each in (queue, other):
        await each.close()
