"""Tasks as columns: read once, updated, encoded, sorted."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aflow.metadata.base import AttemptRecord, Batch, RunRecord, TaskColumns, TaskRecord
from aflow.metadata.sqlite import SqliteMetadata
from aflow.scheduler.messages import NoInputs, encode_inputs
from aflow.scheduler.states import AttemptState
from aflow.server.columns import Columns, ColumnsCache
from tests.contracts.metadata_stores import a_run
from tests.support.clocks import FakeClock

INPUTS = encode_inputs(NoInputs())
COLUMNS = (
    ("task", "I"), ("ready", "f"), ("start", "f"), ("end", "f"), ("step", "H"), ("worker", "H"),
    ("state", "B"), ("flags", "B"),
)  # fmt: skip


def decoded(data: bytes) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
    """Return the header, and the rows by task, decoded with nothing but the documented format."""
    length = int.from_bytes(data[:4], "little")
    head = json.loads(data[4 : 4 + length])
    at = 4 + length
    assert at % 8 == 0, "a browser reads numbers at multiples of their size alone"
    columns = {}
    for name, kind in COLUMNS:
        column = array(kind)
        size = column.itemsize * head["count"]
        column.frombytes(data[at : at + size])
        columns[name] = column
        at += size + -size % 8
    assert at == len(data)
    rows = [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]
    return head, {row["task"]: row for row in rows}


def attempt(task: int, number: int = 0, **how: Any) -> AttemptRecord:
    state = how.pop("state", AttemptState.SUCCEEDED)
    times = {"started_at": 100.0 + task, "finished_at": 101.0 + task, **how}
    return AttemptRecord(task, number, state, host="h", pid=7, **times)


def tasks(*numbers: int, step: str = "work") -> list[TaskRecord]:
    return [TaskRecord(number, step, 99.0 + number, inputs=INPUTS) for number in numbers]


@pytest.fixture
def metadata() -> Iterator[SqliteMetadata]:
    store = SqliteMetadata(":memory:")
    yield store
    store.close()


def test_a_reader_gets_what_has_changed_since_the_version_that_it_has(
    metadata: SqliteMetadata,
) -> None:
    run = metadata.create_run(a_run(created_at=99.0), b"")
    cache = ColumnsCache(metadata, FakeClock())
    running = attempt(2, state=AttemptState.RUNNING, finished_at=None)
    metadata.commit(run.key, 0, Batch(tasks=tasks(1, 2), attempts=[attempt(1), running]))
    head, rows = decoded(cache.read(now(metadata, run)))
    assert (1, ["work"], 2) == (head["version"], head["steps"], head["count"])
    assert ("succeeded", "running") == tuple(head["states"][rows[n]["state"]] for n in (1, 2))
    assert (2.0, 3.0) == (rows[1]["start"], rows[1]["end"]), "seconds after the run began"
    assert rows[2]["end"] != rows[2]["end"], "NaN: it has not ended"

    metadata.commit(run.key, 1, Batch(attempts=[attempt(2, 1)], tasks=tasks(3)))
    head, rows = decoded(cache.read(now(metadata, run), since=1))
    assert {2} == set(rows), "task 3 has no attempt, and task 1 has not changed"
    assert rows[2]["flags"] == 2, "it was retried"
    head, rows = decoded(cache.read(now(metadata, run), since=2))
    assert (0, 2) == (head["count"], head["version"])
    _, rows = decoded(cache.read(now(metadata, run), since=99))
    assert {1, 2} == set(rows), "a version of the future: all is sent"


def now(metadata: SqliteMetadata, run: RunRecord) -> RunRecord:
    found = metadata.run(run.flow, run.run)
    assert found is not None
    return found


def test_figures_of_steps_leave_out_what_was_reused_and_what_goes_on() -> None:
    columns = Columns(0.0)
    made = [(1, 0.0, 1.0, False), (2, 0.0, 3.0, False), (3, 0.0, None, False), (4, 0.0, 0.0, True)]
    columns.update(
        TaskColumns(task, "work", 0.0, start, end, AttemptState.SUCCEEDED, 0, reused, "h", 1)
        for task, start, end, reused in made
    )

    assert (1.0, 3.0, 3.0, 0.0, 0, 1) == columns.figures()["work"]


def test_tasks_that_went_on_at_once_stand_in_different_rows_of_a_trace() -> None:
    columns = Columns(100.0)
    made = [(1, "h", 100.0, 104.0), (2, "h", 101.0, None), (3, "h", 104.0, 105.0),
            (4, "g", 100.0, 101.0), (5, "g", None, None)]  # fmt: skip
    columns.update(
        TaskColumns(task, "work", 100.0, start, end, AttemptState.SUCCEEDED, 0, False, host, 1)
        for task, host, start, end in made
    )

    trace = json.loads("".join(columns.copy().trace("Flow/1", 110.0)))
    hosts = {each["pid"]: each["args"]["name"] for each in trace["traceEvents"] if "ts" not in each}
    expected = {
        each["name"]: (hosts[each["pid"]], each["tid"], each["ts"], each["dur"])
        for each in trace["traceEvents"]
        if each["ph"] == "X"
    }
    assert {
        "work/1": ("h", 0, 0, 4_000_000),
        "work/2": ("h", 1, 1_000_000, 9_000_000),
        "work/3": ("h", 0, 4_000_000, 1_000_000),
        "work/4": ("g", 0, 0, 1_000_000),
    } == expected


@given(st.permutations(range(1, 9)), st.integers(0, 8), st.integers(1, 8))
def test_pages_hold_each_task_once_in_order(order: list[int], offset: int, limit: int) -> None:
    columns = Columns(0.0)
    columns.update(
        TaskColumns(
            task, "ab"[task % 2], 0.0, 1.0, 1.0 + took, AttemptState.SUCCEEDED, 0, False, "", 1
        )
        for took, task in enumerate(order)
    )

    total, found = columns.page(None, None, "duration", offset, limit)
    assert (8, order[offset : offset + limit]) == (total, found)
    assert order[::-1] == columns.page(None, None, "-duration", 0, 8)[1]
    assert [1, 3, 5, 7] == columns.page("b", None, "task", 0, 8)[1]
    assert (0, []) == columns.page("c", "succeeded", "task", 0, 8)
