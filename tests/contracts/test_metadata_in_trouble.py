"""The errors of the file metadata store if the file is foreign, damaged, locked or missing, or its
disk is full: one sentence each."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aflow.errors import InvalidSetting, MetadataError, MetadataTooNew, MetadataUnavailable
from aflow.metadata import sqlite
from aflow.metadata.factory import open_metadata
from aflow.metadata.sql import LATEST, migrations
from aflow.metadata.sqlite import SqliteMetadata
from aflow.scheduler.states import TaskState
from tests.contracts.metadata_files import RUN, a_batch, check_integrity, every_answer, filled


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "metadata.db"


# ------------------------------------------------------------------ what lies at the path


def check_sentence(path: Path, use: Callable[[SqliteMetadata], Any], *parts: str) -> None:
    """Check that using a store at the path raises one sentence with the path and these parts."""
    store = SqliteMetadata(path)
    try:
        with pytest.raises(MetadataError) as caught:
            use(store)
    finally:
        store.close()
    text = str(caught.value)
    for part in (str(path), *parts):
        assert part in text
    assert "\n" not in text
    assert text.endswith(".")


def test_the_latest_version_is_that_of_the_last_migration() -> None:
    numbers = [number for number, _ in migrations()]

    assert list(range(1, LATEST + 1)) == numbers


def test_a_database_of_a_newer_version_is_left_alone(path: Path) -> None:
    filled(path)
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version = {LATEST + 1}")
    db.close()
    before = path.read_bytes()

    with pytest.raises(MetadataTooNew, match=f"has version {LATEST + 1}.*up to {LATEST}. Upgrade"):
        SqliteMetadata(path).flows()
    assert before == path.read_bytes()


def test_a_database_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "photos.db"
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE photos (name TEXT)")
    db.close()

    check_sentence(path, lambda store: store.flows(), "a database of something else")
    check_sentence(path, lambda store: store.create_run(RUN, b""), "a database of something else")


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    path.write_bytes(b"no database at all, but long enough to be one\n" * 100)

    check_sentence(path, lambda store: store.flows(), "not a database", "move the file away")


def test_a_folder_where_the_file_should_be_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metadata.db"
    path.mkdir()

    check_sentence(path, lambda store: store.flows())


def test_a_file_where_the_folder_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(MetadataUnavailable, match="file for the metadata cannot be made"):
        SqliteMetadata(tmp_path / "file" / "metadata.db").flows()


@pytest.mark.parametrize("there", ["nothing", "an empty file"])
def test_reading_where_nothing_has_run_says_so_and_makes_nothing(path: Path, there: str) -> None:
    if there == "an empty file":
        path.parent.mkdir()
        path.touch()
    with pytest.raises(MetadataUnavailable, match="Nothing has run here yet"):
        SqliteMetadata(path, read_only=True).flows()

    assert (there == "an empty file") is path.parent.exists()
    assert path.parent.exists() is path.exists()


def test_who_may_only_read_reads_everything_and_writes_nothing(path: Path) -> None:
    run = filled(path)
    writer = SqliteMetadata(path)
    expected = every_answer(writer, run.key)
    reader = SqliteMetadata(path, read_only=True)

    assert expected == every_answer(reader, run.key)
    with pytest.raises(MetadataUnavailable, match="it cannot be written"):
        reader.acquire_lease(run.key, "me/1", 60.0, 1.0)
    reader.close()
    writer.close()


def test_a_url_leads_to_the_same_database(tmp_path: Path) -> None:
    path = tmp_path / "a folder? #1 50%" / "metadata.db"
    run = filled(path)
    url = SqliteMetadata(path).url
    store = open_metadata(url, read_only=True)

    assert url == store.url
    assert run._replace(version=10, graph={}) in store.runs("Flow")
    store.close()


def test_an_unknown_durability_is_refused(path: Path) -> None:
    with pytest.raises(InvalidSetting, match="durability='none' is unknown"):
        SqliteMetadata(path, durability="none")


@pytest.mark.parametrize(("durability", "synchronous"), [("power", 2), ("process", 1)])
def test_a_durability_sets_the_synchronous_mode_of_sqlite(
    path: Path, durability: str, synchronous: int
) -> None:
    store = SqliteMetadata(path, durability=durability)
    with store._transaction() as db:
        assert (synchronous,) == db.execute("PRAGMA synchronous").fetchone()
        assert ("wal",) == db.execute("PRAGMA journal_mode").fetchone()
    store.close()


# ------------------------------------------------------------------ damage


def test_a_damaged_database_gives_sentences_or_the_truth(path: Path) -> None:
    """Every page is overwritten once. Results must be correct, or plausible for the damaged record,
    or an error that reports the damage."""
    run = filled(path, batches=20)
    whole = path.read_bytes()
    sentences = 0
    for start in range(0, len(whole), 4096):
        path.write_bytes(whole[:start] + b"\xa5" * 4096 + whole[start + 4096 :])
        sentences += is_refused(path, run.key)

    assert sentences > 3


def is_refused(path: Path, run_key: int) -> bool:
    store = SqliteMetadata(path)
    try:
        every_answer(store, run_key)
        store.acquire_lease(run_key, "me/1", 60.0, 1.0)
    except MetadataUnavailable as error:
        return str(path) in str(error)
    else:
        return False
    finally:
        store.close()


def test_a_database_that_was_cut_short_is_damaged(path: Path) -> None:
    filled(path)
    os.truncate(path, path.stat().st_size // 2)

    check_sentence(path, lambda store: every_answer(store, 1), "it is damaged", ".recover")


@pytest.mark.parametrize(
    "sql",
    ["UPDATE runs SET state = 'odd'", "UPDATE runs SET settings = '{'",
     "UPDATE runs SET graph = x'ff'"],
)  # fmt: skip
def test_a_run_whose_record_is_damaged_is_shown_as_that_and_hides_no_other(
    path: Path, sql: str
) -> None:
    run = filled(path)
    store = SqliteMetadata(path)
    other = store.create_run(RUN._replace(run="other"), b"")
    change(path, f"{sql} WHERE key = {run.key}")

    found = store.run(run.flow, run.run)
    assert found is not None
    assert found.reason.startswith("The record of this run is damaged.")
    assert {"other", run.run} == {each.run for each in store.runs(run.flow)}
    assert store.run(other.flow, "other") == other
    store.close()


def test_an_attempt_whose_state_is_none_counts_as_failed(path: Path) -> None:
    run = filled(path)
    change(path, "UPDATE attempts SET state = 'odd'")
    store = SqliteMetadata(path)

    assert {TaskState.FAILED} == {view.state for view in store.tasks(run.key)}
    store.close()


def test_a_text_that_is_none_is_damage(path: Path) -> None:
    filled(path)
    change(path, "UPDATE attempts SET reason = CAST(x'ff' AS TEXT)")

    check_sentence(path, lambda store: every_answer(store, 1), "cannot be used")


def change(path: Path, sql: str) -> None:
    db = sqlite3.connect(path)
    db.execute(sql)
    db.commit()
    db.close()


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
def test_files_that_are_deleted_under_a_writer_are_missed(path: Path, suffix: str) -> None:
    run = filled(path)
    store = SqliteMetadata(path)
    store.commit(run.key, 10, a_batch(10))
    Path(f"{path}{suffix}").unlink()

    with pytest.raises(MetadataUnavailable, match="deleted or replaced"):
        store.commit(run.key, 11, a_batch(11))
    store.close()


def test_a_database_that_is_replaced_under_a_writer_is_missed(path: Path, tmp_path: Path) -> None:
    run = filled(path)
    shutil.copy(path, tmp_path / "copy.db")
    store = SqliteMetadata(path)
    store.commit(run.key, 10, a_batch(10))
    os.replace(tmp_path / "copy.db", path)

    with pytest.raises(MetadataUnavailable, match="deleted or replaced"):
        store.commit(run.key, 11, a_batch(11))
    store.close()


# ------------------------------------------------------------------ locks, disks, permissions


def test_who_only_reads_goes_over_to_the_file_that_replaces_another(path: Path) -> None:
    reader = SqliteMetadata(path, read_only=True)
    for number in "12":
        store = SqliteMetadata(path)
        store.create_run(RUN._replace(run=number), b"")
        store.close()
        assert [number] == [each.run for each in reader.runs(None)]
        for file in path.parent.iterdir():
            file.unlink()
        with pytest.raises(MetadataUnavailable, match="Nothing has run here yet"):
            reader.runs(None)
    reader.close()


def test_a_database_that_stays_locked_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT", 0.05)
    run = filled(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    check_sentence(
        path, lambda store: store.acquire_lease(run.key, "me/1", 60.0, 1.0), "locked for too long"
    )
    reader = SqliteMetadata(path)
    assert 10 == reader.run("Flow", "1").version
    reader.close()
    other.close()

    writer = SqliteMetadata(path)
    assert 11 == writer.commit(run.key, 10, a_batch(10))
    writer.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def commit_until_refused(store: SqliteMetadata, run_key: int) -> None:
    for version in range(10, 10_000):
        store.commit(run_key, version, a_batch(version))


def test_a_full_disk_is_named_and_what_was_committed_is_there(small_disk: Path) -> None:
    path = small_disk / "metadata.db"
    run = filled(path)
    store = SqliteMetadata(path)
    with pytest.raises(MetadataUnavailable) as caught:
        commit_until_refused(store, run.key)

    version = len(list(store.journal(run.key)))
    assert f"The metadata in {path} cannot be used: the disk" in str(caught.value)
    assert "resume the run" in str(caught.value)
    assert version == store.run("Flow", "1").version
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    assert version + 1 == store.commit(run.key, version, a_batch(version))
    store.close()
    check_integrity(path)


def test_a_read_only_disk_is_named_and_can_be_read(small_disk: Path) -> None:
    path = small_disk / "metadata.db"
    run = filled(path)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)

    check_sentence(path, lambda store: store.acquire_lease(run.key, "me/1", 60.0, 1.0), "cannot be")
    check_sentence(small_disk / "new.db", lambda store: store.flows(), "cannot be")


def test_a_read_only_folder_is_named(path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write to every folder")
    run = filled(path)
    path.chmod(0o400)
    path.parent.chmod(0o500)
    try:
        check_sentence(
            path, lambda store: store.acquire_lease(run.key, "me/1", 60.0, 1.0), "cannot be"
        )
    finally:
        path.parent.chmod(0o700)
