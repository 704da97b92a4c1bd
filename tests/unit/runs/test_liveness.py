"""Whether a run is being driven is determined by its lease, for every way to drive it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from aflow.metadata.base import LEASE, AttemptRecord, Batch, RunRecord, RunUpdate, TaskRecord
from aflow.metadata.sqlite import SqliteMetadata
from aflow.runs.liveness import end_left_run, is_driven, is_left, left_for, settled
from aflow.scheduler.messages import CancelRequested, decode_events
from aflow.scheduler.states import AttemptState, RunState

LONG = 600.0  # seconds that do not pass in a test


@pytest.fixture
def metadata() -> Iterator[SqliteMetadata]:
    store = SqliteMetadata(":memory:")
    yield store
    store.close()


def made(metadata: SqliteMetadata, owner: str, seconds: float, **more: Any) -> RunRecord:
    """Return a run of this lease holder, as it is read."""
    run = RunRecord(
        0,
        "Flow",
        "1",
        RunState.RUNNING,
        "ann",
        100.0,
        None,
        0,
        (),
        (),
        {},
        more.pop("settings", {}),
    )
    metadata.create_run(run._replace(**more), b"", owner, seconds)
    return read(metadata)


def read(metadata: SqliteMetadata) -> RunRecord:
    found = metadata.run("Flow", "1")
    assert found is not None
    assert [found._replace(graph={})] == [
        run._replace(lease=found.lease) for run in metadata.runs("Flow")
    ]
    return found


@pytest.mark.parametrize("owner", ["coordinator/gone-1-a", "server/host-2-b", "me/c"])
def test_a_run_is_driven_until_its_lease_expires_in_any_process(
    metadata: SqliteMetadata, owner: str
) -> None:
    began = {"owner": {"host": "elsewhere", "pid": 1, "began": 1}}
    run = made(metadata, owner, LONG, settings=began)
    assert (True, False, 0.0) == (is_driven(run), is_left(run), left_for(run))

    metadata.acquire_lease(run.key, owner, -LONG, 1.0)
    run = read(metadata)
    assert (False, True) == (is_driven(run), is_left(run))
    assert LONG <= left_for(run) < LONG + 60

    metadata.acquire_lease(run.key, "coordinator/heir", LONG, 1.0)  # as one does that takes it up
    assert is_driven(read(metadata))


def test_a_run_that_has_ended_or_was_never_anybodys_is_not_driven(metadata: SqliteMetadata) -> None:
    run = made(metadata, "", 0.0)
    assert (False, True, float("inf")) == (is_driven(run), is_left(run), left_for(run))

    metadata.commit(run.key, 0, Batch(run=RunUpdate(RunState.SUCCEEDED, 2.0)))
    run = read(metadata)
    assert (False, False) == (is_driven(run), is_left(run))


@pytest.mark.parametrize("settings", [{}, {"engine": {"machine": "Flow", "execution": "1"}}])
def test_a_deployed_run_goes_on_unless_its_engine_says_otherwise(
    metadata: SqliteMetadata, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AFLOW_SFN_IAM_ROLE", raising=False)
    run = made(metadata, "step-functions/sfn-1", 0.0, settings=settings)

    assert is_driven(run)  # nobody can be asked here


def resting(
    metadata: SqliteMetadata, run: RunRecord, renews: bool
) -> tuple[list[float], Callable[[float], None]]:
    """Return a list of pauses, and a function that pauses and adds to the list. During a pause the
    lease of the run is renewed, or only gets older."""
    rested: list[float] = []

    def rest(seconds: float) -> None:
        rested.append(seconds)
        left = LEASE if renews else LEASE - sum(rested)
        metadata.acquire_lease(run.key, "coordinator/a", left, 1.0)

    return rested, rest


def test_who_has_to_know_waits_for_as_long_as_a_lease_lasts(metadata: SqliteMetadata) -> None:
    run = made(metadata, "coordinator/a", LEASE)
    rested, rest = resting(metadata, run, renews=True)
    assert settled(metadata, run, rest) is None
    assert [1.0] == rested

    rested, rest = resting(metadata, run, renews=False)
    left = settled(metadata, read(metadata), rest)
    assert left is not None
    assert is_left(left)
    assert LEASE == sum(rested)


def test_a_run_that_nobody_drives_is_ended_with_its_attempts(metadata: SqliteMetadata) -> None:
    run = made(metadata, "coordinator/a", LONG)
    out = AttemptRecord(1, 0, AttemptState.RUNNING, 1.0)
    metadata.commit(run.key, 0, Batch(tasks=[TaskRecord(1, "start", 1.0)], attempts=[out]))
    assert not end_left_run(metadata, run, RunState.CANCELLED, "enough", 9.0)
    assert RunState.RUNNING is read(metadata).state

    metadata.acquire_lease(run.key, "coordinator/a", 0.0, 1.0)
    assert end_left_run(metadata, run, RunState.CANCELLED, "enough", 9.0)
    ended = read(metadata)
    assert (RunState.CANCELLED, 9.0, "enough") == (ended.state, ended.finished_at, ended.reason)
    [attempt] = metadata.attempts(run.key, 1)
    assert (AttemptState.CANCELLED, 9.0) == (attempt.state, attempt.finished_at)
    events = [event for data in metadata.journal(run.key) if data for event in decode_events(data)]
    assert [(9.0, CancelRequested("enough"))] == events
    assert not end_left_run(metadata, run, RunState.FAILED, "again", 10.0)
