"""The broker, the database and S3 become unavailable and come back."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from aflow.testing.chaos import Fleet, check, wait_until
from tests.faults.conftest import Undisturbed, in_bucket
from tests.faults.squares import squares
from tests.support.faulty import Fault, FaultyProxy
from tests.support.postgres import new_schema
from tests.support.s3 import S3Bucket
from tests.support.servers import Server, new_database, postgres_for_one, redis_server

pytestmark = [pytest.mark.xdist_group("faults"), pytest.mark.timeout(300)]

TASKS = 60
SQUARES = squares(TASKS, large_each=10)


def until_begun(fleet: Fleet, count: int) -> None:
    """Wait until this many tasks have started."""
    wait_until(lambda: len(fleet.ledger.begun()) >= count, "tasks do not go on")


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "redis"
    folder.mkdir()
    server = redis_server(folder)
    yield server
    server.kill()


def on_disk(folder: Path) -> dict[str, str]:
    """Return the settings of a datastore that all machines share."""
    return {"AFLOW_DATASTORE_SYSROOT_LOCAL": str(folder / "store")}


def test_redis_may_be_killed_and_started_again_in_the_middle_of_a_run(
    tmp_path: Path, redis: Server, undisturbed: Undisturbed
) -> None:
    expected = undisturbed(SQUARES)
    folder = tmp_path / "fleet"
    folder.mkdir()
    queue = f"redis://127.0.0.1:{redis.port}/0"
    fleet = Fleet(folder, f"sqlite:///{folder}/metadata.db", queue, **on_disk(folder))
    try:
        fleet.write(SQUARES)
        for _ in range(2):
            fleet.start_worker("--slots", "1", "--lease", "3")
        run = fleet.begin()
        for mark in (5, 30):
            until_begun(fleet, mark)
            redis.kill()
            redis.start()

        assert 0 == fleet.ends(run), fleet.output()
        check(fleet, expected, late=True)
    finally:
        fleet.close()


@pytest.fixture
def own_postgres() -> Iterator[Server]:
    """A PostgreSQL server that the test stops and starts."""
    with postgres_for_one() as server:
        yield server


def test_postgres_may_be_started_again_and_again_under_load(
    tmp_path: Path, own_postgres: Server, undisturbed: Undisturbed
) -> None:
    expected = undisturbed(SQUARES)
    folder = tmp_path / "fleet"
    folder.mkdir()
    with new_database(own_postgres) as queue:
        fleet = Fleet(folder, new_schema(own_postgres), queue, **on_disk(folder))
        try:
            fleet.write(SQUARES)
            for _ in range(2):
                fleet.start_worker("--slots", "1", "--lease", "3")
            run = fleet.begin()
            # Queue and metadata are both away. Once it is stopped, and twice it crashes.
            for mark, how in ((4, signal.SIGQUIT), (20, signal.SIGINT), (40, signal.SIGQUIT)):
                until_begun(fleet, mark)
                own_postgres.kill(how)
                own_postgres.start()

            assert 0 == fleet.ends(run), fleet.output()
            check(fleet, expected, late=True)
        finally:
            fleet.close()


WEATHER = [
    Fault("answer", 0.07),
    Fault("reset", 0.07),
    Fault("cut", 0.07, "GET"),
    Fault("late", 0.02),
]


def test_workers_get_through_bad_weather_in_s3(
    tmp_path: Path, strict_bucket: S3Bucket, undisturbed: Undisturbed
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    expected = undisturbed(SQUARES)
    folder = tmp_path / "fleet"
    folder.mkdir()
    with FaultyProxy(strict_bucket.endpoint, seed=seed) as proxy:
        proxy.faults += [Fault(each.kind, each.chance, each.method) for each in WEATHER]
        here = in_bucket(strict_bucket, proxy.url)
        places = f"sqlite:///{folder}/metadata.db", f"sqlite:///{folder}/queue.db"
        fleet = Fleet(folder, *places, **here)
        try:
            fleet.write(SQUARES)
            for _ in range(2):
                fleet.start_worker("--slots", "1")
            run = fleet.begin("--isolation", "worker")
            assert 0 == fleet.ends(run), fleet.output()
            assert {each.kind for each in proxy.faults if each.hits} == {
                each.kind for each in WEATHER
            }
            proxy.faults.clear()
            check(fleet, expected)
        finally:
            fleet.close()
