"""Guarantees of the PostgreSQL metadata store beyond the contract: indexes, a server that becomes
unavailable, error messages."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

from aflow.errors import InvalidSetting, MetadataTooNew, MetadataUnavailable, VersionConflict
from aflow.metadata import sql as rows
from aflow.metadata.base import Batch, RunRecord, RunUpdate
from aflow.metadata.sql import migrations, statements
from aflow.queue.base import Message
from aflow.queue.factory import open_queue
from aflow.scheduler.states import RunState
from tests.contracts.metadata_files import RUN, a_batch, every_answer
from tests.support.clocks import FakeClock
from tests.support.postgres import new_schema
from tests.support.servers import Server, free_port, new_database, postgres_for_one
from tests.support.waiting import select_nothing

psycopg = pytest.importorskip("psycopg")
from aflow.metadata.metaflow.tables import TablesSource  # noqa: E402 -- needs psycopg
from aflow.metadata.postgres import (  # noqa: E402 -- needs psycopg
    LATEST,
    PATIENCE,
    PostgresMetadata,
    PostgresSession,
)


@pytest.fixture
def url(postgres_server: Server) -> str:
    return new_schema(postgres_server)


@pytest.fixture
def store(url: str) -> Iterator[PostgresMetadata]:
    opened = PostgresMetadata(url)
    yield opened
    opened.close()


@pytest.fixture
def run(store: PostgresMetadata) -> RunRecord:
    return store.create_run(RUN, b"parameters")


def command(store: PostgresMetadata, sql: str) -> list[Any]:
    """Return the server's response to a command."""
    with store._connections.one() as db:
        cursor = db.execute(sql)
        return cursor.fetchall() if cursor.description else []


# ------------------------------------------------------------------ indexes

MAY_SCAN = {"flows": ["flows"]}  # it is asked for all of them
VALUES = {
    "key": b"k",
    "flow": "Flow",
    "run": "1",
    "step": "wide",
    "steps": ["wide"],
    "tag": "a",
    "second_tag": "b",
    "more_tags": ["c"],
    "states": ["succeeded"],
    "users": ["ann"],
    "tasks": [1, 2],
    "run_keys": [1],
    "keys": [1],
    "kind": "",
    "mark": "m",
    "document": "d",
    "worker": "w",
    "since": 1.0,
    "until": 9.0,
    "after_time": 5.0,
}


class Numbers(dict[str, Any]):
    """VALUES, and 1 for the value of any other name."""

    def __missing__(self, name: str) -> int:
        return 1


@pytest.mark.parametrize("name", statements("read", "postgres"))
def test_every_read_is_answered_from_an_index(store: PostgresMetadata, name: str) -> None:
    store.flows()
    sql = statements("read", "postgres")[name].replace("{columns}", rows.COLUMNS)
    with store._connections.one() as db, db.transaction():
        db.execute("SET LOCAL enable_seqscan = off")
        explained = db.execute(f"EXPLAIN {sql}", Numbers(VALUES)).fetchall()
    scans = [
        line.split("Seq Scan on ")[1].split()[0] for (line,) in explained if "Seq Scan" in line
    ]

    assert MAY_SCAN.get(name, []) == scans


# ------------------------------------------------------------------ who else is there


def test_stores_that_begin_a_database_at_once_all_find_it_made(url: str) -> None:
    gate = threading.Barrier(4)

    def begin(name: str) -> int:
        opened = PostgresMetadata(url)
        gate.wait()
        try:
            return opened.create_run(RUN._replace(run=name), b"").key
        finally:
            opened.close()

    with ThreadPoolExecutor(4) as pool:
        keys = list(pool.map(begin, "abcd"))

    assert 4 == len(set(keys))


def test_of_stores_that_commit_on_one_version_one_wins(url: str, run: RunRecord) -> None:
    gate = threading.Barrier(3)

    def race(_: int) -> list[int]:
        opened = PostgresMetadata(url)
        gate.wait()
        won = []
        for number in range(20):
            try:
                opened.commit(run.key, number, a_batch(number))
            except VersionConflict:
                continue
            won.append(number)
        opened.close()
        return won

    with ThreadPoolExecutor(3) as pool:
        won = sorted(number for each in pool.map(race, range(3)) for number in each)

    assert list(range(20)) == won


# ------------------------------------------------------------------ a server that goes away


def lose_next_answer(store: PostgresMetadata) -> list[int]:
    """Lose the connection of the next call after its transaction. Returns a list that then has the
    process of the connection."""
    connection = store._connections.one
    lost: list[int] = []

    @contextmanager
    def one() -> Iterator[Any]:
        with connection() as db:
            yield db
            if not lost:
                lost.append(db.info.backend_pid)
                db.close()
                raise psycopg.OperationalError("the connection was lost")

    store._connections.one = one  # type: ignore[method-assign]
    return lost


def test_a_commit_whose_answer_was_lost_is_written_once(
    store: PostgresMetadata, run: RunRecord
) -> None:
    lost = lose_next_answer(store)
    assert 1 == store.commit(run.key, 0, a_batch(0))

    assert 1 == len(lost)
    found = store.run("Flow", "1")
    assert found is not None
    assert 1 == found.version
    assert 21 == len(list(store.tasks(run.key)))


def test_a_document_whose_answer_was_lost_is_changed_once(store: PostgresMetadata) -> None:
    store.flows()
    for version, data in enumerate((b"first", b"second")):
        lost = lose_next_answer(store)
        assert version + 1 == store.put_document("schedule", "a", data, version)
        assert 1 == len(lost)
    lose_next_answer(store)
    with pytest.raises(VersionConflict):
        store.put_document("schedule", "a", b"of another", 1)
    lose_next_answer(store)
    assert store.delete_document("schedule", "a")
    assert not store.delete_document("schedule", "a")


def test_a_transaction_that_the_server_gives_up_for_another_is_repeated(
    store: PostgresMetadata, run: RunRecord
) -> None:
    states = ["40001", "40P01"]

    def work(session: Any) -> int:
        if states:
            state = states.pop()
            session._db.execute(f"DO $$ BEGIN RAISE SQLSTATE '{state}'; END $$")
        return int(session.do("beat", 7.0, run.key))

    assert 1 == store._transact(work)
    assert [] == states


def test_a_heartbeat_during_the_last_commit_of_a_run_leaves_no_lease(
    store: PostgresMetadata, run: RunRecord
) -> None:
    """They use the same two rows: neither is a victim of the other, and repeated."""
    store._patiently = lambda attempt: attempt()  # type: ignore[method-assign]
    assert store.acquire_lease(run.key, "coordinator/a", 10.0, 1.0).mine
    end = Batch(run=RunUpdate(RunState.SUCCEEDED, 2.0))
    with ThreadPoolExecutor(1) as thread, store._connections.one() as db:
        with db.transaction():
            session = PostgresSession(db)
            session.do("advance", "mark", run.key, 0)
            beating = thread.submit(store.acquire_lease, run.key, "coordinator/a", 10.0, 2.0)
            waits = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            while not command(store, waits)[0][0]:
                select_nothing(0.01)
            store._write(session, run.key, 1, end, [])
        assert not beating.result().mine
    found = store.run("Flow", "1")
    assert found is not None
    assert None is found.lease
    assert RunState.SUCCEEDED is found.state


def test_connections_that_the_server_has_cut_are_replaced(
    store: PostgresMetadata, url: str, run: RunRecord
) -> None:
    other = PostgresMetadata(url)
    other.flows()
    for number in range(3):
        command(
            other,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
            "AND backend_type = 'client backend' AND application_name = 'aflow'",
        )
        assert number + 1 == store.commit(run.key, number, a_batch(number))
    other.close()

    assert [b"0", b"1", b"2"] == list(store.journal(run.key))


def test_the_tables_of_a_service_of_metaflow_s_are_read_after_a_cut_as_well(
    postgres_server: Server,
) -> None:
    with new_database(postgres_server) as url, psycopg.connect(url, autocommit=True) as db:
        db.execute("CREATE TABLE flows_v3 (flow_id TEXT, tags TEXT, ts_epoch BIGINT)")
        tables = TablesSource(url)
        db.execute("INSERT INTO flows_v3 VALUES ('Flow', '[\"a\"]', 5)")
        for _ in range(2):
            pid = tables._connection.info.backend_pid
            db.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
            assert [{"flow_id": "Flow", "tags": ["a"], "ts_epoch": 5}] == tables.flows()
        tables.close()


@pytest.fixture
def own_server() -> Iterator[Server]:
    with postgres_for_one() as server:
        yield server


def test_a_server_that_is_started_anew_is_waited_for(own_server: Server) -> None:
    waits: list[float] = []

    def pause(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            own_server.start()

    store = PostgresMetadata(new_schema(own_server), pause=pause)
    run = store.create_run(RUN, b"parameters")
    assert 1 == store.commit(run.key, 0, a_batch(0))
    own_server.kill(signal.SIGINT)
    assert 2 == store.commit(run.key, 1, a_batch(1))
    assert [b"0", b"1"] == list(store.journal(run.key))
    assert 2 == len(waits)
    store.close()


def test_a_server_that_stays_away_ends_in_a_sentence(own_server: Server) -> None:
    clock = FakeClock()
    store = PostgresMetadata(new_schema(own_server), pause=clock.advance, clock=clock)
    store.flows()
    began = clock.monotonic()
    own_server.kill(signal.SIGINT)
    with pytest.raises(MetadataUnavailable, match="cannot be used"):
        store.flows()
    assert began + PATIENCE == pytest.approx(clock.monotonic())
    store.close()


# ------------------------------------------------------------------ URLs


@pytest.mark.parametrize(
    ("start", "query"),
    [
        ("aflow:secret@{host}", ""),
        ("aflow:secret@{host},127.0.0.1:1", ""),
        ("", "host=127.0.0.1&port={port}&user=aflow&password=secret&"),
    ],
    ids=["one host", "two hosts", "all in options"],
)
async def test_options_of_libpq_in_a_url_count(url: str, start: str, query: str) -> None:
    parts = urlsplit(url)
    place = start.format(host=parts.netloc.rpartition("@")[2])
    query = query.format(port=parts.port) + parts.query
    more = "application_name=my%20flows&connect_timeout=4&options=-c%20statement_timeout%3D12s"
    whole = f"postgresql://{place}/postgres?{query}&{more}"
    shown = "SELECT current_setting('application_name'), current_setting('statement_timeout')"
    store, queue = PostgresMetadata(whole), open_queue(whole)
    assert [("my flows", "12s")] == command(store, shown)
    await queue.put("topic", [Message("a", b"")])
    async with queue._connection() as db:  # type: ignore[attr-defined]
        assert [("my flows", "12s")] == await (await db.execute(shown)).fetchall()
    assert "secret" not in store.url + queue.url
    assert queue.url.startswith("postgresql://")
    store.close()
    await queue.close()


@pytest.mark.parametrize(
    "odd", ["//me:secret@[::1/db", "//me:secret@h/db?colour=1", "//h/%zz", "//a..b"]
)
def test_a_url_that_libpq_cannot_read_is_refused_without_its_password(odd: str) -> None:
    with pytest.raises(InvalidSetting, match="is not a place of metadata") as caught:
        PostgresMetadata(f"postgresql:{odd}")
    assert "secret" not in str(caught.value)


# ------------------------------------------------------------------ errors


def check_sentence(url: str, *parts: str) -> None:
    """Check that using the store fails immediately with one sentence with these parts and without
    the password."""
    store = PostgresMetadata(url, pause=lambda _: pytest.fail("nothing is to be waited for"))
    with pytest.raises(MetadataUnavailable) as caught:
        store.flows()
    store.close()
    text = str(caught.value)
    for part in parts:
        assert part in text
    assert "\n" not in text
    assert text.endswith(".")
    assert "secret" not in text


def test_a_wrong_password_is_named_and_not_shown(url: str) -> None:
    wrong = url.replace(":secret@", ":secret2@")

    check_sentence(wrong, "postgresql://aflow@127.0.0.1:", "the user or the password is wrong")


def test_a_database_that_is_not_there_is_named(url: str) -> None:
    check_sentence(url.replace("/postgres?", "/photos?"), "/photos", "there is no such database")


def test_a_server_that_is_not_there_is_named() -> None:
    check_sentence(f"postgresql://aflow:secret@127.0.0.1:{free_port()}/aflow", "refused")


def test_a_schema_that_is_no_name_is_refused() -> None:
    with pytest.raises(InvalidSetting, match="cannot be a schema"):
        PostgresMetadata("postgresql://host/aflow?schema=a;b")


def test_the_latest_version_is_that_of_the_last_migration() -> None:
    numbers = [number for number, _ in migrations("migrations_postgres")]

    assert list(range(1, LATEST + 1)) == numbers


def test_a_database_of_a_newer_version_is_left_alone(
    store: PostgresMetadata, url: str, run: RunRecord
) -> None:
    command(store, f"UPDATE version SET number = {LATEST + 1}")
    other = PostgresMetadata(url)
    with pytest.raises(MetadataTooNew, match=f"has version {LATEST + 1}.*Upgrade aflow"):
        other.flows()
    other.close()


def test_who_only_reads_makes_nothing(store: PostgresMetadata, url: str) -> None:
    reader = PostgresMetadata(url, read_only=True)
    with pytest.raises(MetadataUnavailable, match="Nothing has run here yet"):
        reader.flows()
    run = store.create_run(RUN, b"parameters")
    every_answer(reader, run.key)
    with pytest.raises(MetadataUnavailable, match="read-only"):
        reader.commit(run.key, 0, Batch())
    reader.close()


def test_a_run_whose_record_is_damaged_is_shown_as_that(
    store: PostgresMetadata, run: RunRecord
) -> None:
    command(store, "UPDATE runs SET state = 'odd'")

    found = store.run("Flow", "1")
    assert found is not None
    assert found.reason.startswith("The record of this run is damaged.")


def test_a_stream_that_is_left_alone_disturbs_nobody(
    store: PostgresMetadata, run: RunRecord
) -> None:
    store.commit(run.key, 0, a_batch(0, size=2000))
    stream = store.tasks(run.key)
    first = next(stream)
    store.commit(run.key, 1, Batch(b"more"))
    assert 0 == first.task.task
    assert 2000 == len(list(stream))
    left = store.tasks(run.key)
    next(left)
    del left
    assert 2 == store.run("Flow", "1").version
