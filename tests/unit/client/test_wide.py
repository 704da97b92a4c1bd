"""Wide steps: few queries for any number of tasks, and never all of them in memory."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from aflow.client import Run, Step, connect_to
from aflow.metadata.base import MetadataStore
from aflow.scheduler.messages import FromTask
from aflow.scheduler.states import RunState
from tests.machine.graphs import WIDE
from tests.unit.client.recorded import Records

WIDTH = 10_000


class CountingMetadata:
    """A metadata store that counts its queries."""

    def __init__(self, store: MetadataStore) -> None:
        self.asked: Counter[str] = Counter()
        self._store = store

    def __getattr__(self, name: str) -> Any:
        self.asked[name] += name != "url"
        return getattr(self._store, name)


@pytest.fixture
def counting(records: Records) -> CountingMetadata:
    counting = CountingMetadata(records.metadata)
    connect_to(counting, records.store)
    return counting


def write_wide_run(records: Records, width: int = WIDTH) -> None:
    """Write tasks 2 to width + 1 of step body, which inherit from task 1 and the parameters."""
    recorded = records.run(graph=WIDE, alpha=0.5).task(1, "start", {"x": "shared"})
    for index in range(width):
        recorded.task(
            index + 2,
            "body",
            {"y": index},
            inherited={0: ["alpha"], 1: ["x"]},
            inputs=FromTask(1),
            split=1,
            index=index,
        )
    recorded.commit(RunState.SUCCEEDED)


def test_a_step_of_ten_thousand_tasks_is_found_and_read_in_three_queries(
    records: Records, counting: CountingMetadata
) -> None:
    write_wide_run(records)
    counting.asked.clear()

    values = [task.data.y for task in Step("Flow/1/body")]

    assert [*reversed(range(WIDTH))] == values
    assert 3 == counting.asked.total()


def test_listing_a_step_and_reading_its_own_artifacts_is_one_query(
    records: Records, counting: CountingMetadata
) -> None:
    write_wide_run(records)
    step = Run("Flow/1")["body"]
    counting.asked.clear()

    values = [(task["y"].data, task.successful, task.stdout, task.index) for task in step]

    assert [(index, True, "", index) for index in reversed(range(WIDTH))] == values
    assert Counter({"newest_tasks": 1}) == counting.asked


def test_what_all_tasks_inherit_is_read_once(records: Records, counting: CountingMetadata) -> None:
    write_wide_run(records)
    step = Step("Flow/1/body")
    counting.asked.clear()

    values = {(task.data.x, task.data.alpha) for task in step}

    assert {("shared", 0.5)} == values
    assert Counter({"newest_tasks": 1, "manifests": 2}) == counting.asked


def test_what_each_task_inherits_from_another_one_is_read_in_pages(
    records: Records, counting: CountingMetadata
) -> None:
    recorded = records.run()
    for number in range(1, 1001):
        recorded.task(number, "start", {"x": number})
        recorded.task(number + 1000, "end", inherited={number: ["x"]})
    recorded.commit(RunState.SUCCEEDED)
    step = Step("Flow/1/end")
    counting.asked.clear()

    assert [*reversed(range(1, 1001))] == [task.data.x for task in step]
    assert Counter({"newest_tasks": 1, "manifests": 5}) == counting.asked


def test_more_tasks_than_one_query_gives_are_listed_newest_first_in_pieces(
    records: Records, counting: CountingMetadata
) -> None:
    write_wide_run(records, 2 * WIDTH + 1)
    step = Step("Flow/1/body")
    counting.asked.clear()

    assert [*reversed(range(2, 2 * WIDTH + 3))] == [int(task.id) for task in step]
    assert Counter({"newest_tasks": 3}) == counting.asked


def test_a_task_that_failed_in_a_run_that_is_over_is_not_read_again(
    records: Records, counting: CountingMetadata
) -> None:
    from aflow.scheduler.states import AttemptState

    recorded = records.run().task(1, "start", state=AttemptState.FAILED, manifest=None)
    recorded.commit(RunState.FAILED)
    [task] = Step("Flow/1/start")
    counting.asked.clear()

    assert (True, False, {}) == (task.finished, task.successful, task.artifacts._asdict())
    assert Counter() == counting.asked
