"""The results of a run are committed in order, even if some writes take long."""

from __future__ import annotations

import asyncio
import gc
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aflow.errors import MetadataError
from aflow.metadata.base import LEASE, LeaseState, MetadataRecord, RunRecord
from aflow.metadata.sqlite import SqliteMetadata
from aflow.runs.commit_gate import CommitGate, GroupCommit
from aflow.scheduler.messages import (
    FromBranches,
    FromForeach,
    FromTask,
    Inputs,
    LaunchAttempt,
    NoInputs,
)
from aflow.scheduler.states import RunState

LIMIT = 60.0  # seconds after which a test that hangs fails
HOLDER = "coordinator/here"


# Python before 3.12.4 takes `?1` in a statement for a name.
@pytest.mark.filterwarnings("ignore:Binding .* is a named parameter:DeprecationWarning")
async def test_a_run_keeps_its_lease_while_its_code_is_worked_out(tmp_path: Path) -> None:
    metadata = SqliteMetadata(tmp_path / "metadata.db")
    begun = RunRecord(0, "Flow", "1", RunState.RUNNING, "ann", 100.0, None, 0, (), (), {}, {})
    run = metadata.create_run(begun, b"", HOLDER, LEASE)
    failures: list[Exception] = []
    commits = GroupCommit(metadata, run.key, run.version, lambda number: None, failures.append)
    may_go_on = threading.Event()

    def facts() -> MetadataRecord:
        assert may_go_on.wait(LIMIT)
        return MetadataRecord(0, 0, "code", "of the run", "code", 1.0)

    commits.pending.late.append(facts)
    commits.touch()
    renewed: asyncio.Future[LeaseState] = asyncio.get_running_loop().create_future()
    commits.acquire_lease(HOLDER, LEASE, 1.0, renewed.set_result)

    assert (await asyncio.wait_for(renewed, LIMIT)).mine
    assert [] == [*metadata.metadata(run.key, 0)]
    may_go_on.set()
    await commits.flush()
    assert [] == failures
    assert ["of the run"] == [each.value for each in metadata.metadata(run.key, 0)]
    await commits.close()
    metadata.close()


class Unreachable(SqliteMetadata):
    """A metadata store that no longer answers when the lease is released."""

    def release_lease(self, run_key: int, holder: str) -> None:
        raise MetadataError("The metadata store does not respond.")


async def test_a_lease_that_cannot_be_released_is_left_to_expire(tmp_path: Path) -> None:
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, error: errors.append(error))
    metadata = Unreachable(tmp_path / "metadata.db")
    begun = RunRecord(0, "Flow", "1", RunState.RUNNING, "ann", 100.0, None, 0, (), (), {}, {})
    run = metadata.create_run(begun, b"", HOLDER, LEASE)
    commits = GroupCommit(metadata, run.key, run.version, lambda number: None, lambda _: None)

    await commits.release_lease(HOLDER)

    await commits.close()
    metadata.close()
    gc.collect()  # reports errors of futures that were not retrieved
    assert [] == errors


TASKS = st.integers(0, 9)
INPUTS = st.one_of(
    st.builds(FromTask, TASKS),
    st.builds(FromBranches, st.lists(TASKS, min_size=1, max_size=4).map(tuple)),
)


class Gate(RuleBasedStateMachine):
    """A gate together with a model: the tasks of each commit that is not written yet."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = CommitGate()
        self.pending: dict[int, set[int]] = {0: set()}  # the last one is not being written yet
        self.settled: set[int] = set()
        self.held: dict[int, LaunchAttempt] = {}
        self.launched: set[int] = set()

    @rule(task=TASKS)
    def a_task_settles(self, task: int) -> None:
        if task not in self.settled:
            commit = max(self.pending)
            self.gate.settle(task, commit)
            self.pending[commit].add(task)
            self.settled.add(task)

    @rule()
    def a_commit_begins(self) -> None:
        self.pending[max(self.pending) + 1] = set()

    @rule(inputs=INPUTS)
    def an_attempt_is_ready(self, inputs: Inputs) -> None:
        if not self.tasks_of(inputs) <= self.settled:
            return  # no task is ready before its inputs have settled
        launch = LaunchAttempt(len(self.held) + len(self.launched) + 100, "step", 0, inputs)
        commit = self.gate.commit_of(inputs)
        if commit is None:
            assert not self.needed(inputs)
            self.launched.add(launch.task)
        else:
            assert self.needed(inputs)
            assert commit in self.pending
            self.gate.hold_attempt(launch, commit)
            self.held[launch.task] = launch

    @precondition(lambda self: len(self.pending) > 1)
    @rule()
    def the_oldest_commit_is_written(self) -> None:
        number = min(self.pending)
        del self.pending[number]
        for launch in self.gate.open(number)[1]:
            assert not self.needed(launch.inputs)
            del self.held[launch.task]
            self.launched.add(launch.task)

    def needed(self, inputs: Inputs) -> set[int]:
        """Return the inputs that a pending commit contains."""
        return self.tasks_of(inputs) & set().union(*self.pending.values())

    def tasks_of(self, inputs: Inputs) -> set[int]:
        """Return the tasks that are the inputs."""
        assert isinstance(inputs, FromTask | FromBranches)
        return {inputs.task} if isinstance(inputs, FromTask) else {*inputs.tasks}

    @invariant()
    def held_attempts_are_launched_when_all_commits_are_written(self) -> None:
        assert self.held.keys().isdisjoint(self.launched)
        if not any(self.pending.values()):
            assert not self.held


TestGate = Gate.TestCase


@given(st.lists(TASKS, min_size=1, max_size=4).map(tuple), st.integers(10, 19))
def test_a_join_whose_branches_are_committed_waits_for_no_other_task(
    branches: tuple[int, ...], other: int
) -> None:
    gate = CommitGate()
    for task in branches:
        gate.settle(task, 3)
    assert 3 == gate.commit_of(FromBranches(branches))
    gate.open(3)
    gate.settle(other, 4)
    assert gate.commit_of(FromBranches(branches)) is None
    assert gate.commit_of(NoInputs()) is None
    assert 4 == gate.commit_of(FromForeach(0, ("step",), 1))
