"""SQLite files that several processes use: the clock of their leases, and transactions."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import pytest

from aflow._core.sqlite import LeaseClock, transaction
from tests.support.clocks import FakeClock


@pytest.fixture
def file() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:")
    connection.execute(
        "CREATE TABLE lease_clocks (number INTEGER PRIMARY KEY, domain TEXT UNIQUE, ahead REAL)"
    )
    yield connection
    connection.close()


def test_processes_of_one_machine_agree_on_the_time_of_leases_even_if_its_clock_is_set(
    file: sqlite3.Connection,
) -> None:
    machine = FakeClock(1000.0)
    early = LeaseClock(machine, "boot")
    assert early.begin(file)
    machine.jump(-3600.0)
    machine.advance(1.0)
    late, reader = LeaseClock(machine, "boot"), LeaseClock(machine, "boot")

    assert not late.begin(file)
    reader.read(file)

    assert [1001.0] * 3 == [each.now() for each in (early, late, reader)]


def test_the_first_process_after_a_start_of_the_machine_goes_by_the_clock_as_it_is(
    file: sqlite3.Connection,
) -> None:
    LeaseClock(FakeClock(1000.0), "boot").begin(file)
    machine = FakeClock(5.0)
    machine.jump(1995.0)
    clock = LeaseClock(machine, "another")
    assert 2000.0 == clock.now()

    assert clock.begin(file)
    machine.jump(7200.0)
    assert 2000.0 == clock.now()

    for number in range(100):
        LeaseClock(machine, f"more-{number}").begin(file)
    assert file.execute("SELECT count(*) FROM lease_clocks").fetchone()[0] <= 20


def test_where_the_system_does_not_tell_starts_apart_leases_go_by_its_clock(
    file: sqlite3.Connection,
) -> None:
    machine = FakeClock(1000.0)
    clock = LeaseClock(machine, "")
    assert not clock.begin(file)
    machine.jump(-100.0)
    assert 900.0 == clock.now()


def test_a_transaction_whose_commit_fails_is_undone_and_the_next_one_succeeds(
    file: sqlite3.Connection,
) -> None:
    file.isolation_level = None
    file.execute("PRAGMA foreign_keys = ON")
    file.execute("CREATE TABLE a (x INTEGER PRIMARY KEY)")
    file.execute("CREATE TABLE b (x REFERENCES a DEFERRABLE INITIALLY DEFERRED)")
    clock = LeaseClock(FakeClock(1000.0), "boot")
    begun: list[str] = []

    with (
        pytest.raises(sqlite3.IntegrityError),
        clock.transaction(file, lambda: begun.append("first")),
    ):
        file.execute("INSERT INTO b VALUES (1)")  # which COMMIT alone refuses
    with transaction(file):
        file.execute("INSERT INTO a VALUES (1)")
    with clock.transaction(file, lambda: begun.append("again")):
        file.execute("INSERT INTO b VALUES (1)")

    assert ["first", "again"] == begun
    assert [(1,)] == file.execute("SELECT x FROM b").fetchall()
