"""A task's artifacts, output and attempts, as the client returns them."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from typing import Any

import pytest

from aflow.client import DataArtifact, Run, Step, Task, TaskData
from aflow.errors import CorruptBlob, InvalidInput, NotFound, StorageError
from aflow.flow.current import current
from aflow.flow.graph import Kind
from aflow.scheduler.states import AttemptState, RunState
from aflow.storage.artifacts import ForeachFrame
from aflow.storage.blobs import blob_name
from aflow.storage.logs import LogBuffer, chunk_name
from tests.machine.graphs import WIDE, end, foreach, graph, linear
from tests.unit.client.recorded import BEGIN, Records

RUNNING: dict[str, Any] = {
    "state": AttemptState.RUNNING,
    "finished_at": None,
    "manifest": None,
}
ERROR = {
    "type": "ValueError",
    "module": "builtins",
    "message": "no good",
    "traceback": "Traceback ...\nValueError: no good\n",
    "caught": True,
}

# ------------------------------------------------------------------ artifacts


def test_artifacts_are_read_by_attribute(records: Records) -> None:
    records.run().task(1, "start", {"x": [1, 2], "big": "y" * 100_000}).commit()
    data = Task("Flow/1/start/1").data

    assert [1, 2] == data.x
    assert "y" * 100_000 == data.big
    assert "x" in data
    assert "z" not in data
    assert ["big", "x"] == dir(data)
    assert "<TaskData: big, x>" == repr(data)


def test_each_reading_gives_a_value_of_its_own(records: Records) -> None:
    records.run().task(1, "start", {"x": [1]}).commit()
    data = Task("Flow/1/start/1").data

    data.x.append(2)

    assert [1] == data.x


def test_an_artifact_that_is_not_there_is_an_attribute_error(records: Records) -> None:
    records.run().task(1, "start", {"score": 1}).commit()
    data = Task("Flow/1/start/1").data

    assert not hasattr(data, "x")
    with pytest.raises(NotFound, match=r"has no artifact 'scor'\. Did you mean 'score'\?"):
        _ = data.scor


def test_a_task_that_runs_has_left_nothing_yet(records: Records) -> None:
    records.run().task(1, "start", **RUNNING).commit()
    task = Task("Flow/1/start/1")

    assert [] == list(task)
    with pytest.raises(AttributeError, match="it is running and has left none"):
        _ = task.data.x


def test_what_is_passed_on_is_read_from_the_task_that_set_it(records: Records) -> None:
    recorded = records.run(alpha=0.5).task(1, "start", {"x": 1, "y": 2})
    recorded.task(2, "end", {"y": 3}, inherited={0: ["alpha"], 1: ["x"]}).commit()
    task = Task("Flow/1/end/2")

    assert (1, 3, 0.5) == (task.data.x, task.data.y, task.data.alpha)
    assert {"alpha", "x", "y"} == {artifact.id for artifact in task}
    assert Task("Flow/1/start/1")["x"].sha == task["x"].sha


def test_an_artifact_tells_what_it_is_without_being_read(records: Records) -> None:
    records.run().task(1, "start", {"x": [1, 2, 3]}).commit(RunState.SUCCEEDED)
    artifact = Task("Flow/1/start/1").artifacts.x

    assert "Flow/1/start/1/x" == artifact.pathspec
    assert "list" == artifact.type
    assert 3 == artifact.preview["len"]
    assert len(pickle.dumps([1, 2, 3], protocol=5)) == artifact.size
    assert 64 == len(artifact.sha)
    assert BEGIN + 1.5 == artifact.finished_at.timestamp()
    assert [1, 2, 3] == artifact.data
    assert [] == list(artifact)


def test_an_artifact_is_found_by_its_pathspec(records: Records) -> None:
    records.run().task(1, "start", {"x": 5}).commit()

    assert 5 == DataArtifact("Flow/1/start/1/x").data
    with pytest.raises(KeyError, match="has no artifact 'y'"):
        DataArtifact("Flow/1/start/1/y")


def test_equal_values_have_the_same_digest(records: Records) -> None:
    recorded = records.run().task(1, "start", {"x": "a" * 9000, "y": 1})
    recorded.task(2, "end", {"x": "a" * 9000, "y": 2}).commit()
    first, second = Task("Flow/1/start/1"), Task("Flow/1/end/2")

    assert first["x"].sha == second["x"].sha
    assert first["y"].sha != second["y"].sha


def test_private_artifacts_are_not_among_the_named_ones(records: Records) -> None:
    records.run().task(1, "start", {"x": 1, "_y": 2}).commit()
    task = Task("Flow/1/start/1")

    assert ("x",) == task.artifacts._fields
    assert 2 == task.data._y
    assert ["_y", "x"] == [artifact.id for artifact in task]


def test_a_blob_that_was_changed_is_refused(records: Records) -> None:
    records.run().task(1, "start", {"x": "y" * 100_000}).commit()
    task = Task("Flow/1/start/1")
    name = blob_name(task["x"].sha)
    data = bytearray(records.store.get(name))
    data[10] ^= 1
    records.store.put(name, [data])

    with pytest.raises(CorruptBlob, match="'x'"):
        _ = task.data.x


def test_a_manifest_that_is_gone_is_reported(records: Records) -> None:
    records.run().task(2, "end", inherited={1: ["x"]}).commit()

    with pytest.raises(StorageError, match="Task 1 of run 'Flow/1' has left no artifacts"):
        _ = Task("Flow/1/end/2").data.x


# ------------------------------------------------------------------ how it went


def test_a_task_is_watched_through_one_object(records: Records) -> None:
    recorded = records.run().task(1, "start", **RUNNING).commit()
    task = Task("Flow/1/start/1")
    assert (False, False, None) == (task.finished, task.successful, task.finished_at)

    recorded.attempt(1, 0, state=AttemptState.FAILED, reason="It broke.").commit()
    assert (True, False, 0) == (task.finished, task.successful, task.current_attempt)

    recorded.attempt(1, 1, **RUNNING).commit()
    assert (False, 1) == (task.finished, task.current_attempt)

    recorded.attempt(1, 1).commit()
    assert (True, True, 1) == (task.finished, task.successful, task.current_attempt)


def test_a_task_of_a_listing_is_watched_as_well(records: Records) -> None:
    recorded = records.run().task(1, "start", **RUNNING).commit()
    [task] = Step("Flow/1/start")

    recorded.attempt(1, 0).commit()

    assert task.successful


def test_an_earlier_attempt_is_shown_if_asked_for(records: Records) -> None:
    failed = ERROR | {"caught": False}
    recorded = records.run().task(1, "start", error=failed, state=AttemptState.FAILED)
    recorded.attempt(1, 1).commit()

    first, latest = Task("Flow/1/start/1", attempt=0), Task("Flow/1/start/1")

    assert (False, 0) == (first.successful, first.current_attempt)
    assert (True, 1) == (latest.successful, latest.current_attempt)
    assert "no good" == first.exception.message
    assert latest.exception is None
    assert "Task('Flow/1/start/1', attempt=0)" == repr(first)


def test_an_attempt_that_was_not_made_is_reported(records: Records) -> None:
    records.run().task(1, "start").commit()

    with pytest.raises(NotFound, match="has no attempt 3: 1 was made, counted from 0"):
        Task("Flow/1/start/1", attempt=3)


@pytest.mark.parametrize("attempt", [-1, "1", 1.0, True, 1 << 63])
def test_what_counts_no_attempt_is_refused(attempt: Any) -> None:
    with pytest.raises(InvalidInput, match="attempt="):
        Task("Flow/1/start/1", attempt=attempt)


def test_the_exception_is_reported_and_apart_from_it_one_that_was_caught(records: Records) -> None:
    failed = ERROR | {"caught": False}
    records.run().task(1, "start", error=ERROR).task(2, "start", error=failed).commit()
    settled, unsettled = Task("Flow/1/start/1"), Task("Flow/1/start/2")
    exception = unsettled.exception

    assert ("builtins.ValueError", "no good") == (exception.type, exception.message)
    assert ERROR["traceback"] == str(exception)
    assert (None, exception) == (settled.exception, settled.caught)
    assert (exception, None) == (unsettled.exception, unsettled.caught)
    assert 1 == len({exception, settled.caught})


def test_a_process_that_was_lost_leaves_its_reason_as_the_exception(records: Records) -> None:
    records.run().task(
        1, "start", state=AttemptState.LOST, reason="The machine is gone.", manifest=None
    ).commit()
    exception = Task("Flow/1/start/1").exception

    assert ("lost", "The machine is gone.") == (exception.type, exception.message)


def test_the_index_is_that_of_the_innermost_foreach(records: Records) -> None:
    recorded = records.run(graph=WIDE).task(1, "start")
    recorded.task(2, "body", split=1, index=0).task(3, "body", split=1, index=1).commit()

    assert Task("Flow/1/start/1").index is None
    assert [1, 0] == [task.index for task in Step("Flow/1/body")]


def test_the_task_of_a_step_with_many_is_the_newest(records: Records) -> None:
    recorded = records.run(graph=WIDE).task(1, "start")
    recorded.task(2, "body").task(3, "body").task(4, "body").commit()

    assert "1" == Step("Flow/1/start").task.id
    assert "4" == Step("Flow/1/body").task.id


def test_a_gang_is_led_by_its_task_of_index_0(records: Records) -> None:
    body = replace(linear("body", "join"), splits=("start",))
    opener = foreach("start", "body", join="join", kind=Kind.PARALLEL)
    gang = graph(opener, body, linear("join", "end"), end())
    recorded = records.run(graph=gang).task(1, "start")
    recorded.task(2, "body", split=1, index=0).task(3, "body", split=1, index=1).commit()

    assert "2" == Step("Flow/1/body").control_task.id
    assert ["2"] == [task.id for task in Step("Flow/1/body").control_tasks()]
    assert Step("Flow/1/start").control_task is None


# ------------------------------------------------------------------ logs


def a_log(*lines: tuple[float, int, bytes, bool]) -> LogBuffer:
    buffer = LogBuffer(1 << 20)
    for line in lines:
        buffer.add(*line)
    return buffer


LINES = (
    (BEGIN, 0, b"    indented", True),
    (BEGIN + 1, 1, b"warning", True),
    (BEGIN + 2, 0, b"a long ", False),
    (BEGIN + 3, 1, b"between", True),
    (BEGIN + 4, 0, b"line \xff", True),
)


def check_the_log(task: Task) -> None:
    assert "    indented\na long line \ufffd\n" == task.stdout
    assert "warning\nbetween\n" == task.stderr
    assert len(b"    indented\na long line \xff\n") == task.stdout_size
    assert len("warning\nbetween\n") == task.stderr_size
    assert [(BEGIN, "    indented"), (BEGIN + 2, "a long line \ufffd")] == [
        (at.timestamp(), text) for at, text in task.loglines("stdout")
    ]
    assert [b"warning", b"between"] == [text for _, text in task.loglines("stderr", False)]
    assert all(at.utcoffset() is not None for at, _ in task.loglines("stderr"))


def test_a_small_log_is_read_from_the_record(records: Records) -> None:
    log = a_log(*LINES)
    records.run().task(
        1,
        "start",
        log=log.take_chunk(),
        stdout_size=log.stdout_size,
        stderr_size=log.stderr_size,
    ).commit()

    check_the_log(Task("Flow/1/start/1"))


@pytest.mark.parametrize("state", [AttemptState.SUCCEEDED, AttemptState.RUNNING])
def test_a_large_log_is_read_from_its_chunks_also_while_it_grows(
    records: Records, state: AttemptState
) -> None:
    sizes = (0, 0)
    for number, lines in enumerate((LINES[:3], LINES[3:])):
        log = a_log(*lines)
        sizes = sizes[0] + log.stdout_size, sizes[1] + log.stderr_size
        name = chunk_name("Flow", "1", "start", 1, 0, number)
        records.store.put(name, [log.take_chunk()])
    over = state is AttemptState.SUCCEEDED
    records.run().task(
        1,
        "start",
        state=state,
        log_chunks=2,
        stdout_size=sizes[0] if over else 0,
        stderr_size=sizes[1] if over else 0,
    ).commit()

    check_the_log(Task("Flow/1/start/1"))


def test_a_line_that_has_only_begun_is_shown(records: Records) -> None:
    log = a_log((BEGIN, 0, b"half a li", False))
    records.run().task(1, "start", log=log.take_chunk()).commit()

    assert ["half a li"] == [text for _, text in Task("Flow/1/start/1").loglines("stdout")]


def test_a_task_that_printed_nothing_has_an_empty_log(records: Records) -> None:
    records.run().task(1, "start").commit()
    task = Task("Flow/1/start/1")

    assert ("", "", 0, 0) == (task.stdout, task.stderr, task.stdout_size, task.stderr_size)
    assert [] == list(task.loglines("stdout"))


def test_another_stream_is_refused_at_once(records: Records) -> None:
    records.run().task(1, "start").commit()

    with pytest.raises(InvalidInput, match="stdout or stderr"):
        Task("Flow/1/start/1").loglines("stdin")


# ------------------------------------------------------------------ facts


def test_the_facts_of_a_task_have_the_names_that_people_look_for(records: Records) -> None:
    frame = ForeachFrame("start", "xs", 3, 1, "b", 1)
    recorded = records.run(origin="0").task(2, "body", stack=[frame], max_rss=1024, cpu=0.25)
    recorded.fact(2, 0, "my-own", "value").commit()
    facts = Task("Flow/1/body/2").metadata_dict

    expected = {
        "attempt": "0",
        "attempt_ok": "True",
        "attempt-done": "0",
        "runtime": "dev",
        "python_version": "3.11.7",
        "aflow_version": "0.2.0",
        "user": "tester",
        "script-name": "flow.py",
        "ds-type": "memory",
        "foreach-execution-path": "middle:1",
        "origin-run-id": "0",
        "host": "here",
        "pid": "7",
        "max-rss": "1024",
        "cpu": "0.25",
        "my-own": "value",
    }
    assert expected == {name: value for name, value in facts.items() if name != "foreach-stack"}
    assert [frame._asdict()] == json.loads(facts["foreach-stack"])


def test_the_facts_of_all_attempts_are_listed_oldest_first(records: Records) -> None:
    recorded = records.run().task(1, "start", state=AttemptState.FAILED)
    recorded.attempt(1, 1, started_at=BEGIN + 5, finished_at=BEGIN + 6).commit()
    task = Task("Flow/1/start/1")

    assert ["False", "True"] == [fact.value for fact in task.metadata if fact.name == "attempt_ok"]
    assert "1" == task.metadata_dict["attempt"]
    assert "0" == Task("Flow/1/start/1", attempt=0).metadata_dict["attempt"]
    assert all(fact.created_at.utcoffset() is not None for fact in task.metadata)
    assert all(fact.task is task for fact in task.metadata)


def test_an_attempt_that_runs_is_neither_done_nor_ok(records: Records) -> None:
    records.run().task(1, "start", **RUNNING).commit()

    assert not {"attempt_ok", "attempt-done"} & Task("Flow/1/start/1").metadata_dict.keys()


def test_where_a_task_ran_is_reported(records: Records) -> None:
    records.run().task(1, "start").commit()
    task = Task("Flow/1/start/1")

    assert "dev" == task.runtime_name
    assert {
        "environment_type": "local",
        "flow_name": "Flow",
        "script": "/home/tester/flow.py",
        "username": "tester",
        "runtime": "dev",
        "python_version": "3.11.7",
        "aflow_version": "0.2.0",
        "host": "here",
    } == task.environment_info
    assert task.environment_info == Step("Flow/1/start").environment_info


# ------------------------------------------------------------------ pickles


def test_objects_survive_a_pickle(records: Records) -> None:
    recorded = records.run(user="somebody").task(1, "start", {"x": 5}, state=AttemptState.FAILED)
    recorded.attempt(1, 1).commit()
    run = Run("Flow/1", _namespace_check=False)
    first = Task("Flow/1/start/1", attempt=0, _namespace_check=False)

    for each in (run, run["start"], first, first["x"]):
        assert repr(each) == repr(pickle.loads(pickle.dumps(each)))
    again = pickle.loads(pickle.dumps(first.data))
    assert isinstance(again, TaskData)
    assert 5 == again.x


# ------------------------------------------------------------------ the task that runs


def test_a_task_finds_its_own_record_though_that_is_committed_after_it_has_begun(
    records: Records,
) -> None:
    run = records.run().task(1, "start", {"x": 1})
    looked: list[str] = []

    def committed_now() -> str:  # it is asked for when the first look has found nothing
        looked.append("nothing")
        run.commit()
        return "memory"

    ids = {"flow_name": "Flow", "run_id": "1", "step_name": "start", "task_id": "1"}
    token = current._set({**ids, "metadata_url": committed_now})
    try:
        own = Task("Flow/1/start/1")
        with pytest.raises(NotFound):
            Task("Flow/1/start/2")  # another one is not waited for
    finally:
        current._reset(token)

    assert ("Flow/1/start/1", ["nothing"]) == (own.pathspec, looked)
