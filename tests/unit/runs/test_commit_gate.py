"""The results of a run are committed in order, even if some writes take long."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from aflow.metadata.base import LEASE, LeaseState, MetadataRecord, RunRecord
from aflow.metadata.sqlite import SqliteMetadata
from aflow.runs.commit_gate import GroupCommit
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
