"""Two coordinators on one run, and coordinators whose clock jumps."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from aflow._core.clock import SystemClock
from aflow.executors import factory, protocol
from aflow.scheduler.states import RunState
from aflow.testing.chaos import Fleet, check, file_of, wait_until
from tests.faults.conftest import Undisturbed
from tests.faults.in_process import Bench
from tests.faults.test_workers import WAITS, noted
from tests.support.failing import Points

pytestmark = [pytest.mark.xdist_group("faults"), pytest.mark.timeout(300)]


def test_a_coordinator_that_slept_too_long_is_fenced_and_takes_nothing_back(
    fleet: Fleet, undisturbed: Undisturbed
) -> None:
    expected = undisturbed(WAITS.replace('os.environ.get("WHO", "")', '"only"'))
    fleet.write(WAITS)
    go = fleet.folder / "go"
    # One slot: a task runs, and others wait in the queue, when the first coordinator wakes up.
    fleet.start_worker("--slots", "1", WHO="only", GO=str(go))
    first = fleet.begin()
    wait_until(lambda: noted(fleet, "begun only"))
    # While this test has the database, so that the coordinator does not sleep in a commit.
    with closing(sqlite3.connect(file_of(fleet.metadata_url), timeout=60)) as database:
        database.execute("BEGIN IMMEDIATE")
        first.send_signal(signal.SIGSTOP)
        state = Path(f"/proc/{first.pid}/stat")
        wait_until(lambda: state.read_text().rpartition(")")[2].split()[0] == "T")
        database.rollback()
    fleet.let_lease_pass()
    second = fleet.recover()
    wait_until(lambda: "Recovering the run from another coordinator" in fleet.output())

    first.send_signal(signal.SIGCONT)
    assert 1 == fleet.ends(first), fleet.output()
    assert "is driven by another coordinator now" in fleet.output()
    assert "Traceback" not in fleet.output()
    go.touch()

    assert 0 == fleet.ends(second), fleet.output()
    check(fleet, expected)
    assert {1} == set(fleet.ledger.times().values())


class JumpingClock(SystemClock):
    """The machine's clock, which jumps when the test sets it."""

    def __init__(self) -> None:
        self.offset = 0.0
        self.monotonic = time.monotonic

    def now(self) -> float:
        return time.time() + self.offset


@pytest.mark.parametrize("hours", [1, -1])
def test_a_clock_that_is_set_does_not_hold_up_a_run(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    clock = JumpingClock()
    monkeypatch.setenv("WAIT", "1")  # seconds before the task that fails is tried again
    monkeypatch.setenv("LEDGER", str(fleet.ledger.path))
    bench = Bench(fleet, clock)
    monkeypatch.setattr(factory, "open_queue", lambda _: bench.open_queue(Points()))

    async def drive() -> None:
        async with bench.worker():
            running = asyncio.create_task(bench.run(Points()))
            await asyncio.to_thread(wait_until, lambda: len(fleet.ledger.lines()) >= 4)
            clock.offset = 3600.0 * hours
            await asyncio.wait_for(running, 60)

    asyncio.run(drive())

    assert RunState.SUCCEEDED is bench.state()
    check(fleet, clocks_agree=False)


def test_a_worker_with_another_python_is_refused_with_both_named(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEDGER", str(fleet.ledger.path))
    monkeypatch.setattr(protocol, "python_version", lambda: "2.7")
    bench = Bench(fleet)
    fleet.start_worker("--slots", "1", LEDGER=str(fleet.ledger.path))

    asyncio.run(bench.run(Points()))

    record = fleet.record()
    assert record is not None
    assert "was started with Python 2.7, and here is 3." in record.reason
    assert [] == fleet.ledger.lines()
    check(fleet, state=RunState.FAILED)
