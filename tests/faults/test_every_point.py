"""The coordinator crashes, or one of its calls fails, at every access to durable state: before the
call, after it, in the middle. The next coordinator finishes the run as if nothing had happened."""

from __future__ import annotations

import asyncio
import gc
import io
import itertools
import random
import threading
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from aflow import worker
from aflow._core.backoff import Backoff
from aflow.executors import factory, queue_workers
from aflow.executors.remote import reports
from aflow.scheduler.states import RunState
from aflow.testing.chaos import Fleet, Results, check, results
from tests.faults.conftest import local_fleet
from tests.faults.in_process import Bench
from tests.support.failing import How, Points
from tests.support.waiting import open_files, select_nothing, wait_until

pytestmark = [pytest.mark.xdist_group("faults"), pytest.mark.timeout(400)]

LONGEST = 60.0  # seconds that a run of some milliseconds may take


class SlowCommit(Points):
    """Dies before this commit is written, but after what depends on no commit is in the queue."""

    def __init__(self, commit: int) -> None:
        super().__init__()
        self._commit = commit
        self._is_put = threading.Event()

    def stops(self, name: str) -> bool:
        if name == "SqliteQueue.put":
            self._is_put.set()
        if name == "SqliteMetadata.commit" and self.passed.count(name) == self._commit:
            self._is_put.clear()
            if self._is_put.wait(0.1):
                select_nothing(0.02)  # until it has been put
            self.stop_at = len(self.passed)
        return super().stops(name)


class Sweep:
    """Runs of the small flow, each in a separate folder."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        self._patch = patch
        self._numbers = itertools.count()
        self.expected: Results | None = None

    def undisturbed(self) -> list[str]:
        """Return the names of the points that a coordinator passes in a run without faults."""
        points = Points()
        self._one("calm", points)
        return points.passed

    def one(self, point: int, how: How, dies: bool = True) -> Points:
        """Crash, or fail, at this point."""
        points = Points(point, how, dies)
        self._one(f"{next(self._numbers)}-{point}-{how}-{dies}", points, Points())
        return points

    def slow(self, commit: int) -> None:
        """Crash before a commit that takes long."""
        self._one(f"slow-{commit}", SlowCommit(commit), Points())

    def two(self, first: int, second: int, how: How) -> None:
        """Crash at this point, and crash the next coordinator at another one."""
        points = Points(first, how), Points(second, how), Points()
        self._one(f"{next(self._numbers)}-{first}-{second}-{how}", *points)

    def _one(self, name: str, *points: Points) -> None:
        fleet = local_fleet(self._folder / name)
        coordinators = [*points]
        try:
            with self._patch.context() as patch:
                patch.setenv("LEDGER", str(fleet.ledger.path))
                asyncio.run(self._bounded(name, self._drive(Bench(fleet), patch, coordinators)))
            took_part = points[: len(points) - len(coordinators)]
            self._check(fleet, sum(not each.dies for each in took_part[:-1]))
        finally:
            fleet.close()

    @staticmethod
    async def _bounded(name: str, driving: Coroutine[Any, Any, None]) -> None:
        """Fail a run that hangs, and report where."""
        task = asyncio.create_task(driving)
        await asyncio.wait([task], timeout=LONGEST)
        if not task.done():
            said = io.StringIO()
            for each in asyncio.all_tasks():
                each.print_stack(file=said)
            pytest.fail(f"{name} hangs:\n{said.getvalue()}")
        await task

    @staticmethod
    async def _drive(bench: Bench, patch: pytest.MonkeyPatch, points: list[Points]) -> None:
        """Run coordinators, one after the other, until the run has ended."""
        async with bench.worker() as hand:
            before = Points()
            while bench.state() is None or bench.state() is RunState.RUNNING:
                mine = points.pop(0)
                patch.setattr(factory, "open_queue", lambda _: bench.open_queue(mine))  # noqa: B023
                if bench.state() is None:
                    await bench.run(mine)
                else:
                    if isinstance(before, SlowCommit):
                        await hand.until_nothing_is_left()
                    bench.let_leases_pass()
                    await bench.recover(mine)
                before = mine

    def _check(self, fleet: Fleet, stopped: int) -> None:
        """`stopped` coordinators were replaced because they had ended by themselves."""
        check(fleet, self.expected, late=True, clocks_agree=False)
        record = fleet.record()
        assert record is not None
        self.expected = self.expected or results(fleet.metadata, record)
        # Nothing that succeeds begins twice, unless a coordinator that stopped has interrupted it:
        # one that died cannot. The attempt that fails does, where nobody has lived to commit that
        # it has.
        times = Counter((each.task, each.attempt) for each in fleet.ledger.begun())
        assert times.pop((3, 0))
        assert set(times.values()) <= set(range(1, 2 + stopped)), times


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    for module in (worker, reports, queue_workers):
        monkeypatch.setattr(module, "AWAY", Backoff(0.01, 0.01))
    monkeypatch.setattr(queue_workers, "TTL", 0.5)  # seconds until a letter is delivered again
    return Sweep(tmp_path, monkeypatch)


def test_what_a_dead_coordinator_has_launched_without_a_record_runs_once(sweep: Sweep) -> None:
    assert 5 < sweep.undisturbed().count("SqliteMetadata.commit")

    for number in range(5):
        sweep.slow(number)


def swept(sweep: Sweep, how: How, dies: bool, every: int = 1) -> list[Points]:
    """Return all points, or one of `every` consecutive ones from a random start."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    assert sweep.undisturbed()
    reached: list[Points] = []
    point = random.Random(seed).randrange(every)
    while True:
        points = sweep.one(point, how, dies)
        if not points.reached:  # there are no more
            return reached
        reached.append(points)
        point += every


def test_a_coordinator_may_die_at_any_point(sweep: Sweep) -> None:
    # After one point is before the next.
    reached = swept(sweep, "after", dies=True)

    assert 40 < len(reached)


def test_the_answer_to_any_call_may_be_lost(sweep: Sweep) -> None:
    reached = swept(sweep, "after", dies=False, every=2)

    assert 20 < len(reached)


@pytest.mark.parametrize("how", ["before", "half"])
def test_any_call_may_fail(sweep: Sweep, how: How) -> None:
    reached = swept(sweep, how, dies=False, every=3)

    assert 10 < len(reached)
    assert how == "half" or not any(points.halved for points in reached)


def test_the_next_coordinator_may_die_at_any_point_as_well(sweep: Sweep) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    lots = random.Random(seed)
    count = len(sweep.undisturbed())
    for _ in range(20):
        how: How = lots.choice(["before", "half", "after"])
        sweep.two(lots.randrange(count), lots.randrange(count // 2), how)

    assert sweep.expected is not None


def test_nothing_piles_up_in_a_program_whose_coordinators_die_again_and_again(
    sweep: Sweep,
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    lots = random.Random(seed)
    count = len(sweep.undisturbed())

    def soak(rounds: int) -> list[str]:
        for _ in range(rounds):
            how: How = lots.choice(["before", "half", "after"])
            sweep.one(lots.randrange(count), how, lots.random() < 0.5)
        gc.collect()
        return sorted(each.name for each in threading.enumerate())

    threads = soak(3)  # what is opened once is open now
    files = open_files()
    threads_then = soak(12)

    # A server of other tests, in a thread of this process, may have a connection at this time.
    wait_until(lambda: open_files() <= files, lambda: (files, open_files()))
    # One thread may be about to exit.
    assert len(threads_then) - len(threads) <= 1, (threads, threads_then)
