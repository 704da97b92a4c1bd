"""The contract of every metadata store for lists: order, filters, pages, counts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aflow.errors import InvalidMessage, MetadataUnavailable
from aflow.metadata import sql
from aflow.metadata.base import LARGEST_JOBS, TASK_STATES, Batch, MetadataStore, RunRecord
from aflow.metadata.metaflow.together import WithHistory
from aflow.metadata.object_store import StoreMetadata
from aflow.metadata.sqlite import SqliteMetadata
from aflow.scheduler.states import AttemptState, TaskState
from aflow.storage.local import LocalStore
from tests.contracts.metadata_stores import NAMES, a_run, open_store, succeeded, tasks_of


@pytest.fixture(params=NAMES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MetadataStore]:
    opened = open_store(request, tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def run(store: MetadataStore) -> RunRecord:
    return store.create_run(a_run(), b"parameters")


def test_tasks_come_newest_first_by_step_state_and_page(
    store: MetadataStore, run: RunRecord
) -> None:
    batch = Batch(tasks=[*tasks_of("a", [1, 2]), *tasks_of("b", [3, 4, 5])])
    failed = succeeded(4, manifest=None)._replace(state=AttemptState.TIMED_OUT)
    # The attempt before the latest one does not count.
    batch.attempts = [succeeded(1), succeeded(2), succeeded(4), failed._replace(attempt=1)]
    batch.attempts += [succeeded(5, manifest=None)._replace(state=AttemptState.RUNNING)]
    store.commit(run.key, 0, batch)

    def found(**how: Any) -> list[int]:
        return [view.task.task for view in store.newest_tasks(run.key, **how)]

    assert [5, 4, 3, 2, 1, 0] == found()
    assert [5, 4, 3] == found(step="b")
    assert [4, 3] == found(step="b", before=5)
    assert [3] == found(before=4, limit=1)
    assert [4] == found(states=[TaskState.FAILED])
    assert [3] == found(states=[TaskState.READY])
    assert [5, 3] == found(states=[TaskState.READY, TaskState.RUNNING])
    assert [2, 1] == found(step="a", states=[TaskState.SUCCEEDED])
    assert [] == found(step="a", states=[TaskState.FAILED])
    assert [None] == [
        view.attempt.manifest for view in store.newest_tasks(run.key, before=2, limit=1, light=True)
        if view.attempt
    ]  # fmt: skip


def test_the_progress_of_steps_is_reported_by_the_states_of_their_tasks(
    store: MetadataStore, run: RunRecord
) -> None:
    batch = Batch(tasks=[*tasks_of("a", [1]), *tasks_of("b", [2, 3, 4])])
    ended = succeeded(2, manifest=None)
    lost = ended._replace(state=AttemptState.LOST, finished_at=50.0, max_rss=1 << 20)
    failed = ended._replace(task=3, state=AttemptState.FAILED, finished_at=40.0, max_rss=1 << 33)
    batch.attempts = [succeeded(1)._replace(finished_at=9.0, max_rss=None), lost, failed]
    store.commit(run.key, 0, batch)

    first, second = store.progress(run.key)
    assert ("a", {TaskState.SUCCEEDED: 1}, 9.0, None) == (
        first.step, first.tasks, first.finished_at, first.max_rss
    )  # fmt: skip
    assert ("b", {TaskState.FAILED: 2, TaskState.READY: 1}, 50.0, 1 << 33) == (
        second.step, second.tasks, second.finished_at, second.max_rss
    )  # fmt: skip
    store.commit(run.key, 1, Batch(attempts=[ended._replace(max_rss=1 << 30)]))
    assert 1 << 33 == store.progress(run.key)[1].max_rss, "the most that any attempt has taken"


def test_attempts_that_another_executor_has_are_listed_until_they_end(
    store: Any, run: RunRecord
) -> None:
    going_on = succeeded(1, manifest=None)._replace(
        state=AttemptState.QUEUED, finished_at=None, started_at=None, host="", handle="77:0"
    )
    waits = going_on._replace(task=2, handle="77:1")
    begun = going_on._replace(
        task=3, handle="78", state=AttemptState.RUNNING, started_at=5.0, host="node-1"
    )
    local = going_on._replace(task=4, handle="")
    batch = Batch(tasks=[*tasks_of("a", [1, 2]), *tasks_of("b", [3, 4])])
    batch.attempts = [going_on, waits, begun, local]
    store.commit(run.key, 0, batch)

    queued, running = AttemptState.QUEUED, AttemptState.RUNNING
    counts = {"a": {queued: 2}, "b": {queued: 1, running: 1}}
    assert counts == store.live_counts(run.key)
    first, second, third = store.handed(run.key, None, 0, 10)
    assert ("a", queued, None, "77:0", "") == (
        first.step, first.state, first.started_at, first.handle, first.host
    )  # fmt: skip
    assert ("b", running, 5.0, "78", "node-1") == (
        third.step, third.state, third.started_at, third.handle, third.host
    )  # fmt: skip
    assert [second] == store.handed(run.key, "a", 1, 10)
    assert [first] == store.handed(run.key, None, 0, 1)
    ended = going_on._replace(state=AttemptState.SUCCEEDED, finished_at=9.0)
    store.commit(run.key, 1, Batch(attempts=[ended, ended._replace(task=3)]))
    assert {"a": {queued: 1}, "b": {queued: 1}} == store.live_counts(run.key)
    assert [second] == store.handed(run.key, None, 0, 10)


def test_what_runs_publish_of_their_jobs_is_kept_replaced_and_removed(store: Any) -> None:
    store.put_jobs("Flow/2 Slurm", b"{}")
    store.put_jobs("Flow/1 AWS Batch", bytes(range(256)))
    store.put_jobs("Flow/2 Slurm", b"[]")
    kept = [(each.name, each.data) for each in store.jobs()]
    assert [("Flow/1 AWS Batch", bytes(range(256))), ("Flow/2 Slurm", b"[]")] == kept

    store.put_jobs("Flow/1 AWS Batch", b"")
    store.put_jobs("Flow/none Slurm", b"")
    assert ["Flow/2 Slurm"] == [each.name for each in store.jobs()]
    for name, data in (("Flow/3 Slurm", bytes(LARGEST_JOBS + 1)), (b"Flow/3", b""), ("a", "text")):
        with pytest.raises((InvalidMessage, MetadataUnavailable), match="1048576 bytes at most"):
            store.put_jobs(name, data)
    assert ["Flow/2 Slurm"] == [each.name for each in store.jobs()]


def test_the_kept_counts_follow_tasks_through_attempts_and_commits(
    store: MetadataStore, run: RunRecord
) -> None:
    running = succeeded(1, manifest=None)._replace(state=AttemptState.RUNNING, finished_at=None)
    store.commit(run.key, 0, Batch(tasks=tasks_of("a", [1, 2]), attempts=[running]))
    failed = running._replace(state=AttemptState.FAILED, finished_at=7.0)
    store.commit(run.key, 1, Batch(attempts=[failed]))
    store.commit(run.key, 2, Batch(attempts=[running._replace(attempt=1)]))
    (step,) = store.progress(run.key)
    assert {TaskState.RUNNING: 1, TaskState.READY: 1} == step.tasks
    assert step.finished_at == 7.0, "the attempt before has ended"

    # A late report of the attempt before changes nothing, since it is not the latest one.
    store.commit(run.key, 3, Batch(attempts=[failed._replace(finished_at=8.0)]))
    store.commit(run.key, 4, Batch(attempts=[succeeded(1)._replace(attempt=1, finished_at=9.0)]))
    (step,) = store.progress(run.key)
    assert {TaskState.SUCCEEDED: 1, TaskState.READY: 1} == step.tasks
    assert step.finished_at == 9.0

    store.delete_run(run.key)
    assert [] == store.progress(run.key)


def test_columns_of_tasks_are_those_of_latest_attempts_that_have_changed_since_a_version(
    store: MetadataStore, run: RunRecord
) -> None:
    first = [succeeded(1), succeeded(2)._replace(state=AttemptState.FAILED, host="h", pid=7)]
    store.commit(run.key, 0, Batch(tasks=tasks_of("a", [1, 2, 3]), attempts=first))
    store.commit(run.key, 1, Batch(attempts=[succeeded(2)._replace(attempt=1)]))

    found = {each.task: each for each in store.task_columns(run.key)}
    assert {1, 2} == set(found), "task 3 has no attempt yet"
    assert (1, AttemptState.SUCCEEDED) == (found[2].attempt, found[2].state)
    assert ("a", False) == (found[1].step, found[1].reused)
    assert [2] == [each.task for each in store.task_columns(run.key, after=1)]
    assert [] == [*store.task_columns(run.key, after=2)]


@pytest.mark.parametrize("rare", [0, 1000], ids=["common tags", "rare tags"])
def test_runs_of_all_flows_come_in_one_list_by_user_tag_and_page(
    store: MetadataStore, rare: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Runs with a rare tag are looked up, those with another one are met on the way from the newest.
    monkeypatch.setattr(sql, "_RARE", rare)
    for number in range(6):
        flow, user = ("Flow", "Other")[number % 2], ("ann", "bob")[number // 3]
        tags = ("odd",) if number % 2 else ()
        made = a_run(flow=flow, run=str(number), created_at=float(number))
        store.create_run(made._replace(user=user, tags=tags), b"")

    def found(**how: Any) -> str:
        return "".join(run.run for run in store.runs(None, **how))

    assert "543210" == found()
    assert "543" == found(users=["bob"])
    assert "53" == found(users=["bob"], tags=["odd"])
    assert "3" == found(until=5.0, since=2.0, tags=["odd"])
    assert "31" == found(after=(5.0, 0), tags=["odd", "odd", "odd"], limit=2)
    assert "" == found(tags=["odd", "none"])
    assert "531" == "".join(each.run for each in store.runs("Other", tags=["odd"]))
    assert [] == store.runs("Flow", tags=["odd"])
    assert "54" == found(limit=2)
    last = store.runs(None, limit=2)[-1]
    assert "32" == found(limit=2, after=(last.created_at, last.key))
    assert "31" == "".join(each.run for each in store.runs("Other", until=5.0))


def test_every_state_of_an_attempt_makes_a_state_of_its_task() -> None:
    assert set(AttemptState) == set(TASK_STATES)


def test_runs_come_in_pages_and_before_a_time(store: MetadataStore) -> None:
    # Of runs that were created at once the later one is the newer one.
    keys = [
        store.create_run(a_run(run=str(number), created_at=at), b"").key
        for number, at in enumerate((10.0, 20.0, 20.0, 20.0, 30.0), 1)
    ]

    def found(**how: Any) -> str:
        return "".join(run.run for run in store.runs("Flow", **how))

    assert "4321" == found(until=30.0)
    assert "432" == found(since=20.0, until=30.0)
    pages, last = [], None
    while page := store.runs("Flow", after=last, limit=2):
        pages.append("".join(run.run for run in page))
        last = (page[-1].created_at, page[-1].key)
    assert ["54", "32", "1"] == pages
    assert "21" == found(after=(20.0, keys[2]))
    assert "21" == found(after=(20.0, keys[2]), until=30.0)


def test_pages_of_runs_beside_others_that_were_created_at_once_have_each_run_once(
    tmp_path: Path,
) -> None:
    others = [StoreMetadata(LocalStore(tmp_path / name)) for name in "ab"]
    stores = [SqliteMetadata(":memory:"), *others]
    for number in range(9):
        stores[number % 3].create_run(a_run(run=str(number)), b"")
    store = WithHistory(stores[0], others)

    found: list[str] = []
    after = None
    while (page := store.runs("Flow", after=after, limit=2)) and len(found) < 20:
        found += [run.run for run in page]
        after = (page[-1].created_at, page[-1].key)
    whole = [run.run for run in store.runs("Flow")]
    store.close()

    assert list("012345678") == sorted(whole)
    assert whole == found
