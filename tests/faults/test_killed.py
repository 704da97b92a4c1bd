"""kill -9 of workers and of the coordinator, repeatedly, while 500 tasks run with PostgreSQL and
S3: the run finishes as if nothing had happened."""

from __future__ import annotations

import os
import random

import pytest

from aflow.testing.chaos import Fleet, check, wait_until
from tests.faults.conftest import Undisturbed
from tests.faults.squares import squares

pytestmark = [pytest.mark.xdist_group("faults"), pytest.mark.timeout(400)]

TASKS = 500
SQUARES = squares(TASKS - 3, large_each=50)


def test_workers_and_coordinators_killed_at_random_change_nothing_of_500_tasks(
    cloud: Fleet, undisturbed: Undisturbed
) -> None:
    seed = int(os.environ.get("FAULTS_SEED", random.randrange(2**32)))
    print(f"seed {seed}")
    lots = random.Random(seed)
    expected = undisturbed(SQUARES, "--isolation", "worker")
    cloud.write(SQUARES)
    workers = [cloud.start_worker("--slots", "1", "--lease", "3") for _ in range(2)]
    coordinator = cloud.begin("--isolation", "worker")
    settled: dict[int, int] = {}  # committed tasks, and how often they had started by then
    for mark in sorted(lots.sample(range(5, TASKS - 50), 8)):
        wait_until(
            lambda: len(cloud.ledger.lines()) >= mark or coordinator.poll() is not None  # noqa: B023
        )
        assert coordinator.poll() is None, cloud.output()
        victim = lots.choice(["worker", "coordinator", "both"])
        if victim != "coordinator":
            number = lots.randrange(2)
            workers[number].kill()
            workers[number].wait()
            workers[number] = cloud.start_worker("--slots", "1", "--lease", "3")
        if victim != "worker":
            coordinator.kill()
            coordinator.wait()
            committed, times = cloud.committed(), cloud.ledger.times()
            settled |= {task: times[task] for task in committed}
            cloud.let_lease_pass()
            coordinator = cloud.recover()

    assert 0 == cloud.ends(coordinator), cloud.output()
    check(cloud, expected, late=True)
    times = cloud.ledger.times()
    assert settled == {task: times[task] for task in settled}
