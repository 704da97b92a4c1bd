"""A run that only reuses results: known tasks are taken over, unknown ones ignored, and it ends."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from aflow.runs.cache.reuse import ReusableResult
from aflow.runs.resume import AT_ONCE, CLAIMS, CloneOnly, _claimed
from aflow.scheduler.machine import RunMachine
from aflow.scheduler.messages import (
    AttemptEnded,
    CancelRequested,
    Command,
    FinishRun,
    LaunchAttempt,
    Outcome,
    RunStarted,
    Transition,
)
from aflow.scheduler.states import AttemptState, RunState
from aflow.storage.blobs import BlobStore
from aflow.storage.memory import MemoryStore
from tests.machine.graphs import WIDE
from tests.support.waiting import PATIENCE

REASON = "That was all."
WIDTH = 6


class Known:
    """Knows the results of all tasks but some, in the order in which they are asked for."""

    def __init__(self, unknown: set[int]) -> None:
        self.unknown = unknown
        self.asked: list[int] = []

    def find(self, launch: LaunchAttempt) -> ReusableResult | None:
        self.asked.append(launch.task)
        if launch.task in self.unknown:
            return None
        node = WIDE.nodes[launch.step]
        count = WIDTH if node.join else None
        return ReusableResult("1/step/1", b"", Transition(node.next, node.foreach, count))

    def dismiss(self, launch: LaunchAttempt) -> None:
        pass

    def cache_key(self, task: int) -> bytes | None:
        return None

    def settled(self, task: int, manifest: bytes) -> None:
        assert task not in self.unknown


def cloning(unknown: set[int]) -> tuple[CloneOnly, Known]:
    known = Known(unknown)
    return CloneOnly(RunMachine(WIDE, {}, max_workers=AT_ONCE), known, REASON), known


def ended(machine: CloneOnly, launch: LaunchAttempt) -> list[Command]:
    reused = machine.find(launch)
    assert reused is not None
    outcome = Outcome(AttemptState.SUCCEEDED, reused.transition)
    return machine.handle(AttemptEnded(launch.task, launch.attempt, outcome), 1.0)


@given(st.sets(st.integers(1, WIDTH + 3)), st.none() | st.integers(0, WIDTH + 3))
def test_what_is_known_is_taken_over_and_the_run_ends(
    unknown: set[int], cancelled_after: int | None
) -> None:
    machine, known = cloning(unknown)
    commands = machine.handle(RunStarted(), 0.0)
    taken = 0
    ends: list[FinishRun] = []
    while commands:
        command = commands.pop(0)
        if type(command) is FinishRun:
            ends.append(command)
        if type(command) is not LaunchAttempt:
            continue
        assert command.task not in unknown
        if taken == cancelled_after:
            commands += machine.handle(CancelRequested("Stop."), 1.0)
        commands += ended(machine, command)
        taken += 1

    assert len(known.asked) == len(set(known.asked))
    [end] = ends
    if cancelled_after is not None and cancelled_after < taken:
        assert end.state in (RunState.CANCELLED, RunState.SUCCEEDED)
    elif unknown & {*known.asked}:
        assert FinishRun(RunState.CANCELLED, REASON) == end
    else:
        assert RunState.SUCCEEDED is end.state
        assert WIDTH + 3 == taken


def test_what_is_unknown_is_in_nobodys_way() -> None:
    machine, known = cloning({2, 3, 4, 5, 6})
    [start] = (each for each in machine.handle(RunStarted(), 0.0) if type(each) is LaunchAttempt)
    launched = [each for each in ended(machine, start) if type(each) is LaunchAttempt]

    assert [7] == [each.task for each in launched]
    assert [1, 2, 3, 4, 5, 6, 7] == known.asked
    assert machine.stopping is None


def test_where_nothing_is_known_the_run_ends_at_once() -> None:
    machine, _ = cloning({1})
    event = RunStarted()

    assert FinishRun(RunState.CANCELLED, REASON) == machine.handle(event, 0.0)[-1]
    assert machine.journaled(event)


class Meeting(MemoryStore):
    """A datastore in which each touch waits until others are going on."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._barrier = threading.Barrier(count)

    def touch(self, name: str) -> bool:
        self._barrier.wait(PATIENCE)
        return super().touch(name)


def test_blobs_of_the_origin_are_claimed_at_the_same_time() -> None:
    blobs = BlobStore(Meeting(CLAIMS))
    stored = {str(blobs.put(bytes([number]) * 100)) for number in range(CLAIMS - 1)}

    assert stored == _claimed(blobs, {*stored, "ab" * 32})
