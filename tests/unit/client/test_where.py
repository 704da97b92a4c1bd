"""Which metadata the client reads, and whose runs it lists."""

from __future__ import annotations

import asyncio
import os
import pickle
from pathlib import Path

import pytest

import aflow
from aflow.client import (
    Flow,
    Metaflow,
    Run,
    Task,
    connect_to,
    default_metadata,
    default_namespace,
    get_metadata,
    get_namespace,
    metadata,
    namespace,
)
from aflow.errors import InvalidInput, InvalidName, MetadataUnavailable, NamespaceMismatch, NotFound
from aflow.flow.current import current
from aflow.metadata.sqlite import SqliteMetadata
from aflow.storage.local import LocalStore
from tests.unit.client.recorded import BEGIN, Records


def write_run(folder: Path, run: str = "1", **artifacts: object) -> None:
    """Write a run to an `.aflow` folder."""
    records = Records(SqliteMetadata(folder / "metadata.db"), LocalStore(folder))
    records.run(run).task(1, "start", {"big": "y" * 100_000, **artifacts}).commit()
    records.metadata.close()


# ------------------------------------------------------------------ where


def test_runs_are_looked_for_where_a_run_would_put_them(tmp_path: Path) -> None:
    write_run(tmp_path / ".aflow", x=5)

    assert 5 == Task("Flow/1/start/1").data.x
    assert f"local@{tmp_path / '.aflow'}" == get_metadata()


def test_the_working_directory_of_the_moment_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        write_run(tmp_path / name / ".aflow", name=name)
        monkeypatch.chdir(tmp_path / name)
        assert name == Task("Flow/1/start/1").data.name


def test_an_object_stays_where_it_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / ".aflow", x=5)
    run = Run("Flow/1")
    metadata(f"local@{tmp_path / 'elsewhere'}")

    assert 5 == run["start"].task.data.x
    assert 5 == run.parent["1"]["start"].task.parent.task.data.x


@pytest.mark.parametrize("named", [".", ".aflow", "data"])
def test_metadata_looks_in_the_folder_or_in_the_one_that_has_it(tmp_path: Path, named: str) -> None:
    write_run(tmp_path / "there" / ("data" if named == "data" else ".aflow"), x=5)

    chosen = metadata(f"local@{tmp_path / 'there' / named}")

    assert get_metadata() == chosen
    assert 5 == Task("Flow/1/start/1").data.x
    assert f"local@{tmp_path / '.aflow'}" == default_metadata()
    assert f"local@{tmp_path / '.aflow'}" == metadata("local")


def test_the_public_door_has_the_same_switch(tmp_path: Path) -> None:
    assert f"local@{tmp_path / 'x'}" == aflow.metadata(f"local@{tmp_path / 'x'}")
    assert f"local@{tmp_path / 'x'}" == aflow.get_metadata()


def test_a_database_can_be_named_by_its_url(tmp_path: Path) -> None:
    write_run(tmp_path / "a folder", x=5)
    url = SqliteMetadata(tmp_path / "a folder" / "metadata.db").url
    assert url == metadata(url)

    task = Task("Flow/1/start/1")
    default_metadata()

    assert (5, "y" * 100_000) == (task.data.x, task.data.big)
    assert 5 == pickle.loads(pickle.dumps(task)).data.x


def test_inside_of_a_task_runs_are_looked_for_where_its_own_is_recorded(tmp_path: Path) -> None:
    write_run(tmp_path / "elsewhere", x=5)
    url = SqliteMetadata(tmp_path / "elsewhere" / "metadata.db").url
    token = current._set({"metadata_url": url, "namespace": None})
    try:
        assert 5 == Task("Flow/1/start/1").data.x
    finally:
        current._reset(token)


@pytest.mark.parametrize("description", ["", "local@", "sqlite:///", "service@there", "/path"])
def test_unknown_metadata_is_refused(description: str) -> None:
    with pytest.raises(InvalidInput, match="local@/path"):
        metadata(description)


def test_where_nothing_has_run_there_are_no_flows_and_a_sentence_says_so(tmp_path: Path) -> None:
    assert [] == list(Metaflow())
    assert "Flow" not in Metaflow()
    for find in (lambda: Flow("Flow"), lambda: Run("Flow/1"), lambda: Metaflow()["Flow"]):
        with pytest.raises(NotFound, match=f"Nothing has run here yet.*{tmp_path}"):
            find()
    assert not (tmp_path / ".aflow").exists()


def test_what_runs_later_is_found(tmp_path: Path) -> None:
    assert [] == list(Metaflow())

    write_run(tmp_path / ".aflow")

    assert ["Flow"] == [flow.id for flow in Metaflow()]


def test_a_damaged_database_is_reported(tmp_path: Path) -> None:
    (tmp_path / ".aflow").mkdir()
    (tmp_path / ".aflow" / "metadata.db").write_bytes(b"no database" * 100)

    with pytest.raises(MetadataUnavailable, match="not a database"):
        Run("Flow/1")


def test_a_folder_that_was_moved_still_has_its_values(tmp_path: Path) -> None:
    write_run(tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    metadata(f"local@{tmp_path / 'new'}")

    assert "y" * 100_000 == Task("Flow/1/start/1").data.big


def test_tags_are_written_where_they_were_read(tmp_path: Path) -> None:
    write_run(tmp_path / ".aflow")
    run = Run("Flow/1")

    run.add_tag("good")

    assert {"good"} == run.user_tags
    assert ["1"] == [each.id for each in Flow("Flow").runs("good")]


def test_a_running_event_loop_does_no_harm(tmp_path: Path) -> None:
    write_run(tmp_path / ".aflow", x=5)

    async def read() -> object:
        return Task("Flow/1/start/1").data.x

    assert 5 == asyncio.run(read())


def test_a_pickle_names_the_place_it_came_from(tmp_path: Path) -> None:
    write_run(tmp_path / ".aflow", x=5)
    pickled = pickle.dumps(Task("Flow/1/start/1"))
    metadata(f"local@{tmp_path / 'elsewhere'}")

    assert 5 == pickle.loads(pickled).data.x


def test_a_pickle_of_records_in_memory_is_of_no_use_to_another_process(records: Records) -> None:
    records.run()
    pickled = pickle.dumps(Run("Flow/1"))
    elsewhere = pickled.replace(b"memory:#", b"memory:@")

    with pytest.raises(MetadataUnavailable, match="another process"):
        pickle.loads(elsewhere)


def test_a_forked_process_reads_through_a_connection_of_its_own(tmp_path: Path) -> None:
    write_run(tmp_path / ".aflow", x=5)
    run = Run("Flow/1")
    parents = run._place.metadata

    child = os.fork()
    if child == 0:
        fine = run._place.metadata is not parents and 5 == run["start"].task.data.x
        os._exit(0 if fine else 1)

    assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert 5 == run["start"].task.data.x


# ------------------------------------------------------------------ whose


def test_the_namespace_is_the_users_own_by_default(records: Records) -> None:
    records.run("1", at=BEGIN)
    records.run("2", at=BEGIN + 1, user="somebody")

    assert "user:tester" == get_namespace()
    assert ["1"] == [run.id for run in Flow("Flow")]
    assert "1" == Flow("Flow").latest_run.id


def test_any_tag_can_be_the_namespace(records: Records) -> None:
    records.run("1", at=BEGIN, tags=["good"])
    records.run("2", at=BEGIN + 1)

    assert "good" == namespace("good")
    assert ["1"] == [run.id for run in Flow("Flow")]
    assert namespace(None) is None
    assert ["2", "1"] == [run.id for run in Flow("Flow")]
    assert "user:tester" == default_namespace()


def test_what_is_of_somebody_else_is_distinguished_from_what_is_not_there(records: Records) -> None:
    records.run(user="somebody").task(1, "start").commit()

    for find in (lambda: Flow("Flow"), lambda: Run("Flow/1"), lambda: Task("Flow/1/start/1")):
        with pytest.raises(NamespaceMismatch, match=r"'user:tester'.*'user:somebody'.*\(None\)"):
            find()
    assert [] == list(Metaflow())
    namespace(None)
    assert ["1"] == [task.id for task in Run("Flow/1")["start"]]


def test_an_object_keeps_its_parts_when_the_namespace_changes(records: Records) -> None:
    records.run().task(1, "start", {"x": 1}).commit()
    run = Run("Flow/1")
    namespace("user:somebody")

    assert 1 == run["start"].task.data.x
    assert not run.is_in_namespace()


@pytest.mark.parametrize("tag", ["", "x" * 1000])
def test_what_is_no_tag_can_be_no_namespace(tag: str) -> None:
    with pytest.raises(InvalidName):
        namespace(tag)


@pytest.mark.parametrize("inside", ["user:somebody", None])
def test_inside_of_a_task_the_namespace_is_that_of_the_run(inside: str | None) -> None:
    token = current._set({"namespace": inside})
    try:
        assert get_namespace() == inside
    finally:
        current._reset(token)


def test_a_task_finds_its_own_run_whatever_the_namespace(records: Records) -> None:
    records.run().task(1, "start").commit()
    values = {
        "flow_name": "Flow",
        "run_id": "1",
        "step_name": "start",
        "task_id": "1",
        "namespace": "user:somebody",
    }
    token = aflow.current._set(values)
    try:
        assert "Run('Flow/1')" == repr(aflow.current.run)
        assert "Task('Flow/1/start/1')" == repr(aflow.current.task)
    finally:
        aflow.current._reset(token)


def test_stores_that_are_open_can_be_read_from() -> None:
    records = Records()
    records.run()

    assert connect_to(records.metadata, records.store) == get_metadata()
    assert "1" in Flow("Flow")
