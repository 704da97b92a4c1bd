"""Which objects gc keeps for tasks that still run."""

from __future__ import annotations

from typing import Any

from aflow._core.clock import SystemClock
from aflow.runs.gc import RunsToDelete, collect
from aflow.scheduler.states import AttemptState
from aflow.storage.blobs import BlobStore
from tests.unit.client.recorded import Records


def test_a_running_task_keeps_what_was_stored_since_its_start_and_a_queued_one_nothing() -> None:
    records = Records()
    run = records.run()
    BlobStore(records.store).put(b"stored by a step that has not ended")
    now = SystemClock.now()
    assert records.metadata.acquire_lease(run.key, "coordinator/test", 60.0, now).mine

    def removed() -> int:
        found = collect(
            records.metadata, records.store, RunsToDelete(), now + 10, grace=0.0, dry_run=True
        )
        return found.objects

    open_: dict[str, Any] = {"finished_at": None, "manifest": None}
    run.task(1, "start", state=AttemptState.QUEUED, started_at=None, **open_).commit()
    assert 1 == removed()
    run.attempt(1, 0, state=AttemptState.RUNNING, started_at=now - 5, **open_).commit()
    assert 0 == removed()
    run.attempt(1, 0, started_at=now - 5).commit()
    assert 1 == removed()
    records.metadata.close()
