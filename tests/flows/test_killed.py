"""kill -9 of task processes at random times: the run finishes as if nothing had happened."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import threading

import pytest

from aflow.scheduler.states import AttemptState, RunState
from aflow.storage.artifacts import Manifest
from tests.flows.conftest import Workspace, children_of

KILLS = 50
SQUARES = """
class Flow_(FlowSpec):
    @step
    def start(self):
        self.xs = list(range(150))
        self.next(self.work, foreach="xs")

    @step
    def work(self):
        time.sleep(0.02)
        self.y = self.input ** 2
        self.next(self.join)

    @step
    def join(self, inputs):
        self.total = sum(each.y for each in inputs)
        self.next(self.end)

    @step
    def end(self):
        print("total", self.total)
"""


# The last items go on when enough processes were killed: the run does not end before.
UNTIL_ENOUGH = SQUARES.replace(
    "time.sleep(0.02)",
    "time.sleep(0.02)\n        while self.input > 100 and not os.path.exists('enough'):\n"
    "            time.sleep(0.01)",
)


class Log:
    """The output of a run, which is read in the background."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self._stdout = process.stdout
        self.lines: list[str] = []
        self.begun = set[int]()  # the processes in which a task has started
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        for line in self._stdout:
            self.lines.append(line)
            if found := re.search(r"\(pid (\d+)\)\] Task is starting", line):
                self.begun.add(int(found[1]))

    def text(self) -> str:
        """Return the complete output after the end of the run."""
        self._reader.join()
        return "".join(self.lines)


def descendants_of(pid: int) -> set[int]:
    """Return all descendants of a process."""
    children = children_of(pid)
    return {*children}.union(*map(descendants_of, children))


def kill_tasks_of(
    process: subprocess.Popen[str], log: Log, chance: random.Random, kills: int
) -> int:
    """Kill that many task processes of a run, one after the other; how many it came to.

    Each of them has begun a task. Of processes that run many tasks three that end in a row before
    they have begun one are taken for an environment in which none can, which ends the run."""
    killed, pause = 0, threading.Event()
    while process.poll() is None and killed < kills:
        victims = sorted(log.begun & descendants_of(process.pid))
        if victims:
            victim = chance.choice(victims)
            try:
                os.kill(victim, signal.SIGKILL)
                log.begun.discard(victim)
                killed += 1
            except ProcessLookupError:
                continue
        pause.wait(chance.uniform(0.0, 0.05))
    return killed


@pytest.mark.parametrize("isolation", ["task", "worker"])
def test_tasks_killed_at_random_moments_are_run_again_and_nothing_is_lost(
    workspace: Workspace, isolation: str
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    workspace.write(UNTIL_ENOUGH)
    process = workspace.start(
        "--no-pylint", "run", "--isolation", isolation, "--max-workers", "3",
        "--max-num-splits", "1000", "--with", "retry:times=50,seconds=0",
    )  # fmt: skip
    log = Log(process)
    killed = kill_tasks_of(process, log, random.Random(seed), KILLS // 2)
    (workspace.path / "enough").touch()
    said = log.text()
    ran = workspace.finish(process)

    assert 0 == ran.code, said + ran.err
    assert KILLS // 2 == killed
    assert f"total {sum(x * x for x in range(150))}" in said
    state, tasks = workspace.latest()
    assert RunState.SUCCEEDED is state
    assert 150 + 3 == len(tasks)
    metadata = workspace.metadata
    run = metadata.runs("Flow_")[0]
    for each in tasks:
        ends = [attempt.state for attempt in metadata.attempts(run.key, each.task.task)]
        assert 1 == ends.count(AttemptState.SUCCEEDED)
        assert AttemptState.SUCCEEDED is ends[-1]
        assert each.attempt is not None
        if each.task.step == "work":
            assert "y" in Manifest.decode(each.attempt.manifest or b"").artifacts
    metadata.close()
    workspace.check()


@pytest.mark.parametrize("isolation", ["task", "worker"])
def test_a_killed_template_costs_the_run_nothing_but_time(
    workspace: Workspace, isolation: str
) -> None:
    workspace.write(SQUARES)
    process = workspace.start(
        "--no-pylint", "run", "--isolation", isolation, "--max-workers", "3",
        "--max-num-splits", "1000",
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if "/work/20 " in line:
            break
    os.kill(children_of(process.pid)[0], signal.SIGKILL)
    ran = workspace.finish(process)
    assert 0 == ran.code, ran.out + ran.err
    assert f"total {sum(x * x for x in range(150))}" in ran.lines
    workspace.check()


def test_what_was_committed_before_the_coordinator_was_killed_can_be_read(
    workspace: Workspace,
) -> None:
    workspace.write(SQUARES)
    process = workspace.start(
        "--no-pylint", "run", "--max-workers", "2", "--max-num-splits", "1000"
    )
    assert process.stdout is not None
    done = 0
    for line in process.stdout:
        done += "Task finished successfully." in line
        if done == 10:
            break
    process.kill()
    workspace.finish(process)
    workspace.check()
    _, tasks = workspace.latest()
    kept = [each for each in tasks if each.attempt and each.attempt.manifest]
    assert 10 <= len(kept)  # what was announced, was committed
    for each in kept:
        assert each.attempt is not None
        assert Manifest.decode(each.attempt.manifest or b"").step == each.task.step
