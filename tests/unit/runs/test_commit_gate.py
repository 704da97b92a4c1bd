"""What a run has done is committed in order, whatever takes long."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from aflow.metadata.base import LEASE, LeaseState, MetadataRecord
from aflow.metadata.sqlite import SqliteMetadata
from aflow.runs.commit_gate import GroupCommit
from tests.contracts.metadata_stores import a_run

LIMIT = 60.0  # seconds after which a test that hangs fails
HOLDER = "coordinator/here"


async def test_a_run_keeps_its_lease_while_its_code_is_worked_out(tmp_path: Path) -> None:
    metadata = SqliteMetadata(tmp_path / "metadata.db")
    run = metadata.create_run(a_run(), b"", HOLDER, LEASE)
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
    assert ["of the run"] == [each.value for each in metadata.metadata(run.key, 0)]
    assert [] == failures
    await commits.close()
    metadata.close()
