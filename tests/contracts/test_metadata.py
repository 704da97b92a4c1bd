"""The contract of every metadata store; a new backend is one line in metadata_stores.py."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from aflow._core.ids import MAX_TAG_LENGTH, MAX_TAGS
from aflow.errors import InvalidName, NotFound, StoreUnavailable, VersionConflict
from aflow.metadata.base import (
    AttemptRecord,
    Batch,
    CachedTask,
    MetadataRecord,
    MetadataStore,
    ReplacedLog,
    RunRecord,
    RunUpdate,
    TaskRecord,
    TaskView,
)
from aflow.metadata.object_store import SNAPSHOT, StoreMetadata
from aflow.scheduler.messages import NoInputs, encode_inputs
from aflow.scheduler.states import AttemptState, RunState, TaskState
from aflow.storage.local import LocalStore
from tests.contracts.metadata_stores import NAMES, a_run, open_store, succeeded, tasks_of
from tests.support.failing import Failing, Points


@pytest.fixture(params=NAMES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MetadataStore]:
    opened = open_store(request, tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def run(store: MetadataStore) -> RunRecord:
    return store.create_run(a_run(), b"parameters")


# ------------------------------------------------------------------ what was computed before


def test_a_task_that_ran_is_found_before_those_that_took_its_result_over(
    store: MetadataStore,
) -> None:
    for name, origin in (("1", ""), ("2", "1/work/7"), ("3", "1/work/7")):
        made = store.create_run(a_run(run=name), b"parameters")
        task = TaskRecord(7, "work", 200.0, origin=origin, cache_key=b"k")
        store.commit(made.key, 0, Batch(tasks=[task], attempts=[succeeded(7)]))
    found = store.cached("Flow", b"k")
    assert found is not None
    assert "1/work/7" == found.pathspec


def test_the_latest_task_that_succeeded_with_a_cache_key_is_found(store: MetadataStore) -> None:
    keys = []
    for number, name in enumerate(("1", "2", "3")):
        made = store.create_run(a_run(run=name, created_at=100.0 + number), b"parameters")
        keys.append(made.key)
        task = TaskRecord(7, "work", 200.0 + number, origin="0/work/1", cache_key=b"k")
        failed = succeeded(7)._replace(state=AttemptState.FAILED)
        ended = failed if name == "3" else succeeded(7, name.encode())
        store.commit(made.key, 0, Batch(tasks=[task], attempts=[ended]))
    other = store.create_run(a_run("Other"), b"parameters")
    store.commit(other.key, 0, Batch(tasks=[task], attempts=[succeeded(7)]))

    assert CachedTask("2/work/7", keys[1], 7, b"2") == store.cached("Flow", b"k")
    assert store.cached("Flow", b"another") is None
    view = store.task(keys[1], 7)
    assert view is not None
    assert ("0/work/1", b"k") == (view.task.origin, view.task.cache_key)


# ------------------------------------------------------------------ runs


def test_a_run_is_read_as_it_was_created(store: MetadataStore) -> None:
    run = a_run(
        tags=("a", "b"), system_tags=("user:ann",), reason="why", heartbeat_at=3.0, origin_run="0"
    )
    made = store.create_run(run, b"parameters")

    assert run._replace(key=made.key, version=0) == made
    assert made == store.run("Flow", "1")


def test_the_parameters_of_a_run_are_its_task_0(store: MetadataStore, run: RunRecord) -> None:
    view = store.task(run.key, 0)

    assert view is not None
    assert TaskRecord(0, "_parameters", 100.0, inputs=encode_inputs(NoInputs())) == view.task
    assert TaskState.SUCCEEDED is view.state
    assert {0: b"parameters"} == store.manifests(run.key, [0])


def test_a_run_id_that_the_flow_has_is_refused_and_nothing_changes(store: MetadataStore) -> None:
    first = store.create_run(a_run(tags=("first",)), b"1")
    with pytest.raises(VersionConflict, match="The run Flow/1 already exists"):
        store.create_run(a_run(tags=("second",), created_at=500.0), b"2")

    assert [first._replace(graph={})] == store.runs("Flow")
    assert {0: b"1"} == store.manifests(first.key, [0])


def test_two_flows_may_have_the_same_run_id(store: MetadataStore) -> None:
    one, two = store.create_run(a_run("One"), b"1"), store.create_run(a_run("Two"), b"2")

    assert one == store.run("One", "1")
    assert two == store.run("Two", "1")
    assert one.key != two.key


def test_what_is_not_there_is_none_or_empty(store: MetadataStore, run: RunRecord) -> None:
    assert store.run("Flow", "2") is None
    assert store.run("Other", "1") is None
    assert store.task(run.key, 7) is None
    assert [] == store.runs("Other")
    assert [] == list(store.journal(run.key))
    assert [] == store.steps(run.key)
    assert [] == store.attempts(run.key, 7)
    assert [] == store.metadata(run.key, 7)
    assert {} == store.manifests(run.key, [7])
    assert [] == list(store.tasks(run.key, step="other"))
    assert [] == store.split_manifests(run.key, 0, ["other"])


def test_flows_come_newest_first(store: MetadataStore) -> None:
    for flow, at in (("B", 2.0), ("A", 1.0), ("C", 3.0), ("B", 9.0)):
        store.create_run(a_run(flow, run=f"{at}", created_at=at), b"")

    assert [("C", 3.0), ("B", 2.0), ("A", 1.0)] == store.flows()


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, "54321"),
        ({"limit": 2}, "54"),
        ({"limit": 0}, ""),
        ({"since": 3.0}, "543"),
        ({"since": 3.5}, "54"),
        ({"tags": ["odd"]}, "531"),
        ({"tags": ["odd", "user:ann"]}, "31"),
        ({"tags": ["odd", "user:ann", "odd"]}, "31"),
        ({"tags": ["odd", "user:ann", "none"]}, ""),
        ({"tags": ["user:ann"], "limit": 1}, "3"),
        ({"tags": ["none"]}, ""),
        ({"states": [RunState.FAILED]}, "2"),
        ({"states": [RunState.FAILED, RunState.RUNNING], "since": 2.0}, "5432"),
        ({"states": [RunState.CANCELLED]}, ""),
    ],
)
def test_runs_are_found_newest_first(
    store: MetadataStore, asked: dict[str, Any], expected: str
) -> None:
    for number in (2, 1, 3, 5, 4):
        record = a_run(
            run=f"{number}",
            created_at=float(number),
            state=RunState.FAILED if number == 2 else RunState.RUNNING,
            tags=("odd",) if number % 2 else (),
            system_tags=("user:ann",) if number <= 3 else (),
        )
        store.create_run(record, b"")

    found = store.runs("Flow", **asked)
    assert list(expected) == [each.run for each in found]
    assert [{}] * len(found) == [each.graph for each in found]
    assert found == [store.run("Flow", each)._replace(graph={}) for each in expected]


# ------------------------------------------------------------------ commits


def test_a_commit_writes_all_of_its_batch(store: MetadataStore, run: RunRecord) -> None:
    task = TaskRecord(1, "start", 200.0, 0, 3, b"inputs")
    attempt = AttemptRecord(
        1, 0, AttemptState.SUCCEEDED, 201.0, 202.0, "", b"left", b"log", 2, 30, 40, "host", 99,
        "handle", 1 << 40, 0.25,
    )  # fmt: skip
    fact = MetadataRecord(1, 0, "field", "välue", "type", 203.0)
    update = RunUpdate(RunState.FAILED, 300.0, "a reason")
    version = store.commit(run.key, 0, Batch(b"events", [task], [attempt], [fact], update))

    assert 1 == version
    assert [b"events"] == list(store.journal(run.key))
    assert TaskView(run.key, task, attempt, 1) == store.task(run.key, 1)
    assert [attempt] == store.attempts(run.key, 1)
    assert [fact] == store.metadata(run.key, 1)
    assert [("start", 200.0, 1)] == store.steps(run.key)
    ended = run._replace(state=RunState.FAILED, finished_at=300.0, reason="a reason", version=1)
    assert ended == store.run("Flow", "1")


def test_an_update_leaves_as_it_is_what_it_does_not_name(
    store: MetadataStore, run: RunRecord
) -> None:
    store.commit(run.key, 0, Batch(run=RunUpdate(finished_at=300.0, reason="first")))
    store.commit(run.key, 1, Batch(run=RunUpdate(state=RunState.CANCELLED)))
    store.commit(run.key, 2, Batch())

    now = run._replace(state=RunState.CANCELLED, finished_at=300.0, reason="first", version=3)
    assert now == store.run("Flow", "1")


def test_a_commit_on_another_version_is_refused_and_changes_nothing(
    store: MetadataStore, run: RunRecord
) -> None:
    store.commit(run.key, 0, Batch(b"one", tasks_of("start", [1])))
    batch = Batch(b"two", tasks_of("other", [2]), [succeeded(1)], [], RunUpdate(RunState.FAILED))
    for version in (0, 2):
        with pytest.raises(VersionConflict, match="this one stops"):
            store.commit(run.key, version, batch)

    assert run._replace(version=1) == store.run("Flow", "1")
    assert [b"one"] == list(store.journal(run.key))
    assert [("start", 201.0, 1)] == store.steps(run.key)
    assert [] == store.attempts(run.key, 1)
    assert 2 == store.commit(run.key, 1, batch)


def test_a_batch_that_cannot_be_written_leaves_nothing(
    store: MetadataStore, run: RunRecord
) -> None:
    twice = tasks_of("start", [1, 1])
    with pytest.raises(Exception, match=r"(?i)unique"):
        store.commit(run.key, 0, Batch(b"events", twice, [succeeded(1)]))

    assert run == store.run("Flow", "1")
    assert [] == list(store.journal(run.key))
    assert store.task(run.key, 1) is None
    assert 1 == store.commit(run.key, 0, Batch(b"events", tasks_of("start", [1])))
    assert [("start", 201.0, 1)] == store.steps(run.key)


@pytest.mark.parametrize("events", [b"one", b""], ids=["with events", "without"])
def test_a_commit_whose_answer_was_lost_is_known_by_its_mark(
    store: MetadataStore, run: RunRecord, events: bytes
) -> None:
    batch = Batch(events, tasks_of("start", [1]), [succeeded(1)])
    for _ in range(2):
        assert 1 == store.commit(run.key, 0, batch, "ours")

    with pytest.raises(VersionConflict, match="this one stops"):
        store.commit(run.key, 0, batch, "another")
    assert [events] * bool(events) == list(store.journal(run.key))
    assert 2 == store.commit(run.key, 1, Batch(b"two"), "next")
    with pytest.raises(VersionConflict, match="this one stops"):
        store.commit(run.key, 0, batch, "ours")


def test_a_commit_to_an_object_store_that_did_not_answer_is_known_by_its_mark(
    tmp_path: Path,
) -> None:
    points = Points(stop_at=1, how="after", dies=False)  # after the object of the run
    others = ("get", "list", "put", "size")
    objects: Any = Failing(LocalStore(tmp_path), points, StoreUnavailable, but=others)
    store, reader = StoreMetadata(objects), StoreMetadata(LocalStore(tmp_path))
    run = store.create_run(a_run(), b"")
    batch = Batch(b"events", tasks_of("start", [1]), [succeeded(1)])

    with pytest.raises(StoreUnavailable):
        store.commit(run.key, 0, batch, "ours")
    assert 1 == store.commit(run.key, 0, batch, "ours")
    assert 2 == store.commit(run.key, 1, Batch(b"more"))

    assert [b"events", b"more"] == list(reader.journal(run.key))
    store.close()
    reader.close()


def test_a_run_that_is_read_from_its_snapshot_is_the_same(tmp_path: Path) -> None:
    objects = LocalStore(tmp_path)
    store = StoreMetadata(objects)
    run = store.create_run(a_run(tags=("a",)), b"parameters", "step-functions/x", 1000.0)
    for number in range(SNAPSHOT):
        batch = Batch(tasks=tasks_of("wide", [number + 1]), attempts=[succeeded(number + 1)])
        store.commit(run.key, number, batch)
    reader = StoreMetadata(objects)

    ours, theirs = (each.run("Flow", "1") for each in (store, reader))
    assert ours is not None
    assert theirs is not None
    assert ours._replace(lease=None) == theirs._replace(lease=None)
    assert ours.lease is not None
    assert theirs.lease is not None
    assert "step-functions/x" == theirs.lease.holder
    assert ours.lease.left == pytest.approx(theirs.lease.left, abs=60.0)
    assert list(store.tasks(run.key)) == list(reader.tasks(run.key))
    changed = ({each.task for each in each.task_columns(run.key, 20)} for each in (store, reader))
    ours_changed, theirs_changed = changed
    assert ours_changed <= theirs_changed
    store.close()
    reader.close()


def test_a_run_in_an_object_store_is_changed_and_deleted_by_its_key_alone(tmp_path: Path) -> None:
    objects = LocalStore(tmp_path)
    first, second, third = (StoreMetadata(objects) for _ in range(3))
    run = first.create_run(a_run(), b"")

    assert ("new",) == second.change_tags(run.key, ["new"], [])
    third.delete_run(run.key)

    assert [] == list(objects.list(""))
    for store in (first, second, third):
        store.close()


def test_runs_have_versions_of_their_own(store: MetadataStore, run: RunRecord) -> None:
    other = store.create_run(a_run(run="2"), b"")
    store.commit(run.key, 0, Batch(b"a"))
    store.commit(run.key, 1, Batch(b"b"))

    assert 1 == store.commit(other.key, 0, Batch(b"c"))
    assert [b"a", b"b"] == list(store.journal(run.key))
    assert [b"c"] == list(store.journal(other.key))


def test_of_many_threads_that_commit_on_one_version_one_wins(
    store: MetadataStore, run: RunRecord
) -> None:
    start = threading.Barrier(4)

    def commit(number: int) -> bytes | None:
        start.wait()
        try:
            store.commit(run.key, 0, Batch(b"%d" % number))
        except VersionConflict:
            return None
        return b"%d" % number

    with ThreadPoolExecutor(4) as threads:
        won = [each for each in threads.map(commit, range(4)) if each is not None]

    assert 1 == len(won)
    assert won == list(store.journal(run.key))


def test_readers_in_other_threads_see_commits_whole(store: MetadataStore, run: RunRecord) -> None:
    rounds, seen = 40, []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.append(sum(1 for _ in store.tasks(run.key, step="wide")))

    with ThreadPoolExecutor(2) as threads:
        readers = [threads.submit(read) for _ in range(2)]
        for number in range(rounds):
            numbers = range(1 + 10 * number, 11 + 10 * number)
            store.commit(run.key, number, Batch(b"", tasks_of("wide", numbers)))
        done.set()
        for reader in readers:
            reader.result()

    assert {0} == {count % 10 for count in seen}
    assert 10 * rounds == sum(1 for _ in store.tasks(run.key, step="wide"))


# ------------------------------------------------------------------ attempts


def test_an_attempt_that_ends_replaces_what_was_written_when_it_started(
    store: MetadataStore, run: RunRecord
) -> None:
    running = AttemptRecord(1, 0, AttemptState.RUNNING, 1.0, pid=7)
    store.commit(run.key, 0, Batch(b"", tasks_of("start", [1]), [running]))
    assert [running] == store.attempts(run.key, 1)
    store.commit(run.key, 1, Batch(b"", [], [succeeded(1)]))

    assert [succeeded(1)] == store.attempts(run.key, 1)


def test_a_task_shows_its_latest_attempt_or_the_one_asked_for(
    store: MetadataStore, run: RunRecord
) -> None:
    failed = AttemptRecord(1, 0, AttemptState.FAILED, 1.0, 2.0, "it broke")
    tasks = tasks_of("start", [1])
    (task,) = tasks
    store.commit(run.key, 0, Batch(b"", tasks, [succeeded(1, attempt=1), failed]))

    assert [failed, succeeded(1, attempt=1)] == store.attempts(run.key, 1)
    assert TaskView(run.key, task, succeeded(1, attempt=1), 2) == store.task(run.key, 1)
    assert TaskView(run.key, task, failed, 2) == store.task(run.key, 1, attempt=0)
    assert TaskView(run.key, task, None, 2) == store.task(run.key, 1, attempt=2)
    assert [store.task(run.key, 1)] == list(store.tasks(run.key, step="start"))


def test_a_task_without_attempts_is_ready(store: MetadataStore, run: RunRecord) -> None:
    tasks = tasks_of("start", [1])
    (task,) = tasks
    store.commit(run.key, 0, Batch(b"", tasks))
    view = store.task(run.key, 1)

    assert TaskView(run.key, task, None, 0) == view
    assert view is not None
    assert TaskState.READY is view.state


@pytest.mark.parametrize(
    ("attempt", "task"),
    [
        (AttemptState.QUEUED, TaskState.RUNNING),
        (AttemptState.RUNNING, TaskState.RUNNING),
        (AttemptState.SUCCEEDED, TaskState.SUCCEEDED),
        (AttemptState.FAILED, TaskState.FAILED),
        (AttemptState.TIMED_OUT, TaskState.FAILED),
        (AttemptState.LOST, TaskState.FAILED),
        (AttemptState.CANCELLED, TaskState.CANCELLED),
        (AttemptState.INTERRUPTED, TaskState.CANCELLED),
    ],
)
def test_a_task_is_as_its_attempt_is(
    store: MetadataStore, run: RunRecord, attempt: AttemptState, task: TaskState
) -> None:
    store.commit(run.key, 0, Batch(b"", tasks_of("start", [1]), [AttemptRecord(1, 0, attempt)]))
    view = store.task(run.key, 1)

    assert view is not None
    assert task is view.state


def test_facts_about_a_task_are_kept_in_order(store: MetadataStore, run: RunRecord) -> None:
    facts = [MetadataRecord(1, 0, "same", f"{number}", "type", 9.0) for number in range(3)]
    other = MetadataRecord(2, 1, "same", "other", "type", 1.0)
    store.commit(run.key, 0, Batch(metadata=[facts[0], other, facts[1]]))
    store.commit(run.key, 1, Batch(metadata=facts[2:]))

    assert facts == store.metadata(run.key, 1)
    assert [other] == store.metadata(run.key, 2)


# ------------------------------------------------------------------ tasks


def test_tasks_come_in_order_from_any_place(store: MetadataStore, run: RunRecord) -> None:
    batch = Batch(b"", tasks_of("odd", range(1, 1200, 2)) + tasks_of("even", range(2, 1200, 2)))
    store.commit(run.key, 0, batch)

    def found(**asked: Any) -> list[int]:
        return [view.task.task for view in store.tasks(run.key, **asked)]

    assert list(range(1200)) == found()
    assert list(range(2, 1200, 2)) == found(step="even")
    assert list(range(11, 1200)) == found(after=10)
    assert [11, 13, 15] == found(step="odd", after=10, limit=3)
    assert [] == found(step="odd", limit=0)
    assert [] == found(after=1199)


def test_tasks_of_a_foreach_come_by_index(store: MetadataStore, run: RunRecord) -> None:
    inner = tasks_of("inner", [9, 8, 7], split=1)
    other = tasks_of("other", [4, 5], split=1)
    elsewhere = tasks_of("inner", [20, 21], split=2)
    store.commit(run.key, 0, Batch(b"", inner + other + elsewhere + tasks_of("inner", [30])))

    def found(**asked: Any) -> list[int]:
        return [view.task.task for view in store.tasks(run.key, split=1, **asked)]

    assert [9, 8, 7] == found(steps=["inner"])
    assert [8, 7] == found(steps=["inner"], after=0)
    assert [8] == found(steps=["inner"], after=0, limit=1)
    assert [4, 9, 5, 8, 7] == found(steps=["inner", "other"])
    assert [4, 9, 5, 8, 7] == found()
    assert [] == found(steps=["none"])


def test_a_light_look_leaves_manifests_and_logs_out(store: MetadataStore, run: RunRecord) -> None:
    whole = succeeded(1)._replace(log=b"log", stdout_size=3)
    store.commit(run.key, 0, Batch(b"", tasks_of("start", [1]), [whole]))

    assert [whole] == [view.attempt for view in store.tasks(run.key, step="start")]
    light = whole._replace(manifest=None, log=None)
    assert [light] == [view.attempt for view in store.tasks(run.key, step="start", light=True)]


def test_a_stream_that_is_not_read_to_its_end_hides_no_later_commit(
    store: MetadataStore, run: RunRecord
) -> None:
    store.commit(run.key, 0, Batch(b"", tasks_of("wide", range(1, 1200))))
    stream = store.tasks(run.key)
    next(stream)
    store.commit(run.key, 1, Batch(b"", tasks_of("late", [5000])))

    assert store.task(run.key, 5000) is not None
    assert 1 == sum(1 for _ in store.tasks(run.key, step="late"))
    assert 1198 <= sum(1 for _ in stream)  # as it was when the stream began, or a commit later


def test_steps_come_newest_first_and_are_counted(store: MetadataStore, run: RunRecord) -> None:
    store.commit(run.key, 0, Batch(b"", tasks_of("start", [1])))
    store.commit(run.key, 1, Batch(b"", tasks_of("wide", [2, 3, 4]) + tasks_of("end", [9])))
    store.commit(run.key, 2, Batch(b"", tasks_of("wide", [5])))

    assert [("end", 209.0, 1), ("wide", 202.0, 4), ("start", 201.0, 1)] == store.steps(run.key)


# ------------------------------------------------------------------ manifests


def test_manifests_are_those_of_latest_attempts_that_succeeded(
    store: MetadataStore, run: RunRecord
) -> None:
    attempts = [
        succeeded(1, b"one"),
        AttemptRecord(2, 0, AttemptState.FAILED, manifest=b"why it failed"),
        AttemptRecord(3, 0, AttemptState.FAILED, manifest=b"first"),
        succeeded(3, b"three", attempt=1),
        AttemptRecord(4, 0, AttemptState.RUNNING),
        succeeded(5, None),
    ]
    store.commit(run.key, 0, Batch(b"", tasks_of("start", range(1, 6)), attempts))

    assert {1: b"one", 3: b"three"} == store.manifests(run.key, [5, 4, 3, 2, 1, 3, 77])
    assert {} == store.manifests(run.key, [])


def test_the_inputs_of_a_foreach_join_come_in_pages(store: MetadataStore, run: RunRecord) -> None:
    numbers = range(10, 1510)
    attempts = [succeeded(number, b"%d" % number) for number in numbers]
    attempts[7] = attempts[7]._replace(state=AttemptState.FAILED)
    wide = tasks_of("wide", numbers, split=1)
    store.commit(run.key, 0, Batch(b"", wide + tasks_of("other", [5], split=1), attempts))

    whole = [(n - 10, n, "wide", b"%d" % n) for n in numbers if n != 17]
    assert whole[:1000] == store.split_manifests(run.key, 1, ["wide"])
    assert whole[1000:] == store.split_manifests(run.key, 1, ["wide"], whole[999][0] + 1)
    assert whole[6:8] == store.split_manifests(run.key, 1, ["wide", "other"], start=6, limit=2)
    assert [] == store.split_manifests(run.key, 2, ["wide"])


def test_of_several_tasks_for_one_item_the_last_one_goes_to_the_join(
    store: MetadataStore, run: RunRecord
) -> None:
    rounds = [TaskRecord(number, "body", 1.0, 1, 0) for number in (5, 6, 7)]
    batch = Batch(b"", rounds, [succeeded(number, b"%d" % number) for number in (6, 7, 5)])
    store.commit(run.key, 0, batch)

    assert [(0, 7, "body", b"7")] == store.split_manifests(run.key, 1, ["body"])


# ------------------------------------------------------------------ tags


def test_tags_are_removed_and_then_added(store: MetadataStore) -> None:
    made = store.create_run(a_run(tags=("a", "b"), system_tags=("user:ann",)), b"")

    assert ("b", "c") == store.change_tags(made.key, ["b", "c"], ["a", "b", "never there"])
    assert made._replace(tags=("b", "c")) == store.run("Flow", "1")
    assert ("b", "c") == store.change_tags(made.key, [], [])


@pytest.mark.parametrize(
    ("add", "remove", "sentence"),
    [
        ([""], [], "not empty"),
        (["fine", "t" * (MAX_TAG_LENGTH + 1)], [], "too long"),
        (["\udc80"], [], "UTF-8"),
        (["fine"], ["user:ann"], "system tag"),
        ([f"t{number}" for number in range(MAX_TAGS)], [], f"at most {MAX_TAGS} tags"),
    ],
)
def test_tags_that_are_not_allowed_change_nothing(
    store: MetadataStore, add: list[str], remove: list[str], sentence: str
) -> None:
    made = store.create_run(a_run(tags=("a",), system_tags=("user:ann",)), b"")
    with pytest.raises(InvalidName, match=sentence):
        store.change_tags(made.key, add, remove)

    assert made == store.run("Flow", "1")


def test_a_run_that_is_not_there_cannot_be_tagged(store: MetadataStore, run: RunRecord) -> None:
    with pytest.raises(NotFound, match="no longer exists"):
        store.change_tags(run.key + 1, ["a"], [])
    another = store.create_run(a_run(run="2"), b"")
    assert () == store.change_tags(another.key, [], [])


def test_tags_changed_from_many_threads_are_all_there(store: MetadataStore, run: RunRecord) -> None:
    tags = [f"tag {number:02}" for number in range(20)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda tag: store.change_tags(run.key, [tag], []), tags))

    found = store.run("Flow", "1")
    assert found is not None
    assert tuple(tags) == found.tags


# ------------------------------------------------------------------ texts and ends


@pytest.mark.parametrize("text", ["", "naïve ☃ 🐌", "two\nlines\x00and a NUL", "'; --", "%_\\"])
def test_any_text_is_kept_as_it_is(store: MetadataStore, text: str) -> None:
    made = store.create_run(a_run(user=text, settings={"script": text}), b"")
    attempt = AttemptRecord(1, 0, AttemptState.FAILED, reason=text)
    fact = MetadataRecord(1, 0, "field", text, "type", 1.0)
    batch = Batch(b"", tasks_of("start", [1]), [attempt], [fact], RunUpdate(reason=text))
    store.commit(made.key, 0, batch)

    assert made._replace(version=1, reason=text) == store.run("Flow", "1")
    assert [attempt] == store.attempts(made.key, 1)
    assert [fact] == store.metadata(made.key, 1)


def test_text_that_could_not_be_decoded_is_kept_as_an_escape(
    store: MetadataStore, run: RunRecord
) -> None:
    attempt = AttemptRecord(1, 0, AttemptState.FAILED, reason="no file caf\udce9")
    fact = MetadataRecord(1, 0, "field", "\udce9", "type", 1.0)
    batch = Batch(b"", tasks_of("start", [1]), [attempt], [fact], RunUpdate(reason="\udce9!"))
    store.commit(run.key, 0, batch)

    assert [r"no file caf\udce9"] == [each.reason for each in store.attempts(run.key, 1)]
    assert [r"\udce9"] == [each.value for each in store.metadata(run.key, 1)]
    assert run._replace(version=1, reason=r"\udce9!") == store.run("Flow", "1")


def test_a_store_may_be_closed_twice(store: MetadataStore) -> None:
    store.create_run(a_run(), b"")
    assert store.run("Flow", "1") is not None
    store.close()
    store.close()


# ------------------------------------------------------------------ logs that are redacted


def test_a_log_is_replaced_and_the_rest_of_the_attempt_stays(
    store: MetadataStore, run: RunRecord
) -> None:
    before = succeeded(7)._replace(log=b"a secret", stdout_size=9, host="here")
    store.commit(run.key, 0, Batch(tasks=tasks_of("work", [7, 8]), attempts=[before, succeeded(8)]))

    store.replace_logs(run.key, [ReplacedLog(7, 0, b"nothing", 0, 7, 0)])
    store.replace_logs(run.key, [])

    assert [before._replace(log=b"nothing", stdout_size=7)] == store.attempts(run.key, 7)
    assert [succeeded(8)] == store.attempts(run.key, 8)
    assert 2 == store.commit(run.key, 1, Batch())
