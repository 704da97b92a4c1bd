"""The contract of metadata stores for the registry of workers."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from aflow.errors import AflowError
from aflow.metadata.base import RunningTask, WorkerRecord
from tests.contracts.metadata_stores import NAMES, open_store

LONG = 600.0  # seconds that do not pass in a test
OVER = 0.0  # seconds that have passed at once


@pytest.fixture(params=[each for each in NAMES if each != "store"])  # jobs write to that alone
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    opened = open_store(request, tmp_path)
    yield opened
    opened.close()


def a_worker(name: str = "host-1-aa", **changes: Any) -> WorkerRecord:
    record = WorkerRecord(
        name, "höst", 17, "redis://broker/0", ("gpu", "default"), 4, "1.0", "3.12.1", 100.0,
        {"rack": "r1", "zöne": "\0 b"},
    )  # fmt: skip
    return record._replace(**changes)


def test_a_worker_is_listed_as_it_has_registered_last(store: Any) -> None:
    assert [] == store.workers()
    assert None is store.beat_worker(a_worker(), LONG)
    running = (
        RunningTask("Flow/1/work/7", 2, 150.5),
        RunningTask("Flow/1/work/8", 0, 151.0, False),
    )
    ended = {"gpu": 30, "default": 1}
    store.beat_worker(a_worker(running=running, done=5, failed=1, draining=True, ended=ended), LONG)
    store.beat_worker(a_worker("another"), LONG)

    another, found = store.workers()
    assert "another" == another.name
    assert LONG - 60 < found.left <= LONG
    assert found.heartbeat_at > 1e9
    expected = a_worker(running=running, done=5, failed=1, draining=True, ended=ended)
    assert expected == found._replace(heartbeat_at=0.0, left=0.0)


def test_a_worker_whose_time_is_over_is_listed_no_longer(store: Any) -> None:
    store.beat_worker(a_worker("stays"), LONG)
    store.beat_worker(a_worker("gone"), OVER)
    assert ["stays"] == [each.name for each in store.workers()]
    assert not store.drain_worker("gone", "too late")

    store.beat_worker(a_worker("gone"), LONG)  # it was only late
    assert ["gone", "stays"] == [each.name for each in store.workers()]


def test_a_worker_is_asked_to_drain(store: Any) -> None:
    assert not store.drain_worker("host-1-aa", "nobody knows it")
    store.beat_worker(a_worker(), LONG)
    store.beat_worker(a_worker("another"), LONG)
    assert store.drain_worker("host-1-aa", "caf\udce9")
    assert store.drain_worker("host-1-aa", "another reason")

    assert [None, "caf\\udce9"] == [each.drain for each in store.workers()]
    assert "caf\\udce9" == store.beat_worker(a_worker(), LONG)
    assert None is store.beat_worker(a_worker("another"), LONG)


def test_a_worker_that_has_ended_is_removed(store: Any) -> None:
    store.beat_worker(a_worker(), LONG)
    store.drain_worker("host-1-aa", "enough")
    store.remove_worker("host-1-aa")
    store.remove_worker("host-1-aa")
    assert [] == store.workers()
    assert None is store.beat_worker(a_worker(), LONG)  # what was asked for is forgotten with it


@pytest.mark.parametrize("name", ["", "../up", "a/b", "a b", "x" * 300])
def test_a_name_that_cannot_be_one_is_refused(store: Any, name: str) -> None:
    with pytest.raises(AflowError, match="cannot be the name of a worker"):
        store.beat_worker(a_worker(name), LONG)
    assert [] == store.workers()


def test_many_workers_register_at_once(store: Any) -> None:
    names = [f"host-{number}" for number in range(40)]
    with ThreadPoolExecutor(8) as threads:
        for _ in range(2):
            for time in (OVER, LONG):
                assert [None] * 40 == [
                    *threads.map(lambda n, t=time: store.beat_worker(a_worker(n), t), names)
                ]
    assert sorted(names) == [each.name for each in store.workers()]
