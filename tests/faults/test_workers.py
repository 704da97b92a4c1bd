"""Workers that are suspended, killed by a task or asked to stop, or whose disk is full."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time

import pytest

from aflow.queue.base import Message
from aflow.queue.factory import open_queue
from aflow.queue.messages import seal
from aflow.scheduler.states import AttemptState, RunState
from aflow.testing.chaos import PATIENCE, Fleet, check, wait_until
from tests.faults.conftest import Undisturbed
from tests.flows.conftest import children_of
from tests.support.disks import small_disk

pytestmark = [pytest.mark.xdist_group("faults"), pytest.mark.timeout(300)]

# A task of `work` waits for a file, and so does the join: workers get both.
WAITS = """
def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.02)

class Flow_(FlowSpec):
    @step
    def start(self):
        note()
        self.xs = [0, 1, 2]
        self.next(self.work, foreach="xs")

    @step
    def work(self):
        note("begun " + os.environ.get("WHO", ""))
        if self.input == 0:
            wait_for(os.environ.get("GO", "/"))
        self.who = os.environ.get("WHO", "") if self.input == 0 else ""
        note("ended " + os.environ.get("WHO", ""))
        self.next(self.join)

    @step
    def join(self, inputs):
        note()
        self.who = [each.who for each in inputs]
        wait_for(os.environ.get("SHARED", "/"))
        self.next(self.end)

    @step
    def end(self):
        note()
"""


def family(pid: int) -> list[int]:
    """Return a process and all of its descendants."""
    return [pid, *(each for child in children_of(pid) for each in family(child))]


def noted(fleet: Fleet, what: str) -> int:
    """Return how often steps have recorded this."""
    return sum(each.what == what for each in fleet.ledger.lines())


def test_the_outcome_of_a_worker_that_slept_past_its_lease_is_refused(
    fleet: Fleet, undisturbed: Undisturbed
) -> None:
    expected = undisturbed(WAITS.replace('os.environ.get("WHO", "")', '"second"'))
    fleet.write(WAITS)
    go, shared = fleet.folder / "go", fleet.folder / "shared"
    alone = ("--slots", "1", "--lease", "1")
    first = fleet.start_worker(*alone, WHO="first", GO=str(go))
    run = fleet.begin()
    wait_until(lambda: noted(fleet, "begun first"))
    asleep = family(first.pid)
    for pid in asleep:
        os.kill(pid, signal.SIGSTOP)
    second = fleet.start_worker("--slots", "2", WHO="second", SHARED=str(shared))
    wait_until(lambda: 3 == noted(fleet, "ended second"))
    wait_until(lambda: 4 <= len(fleet.committed() - {0}), "what the second did is not committed")

    go.touch()
    for pid in asleep:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: noted(fleet, "ended first"))  # it has its own outcome, too late
    first.send_signal(signal.SIGTERM)
    assert 0 == fleet.ends(first)  # and has said so
    shared.touch()

    assert 0 == fleet.ends(run), fleet.output()
    second.send_signal(signal.SIGTERM)
    assert 0 == fleet.ends(second)
    # It had started before the outcome of the other one was committed.
    check(fleet, expected)


POISON = """
def worker():
    # Between it and a task there are one or two processes that tasks are forked from.
    pid = os.getppid()
    while b"worker" not in open(f"/proc/{pid}/cmdline", "rb").read().split(b"\\0"):
        with open(f"/proc/{pid}/stat") as file:
            pid = int(file.read().rpartition(")")[2].split()[1])
    return pid

class Flow_(FlowSpec):
    @step
    def start(self):
        note()
        self.xs = list(range(6))
        self.next(self.work, foreach="xs")

    @step
    def work(self):
        note(f"work {self.input}")
        if self.input == 3:
            os.kill(worker(), signal.SIGKILL)
            time.sleep(60)
        time.sleep(0.3)  # so that it has begun, and not ended, when its neighbour kills the worker
        self.y = self.input
        self.next(self.join)

    @step
    def join(self, inputs):
        note()
        self.next(self.end)

    @step
    def end(self):
        note()
"""


def test_a_task_that_kills_its_worker_is_buried_and_its_neighbours_go_on(fleet: Fleet) -> None:
    fleet.write(POISON)
    run = fleet.begin("--isolation", "task")
    deaths = 0
    while run.poll() is None and deaths < 10:
        worker = fleet.start_worker("--slots", "2", "--lease", "1")
        wait_until(lambda: worker.poll() is not None or run.poll() is not None)  # noqa: B023
        deaths += worker.poll() == -signal.SIGKILL

    assert 1 == fleet.ends(run)
    assert 5 == deaths
    assert "was given to 5 workers, and each of them ended before it did" in fleet.output()
    record = fleet.record()
    assert record is not None
    views = [*fleet.metadata.tasks(record.key, step="work")]
    states = {view.task.index: view.attempt.state for view in views if view.attempt}
    assert {AttemptState.SUCCEEDED} == {state for at, state in states.items() if at != 3}
    assert AttemptState.FAILED is states[3]
    assert 5 == noted(fleet, "work 3")
    check(fleet, state=RunState.FAILED, late=True)


def test_a_second_sigterm_ends_a_worker_at_once_and_its_task_goes_to_another(
    fleet: Fleet, undisturbed: Undisturbed
) -> None:
    expected = undisturbed(WAITS.replace('os.environ.get("WHO", "")', '"second"'))
    fleet.write(WAITS)
    first = fleet.start_worker("--slots", "1", "--lease", "1", WHO="first", GO="/nothing")
    run = fleet.begin()
    wait_until(lambda: noted(fleet, "begun first"))
    first.send_signal(signal.SIGTERM)
    wait_until(lambda: "1 task is still running" in fleet.worker_output())
    first.send_signal(signal.SIGTERM)
    assert -signal.SIGTERM == fleet.ends(first)
    wait_until(lambda: len(fleet.orphans()) == 1)  # the coordinator alone
    fleet.start_worker("--slots", "2", WHO="second")

    assert 0 == fleet.ends(run), fleet.output()
    check(fleet, expected, late=True)


LOUD = """
class Flow_(FlowSpec):
    @step
    def start(self):
        note()
        self.xs = list(range(10))
        self.next(self.work, foreach="xs")

    @step
    def work(self):
        note()
        for number in range(2000):
            print(number, "x" * 99)
        self.y = self.input
        note("ended")
        self.next(self.join)

    @step
    def join(self, inputs):
        note()
        self.ys = [each.y for each in inputs]
        self.next(self.end)

    @step
    def end(self):
        note()
"""


def test_a_reader_of_the_log_that_stands_still_holds_up_no_worker_and_loses_nothing(
    fleet: Fleet, undisturbed: Undisturbed
) -> None:
    expected = undisturbed(LOUD)
    fleet.write(LOUD)
    fleet.start_worker("--slots", "2", "--lease", "5")
    run = fleet.begin(output=subprocess.PIPE)
    wait_until(lambda: 10 == noted(fleet, "ended"))  # 2 MB, of which a pipe takes 64 kB

    out, _ = run.communicate(timeout=PATIENCE)

    assert 0 == run.returncode, fleet.output()
    assert 10 * 2000 == out.count(b"x" * 99)
    check(fleet, expected)


def test_a_worker_without_room_for_the_code_says_so_and_others_go_on(fleet: Fleet) -> None:
    full = fleet.folder / "full"
    full.mkdir()
    with small_disk(full, "100k"):
        (full / "filler").write_bytes(bytes(60_000))
        fleet.write(WAITS)
        (fleet.home / "helper.py").write_text(f"text = {'x' * 100_000!r}\n")
        sick = fleet.start_worker("--slots", "1", AFLOW_CLIENT_CACHE_PATH=str(full))
        run = fleet.begin("--with", "retry:times=3,seconds=1")
        wait_until(lambda: "No space left on device" in fleet.worker_output())
        sick.send_signal(signal.SIGTERM)
        assert 0 == fleet.ends(sick)
        fleet.start_worker("--slots", "2")

        assert 0 == fleet.ends(run), fleet.output()
        assert "leaves it to others" in fleet.worker_output()
        assert "Traceback" not in fleet.output() + fleet.worker_output()
        check(fleet)


def test_what_is_no_message_of_ours_is_buried_and_the_loop_goes_on(
    fleet: Fleet, undisturbed: Undisturbed
) -> None:
    expected = undisturbed(LOUD)
    fleet.write(LOUD)
    odd = {
        "none": b"{} this is nothing",
        "empty": b"",
        "large": os.urandom(300_000),
        "other": seal("cancel", "tasks.default", time.time(), {"attempts": []}),
        "fields": seal("task", "tasks.default", time.time(), {"store": "file:///"}),
        "forged": seal("task", "tasks.default", time.time(), {}, [b"a key of somebody else"]),
        "elsewhere": seal("task", "tasks.gpu", time.time(), {"store": "file:///"}),
    }

    async def put_and_wait() -> None:
        queue = open_queue(fleet.queue)
        await queue.put("tasks.default", [Message(name, body) for name, body in odd.items()])
        worker = await asyncio.to_thread(fleet.start_worker, "--slots", "2")
        run = await asyncio.to_thread(fleet.begin)
        assert 0 == await asyncio.to_thread(fleet.ends, run), fleet.output()
        while len(await queue.buried("tasks.default")) < len(odd):
            await queue.lease(["nothing"], 1, 1.0, 0.5)  # lets time pass
        assert worker.poll() is None
        assert set(odd) == {each.id for each in await queue.buried("tasks.default")}
        await queue.remove("tasks.default", [*odd])
        await queue.close()

    asyncio.run(put_and_wait())

    assert len(odd) <= fleet.worker_output().count("is refused")
    assert "Traceback" not in fleet.worker_output()
    check(fleet, expected)
