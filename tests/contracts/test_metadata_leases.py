"""The contract of every metadata store for the leases of runs."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from aflow._core import sqlite as files
from aflow.errors import VersionConflict
from aflow.metadata.base import LEASE, Batch, LeaseState, MetadataStore, RunRecord, RunUpdate
from aflow.metadata.sqlite import SqliteMetadata
from aflow.scheduler.states import RunState
from tests.contracts.metadata_stores import NAMES, a_run, open_store
from tests.support.clocks import FakeClock

LONG = 600.0  # seconds that do not pass in a test
OVER = 0.0  # seconds that have passed at once
A, B = "server/a", "server/b"


@pytest.fixture(params=NAMES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MetadataStore]:
    opened = open_store(request, tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def run(store: MetadataStore) -> RunRecord:
    return store.create_run(a_run(), b"parameters")


def test_a_run_has_one_owner_until_its_time_is_over(store: MetadataStore, run: RunRecord) -> None:
    assert LeaseState(True) == store.acquire_lease(run.key, A, LONG, 1.0)
    assert LeaseState(False) == store.acquire_lease(run.key, B, LONG, 2.0)
    assert LeaseState(True) == store.acquire_lease(run.key, A, OVER, 3.0)
    assert LeaseState(True) == store.acquire_lease(run.key, B, LONG, 4.0)
    assert LeaseState(False) == store.acquire_lease(run.key, A, LONG, 5.0)


def test_who_becomes_owner_or_stays_it_has_given_a_sign_of_life(
    store: MetadataStore, run: RunRecord
) -> None:
    store.acquire_lease(run.key, A, LONG, 500.0)
    store.acquire_lease(run.key, B, LONG, 600.0)

    found = store.run("Flow", "1")
    assert found is not None
    assert run._replace(heartbeat_at=500.0, lease=found.lease) == found
    assert 1 == store.commit(run.key, 0, Batch())  # the version is the same


def test_a_reader_of_a_run_sees_its_lease_holder_and_for_how_long(
    store: MetadataStore, run: RunRecord
) -> None:
    assert store.run("Flow", "1") == run
    store.acquire_lease(run.key, A, LONG, 1.0)
    store.request_cancel(run.key, "enough")
    one, [listed] = store.run("Flow", "1"), store.runs("Flow")
    assert one is not None
    for found in (one, listed):
        assert found.lease is not None
        assert (A, "enough") == (found.lease.holder, found.lease.cancel)
        assert LONG - 60 < found.lease.left <= LONG
    store.acquire_lease(run.key, A, -LONG, 2.0)
    [listed] = store.runs("Flow")
    assert listed.lease is not None
    assert -LONG - 60 < listed.lease.left <= -LONG

    store.commit(run.key, 0, Batch(run=RunUpdate(RunState.FAILED, 3.0, "over")))
    [listed] = store.runs("Flow")
    assert listed.lease is None


def test_of_many_who_want_a_run_one_gets_it(store: MetadataStore, run: RunRecord) -> None:
    with ThreadPoolExecutor(8) as threads:
        holds = threads.map(
            lambda n: store.acquire_lease(run.key, f"server/{n}", LONG, 1.0), range(16)
        )
        assert 1 == sum(hold.mine for hold in holds)


def test_a_run_has_its_owner_from_its_creation_on(store: MetadataStore) -> None:
    run = store.create_run(a_run(run="owned"), b"", A, LONG)
    other = store.create_run(a_run(run="left"), b"", A, OVER)

    assert LeaseState(False) == store.acquire_lease(run.key, B, LONG, 1.0)
    assert [("Flow", "left")] == store.orphaned("server")
    assert LeaseState(True) == store.acquire_lease(other.key, B, LONG, 1.0)
    assert [] == store.orphaned("server")


def test_runs_without_an_owner_are_found_by_its_kind_the_oldest_first(
    store: MetadataStore,
) -> None:
    for number, owner in enumerate([A, "me/1", B, "servers/1"]):
        store.create_run(a_run(run=str(number)), b"", owner, OVER)
    store.create_run(a_run(run="without"), b"")
    store.create_run(a_run(run="with"), b"", A, LONG)

    assert [("Flow", "0"), ("Flow", "2")] == store.orphaned("server")
    assert [("Flow", "0")] == store.orphaned("server", limit=1)
    assert [("Flow", "1")] == store.orphaned("me")
    assert [] == store.orphaned("%")


def test_an_owner_can_release_a_run_that_is_its_own(store: MetadataStore, run: RunRecord) -> None:
    store.acquire_lease(run.key, A, LONG, 1.0)
    store.release_lease(run.key, B)
    assert LeaseState(False) == store.acquire_lease(run.key, B, LONG, 1.0)
    store.release_lease(run.key, A)
    assert [("Flow", "1")] == store.orphaned("server")
    assert LeaseState(True) == store.acquire_lease(run.key, B, LONG, 1.0)


def test_a_run_that_has_ended_has_no_owner(store: MetadataStore, run: RunRecord) -> None:
    store.acquire_lease(run.key, A, OVER, 1.0)
    store.commit(run.key, 0, Batch(run=RunUpdate(reason="goes on")))
    assert [("Flow", "1")] == store.orphaned("server")
    store.commit(run.key, 1, Batch(run=RunUpdate(RunState.FAILED, 2.0, "over")))

    assert [] == store.orphaned("server")
    assert LeaseState(False) == store.acquire_lease(run.key, A, LONG, 1.0)
    assert not store.request_cancel(run.key, "too late")


def test_a_run_that_was_deleted_has_no_owner(store: MetadataStore, run: RunRecord) -> None:
    store.acquire_lease(run.key, A, OVER, 1.0)
    store.delete_run(run.key)

    assert [] == store.orphaned("server")
    assert LeaseState(False) == store.acquire_lease(run.key, A, LONG, 1.0)


def test_the_owner_of_a_run_sees_that_it_is_to_stop(store: MetadataStore, run: RunRecord) -> None:
    assert not store.request_cancel(run.key, "nobody has ever had it")
    store.acquire_lease(run.key, A, OVER, 1.0)
    assert store.request_cancel(run.key, "caf\udce9")
    assert store.request_cancel(run.key, "another reason")

    assert LeaseState(True, "caf\\udce9") == store.acquire_lease(run.key, B, LONG, 1.0)
    assert LeaseState(False, "caf\\udce9") == store.acquire_lease(run.key, A, LONG, 1.0)


def test_an_owner_that_was_too_late_writes_nothing_more(
    store: MetadataStore, run: RunRecord
) -> None:
    store.acquire_lease(run.key, A, OVER, 1.0)
    store.acquire_lease(run.key, B, LONG, 1.0)
    store.commit(run.key, 0, Batch(b"of the new owner"))

    with pytest.raises(VersionConflict, match="this one stops"):
        store.commit(run.key, 0, Batch(b"of the old one"))
    assert [b"of the new owner"] == [*store.journal(run.key)]


@pytest.mark.parametrize("hours", [-100.0, -1.0, 1.0])
def test_in_a_file_leases_end_in_time_though_the_clock_of_the_machine_is_set(
    tmp_path: Path, hours: float
) -> None:
    clock = FakeClock()
    store = SqliteMetadata(tmp_path / "metadata.db", clock=clock)
    run = store.create_run(a_run(), b"", A, LEASE)
    clock.jump(hours * 3600)
    other = SqliteMetadata(tmp_path / "metadata.db", clock=clock)  # a process that starts later
    reader = SqliteMetadata(tmp_path / "metadata.db", read_only=True, clock=clock)

    clock.advance(LEASE - 1)
    [found] = reader.runs("Flow")
    assert found.lease is not None
    assert 1.0 == found.lease.left
    assert [] == other.orphaned("server")
    assert LeaseState(False) == other.acquire_lease(run.key, B, LEASE, 1.0)
    clock.advance(2)
    assert [("Flow", "1")] == reader.orphaned("server")
    assert LeaseState(True) == other.acquire_lease(run.key, B, LEASE, 2.0)
    for each in (store, other, reader):
        each.close()


def test_when_the_machine_was_started_again_with_an_earlier_time_leases_end_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = FakeClock(2_000_000_000.0), FakeClock(1_000.0)
    store = SqliteMetadata(tmp_path / "metadata.db", clock=before)
    run = store.create_run(a_run(), b"", A, LEASE)
    store.close()
    monkeypatch.setattr(files, "monotonic_domain", lambda: "another start of the machine")
    store = SqliteMetadata(tmp_path / "metadata.db", clock=after)

    assert LeaseState(False) == store.acquire_lease(
        run.key, B, LEASE, 1.0
    )  # who had it may live elsewhere
    after.advance(LEASE + 1)
    assert LeaseState(True) == store.acquire_lease(run.key, B, LEASE, 2.0)
    store.close()
