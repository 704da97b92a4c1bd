"""The tail of a run's output: runs whose tasks are not recorded in the order of their numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from aflow.metadata.base import RunRecord
from aflow.runs.log_tail import LogTail
from aflow.scheduler.states import AttemptState, RunState
from tests.unit.client.recorded import RecordedRun, Records

ITEM = (1 << 12 | 2) << 44  # numbers of tasks in a foreach, as a state machine computes them


def printed(text: str) -> dict[str, Any]:
    """Return the fields of an attempt with this output."""
    log = b"".join(b"%016do %b\n" % (at, line.encode()) for at, line in enumerate(text.split()))
    return {"log": log, "stdout_size": len(log)}


@pytest.fixture
def records() -> Iterator[Records]:
    """A metadata store in memory."""
    records = Records()
    yield records
    records.metadata.close()


def started(records: Records) -> tuple[RecordedRun, RunRecord]:
    """Return a run of a deployed flow, and its record."""
    run = records.run()
    record = records.metadata.run("Flow", "1")
    assert record is not None
    return run, record._replace(settings=record.settings | {"engine": {"machine": "m"}})


def texts(log_tail: LogTail) -> list[str]:
    """Return the new lines."""
    return [line.text.decode() for line in log_tail.poll()]


def test_tasks_that_are_recorded_late_are_followed_and_paged_like_others(
    records: Records,
) -> None:
    run, record = started(records)
    follower = LogTail(records.metadata, records.store, record)
    run.task(1, "start", **printed("start")).commit()
    run.task(ITEM | 1, "work", **printed("item-1"))
    run.task(ITEM | 2, "work", state=AttemptState.RUNNING).commit()

    assert ["start", "item-1"] == texts(follower)
    assert [] == texts(follower)

    resumed = LogTail(records.metadata, records.store, record, after=follower.position)
    run.task(3, "join", **printed("join late"))  # a smaller number than those of the items
    run.attempt(ITEM | 2, 0, **printed("item-2")).commit()
    for log_tail in (follower, resumed):
        assert ["item-2", "join", "late"] == texts(log_tail)
        assert [] == texts(log_tail)

    run.task(4, "end", **printed("end")).end(RunState.SUCCEEDED)
    assert ["end"] == texts(follower) == texts(resumed)
    assert [] == texts(LogTail(records.metadata, records.store, record, after=resumed.position))
    of_step = LogTail(records.metadata, records.store, record, step="work")
    assert ["item-1", "item-2"] == texts(of_step)
