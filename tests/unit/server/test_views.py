"""The data of the pages, read from the metadata and the datastore."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aflow import client
from aflow.errors import InvalidInput
from aflow.metadata.base import Batch, RunRecord, TaskRecord
from aflow.metadata.sqlite import SqliteMetadata
from aflow.scheduler.messages import NoInputs, encode_inputs
from aflow.server.filters import parse
from aflow.server.views import Views
from aflow.storage import cards
from aflow.storage.artifacts import ArtifactWriter, Manifest
from aflow.storage.blobs import BlobStore
from aflow.storage.local import LocalStore
from tests.contracts.metadata_stores import a_run
from tests.support.clocks import FakeClock


@pytest.fixture
def metadata() -> Iterator[SqliteMetadata]:
    store = SqliteMetadata(":memory:")
    yield store
    store.close()


def with_a_task(metadata: SqliteMetadata, storage: str) -> RunRecord:
    """Return a run whose datastore is at this URL, with a task 1 of the step `work`."""
    run = metadata.create_run(a_run(settings={"storage": storage}), b"")
    task = TaskRecord(1, "work", 99.0, inputs=encode_inputs(NoInputs()))
    metadata.commit(run.key, 0, Batch(tasks=[task]))
    return run


def test_a_card_that_was_refreshed_is_listed_and_shown(
    metadata: SqliteMetadata, tmp_path: Path
) -> None:
    store = LocalStore(tmp_path)
    run = with_a_task(metadata, store.url)
    folder = cards.prefix(run.flow, run.run, "work", 1)
    cards.put(store, folder, 0, "live-chart", "loss", "<html>1</html>", {"data": 1})
    store.put(f"{folder}notes.txt", [b"of somebody else"])
    views = Views(metadata, FakeClock())

    (card,) = views.task(run, 1)["cards"]
    assert ("live-chart", "loss") == (card["type"], card["id"])
    assert [{"step": "work", "task": 1, **card}] == views.cards(run)
    assert b"<html>1</html>" == views.card(run, 1, card["name"])


def test_data_in_s3_are_read_at_the_endpoint_that_is_set_here(
    metadata: SqliteMetadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = with_a_task(metadata, "s3://bucket/prefix?endpoint=http%3A%2F%2Fof-its-writer")
    monkeypatch.setenv("AFLOW_S3_ENDPOINT_URL", "http://of-this-server")

    store = Views(metadata, FakeClock())._store(run)
    assert "s3://bucket/prefix?endpoint=http%3A%2F%2Fof-this-server" == store.url


def test_code_is_read_in_the_encoding_that_it_declares(
    metadata: SqliteMetadata, tmp_path: Path
) -> None:
    text = "# -*- coding: latin-1 -*-\nNAME = 'Grüße'\n"
    package = io.BytesIO()
    with tarfile.open(fileobj=package, mode="w") as archive:
        member = tarfile.TarInfo("flow.py")
        member.size = len(text.encode("latin-1"))
        archive.addfile(member, io.BytesIO(text.encode("latin-1")))
    store = LocalStore(tmp_path)
    code = {"key": BlobStore(store).put(package.getvalue()), "script": "flow.py"}
    run = metadata.create_run(a_run(settings={"storage": store.url, "code": code}), b"")

    files = Views(metadata, FakeClock()).code(run, None)["files"]
    assert [{"name": "flow.py", "text": text}] == files
    client.connect_to(metadata, store)
    client.namespace(None)
    try:
        kept = client.Run(f"{run.flow}/{run.run}").code
    finally:
        client.default_metadata()
        client.default_namespace()
    assert kept is not None
    assert text == kept.flowspec


@pytest.mark.parametrize(
    "cursor", ["", "1", "1.0_x", "nan_1", "inf_1", "-1.0_1", "1.0_-1", f"1.0_{10**30}"]
)
def test_a_cursor_that_no_page_has_is_refused(metadata: SqliteMetadata, cursor: str) -> None:
    with pytest.raises(InvalidInput, match="not a cursor"):
        Views(metadata, FakeClock()).records(parse("", 0.0), cursor, 10)


class Late(FakeClock):
    """A clock of a machine so busy that a second passes between any two looks at it."""

    def monotonic(self) -> float:
        self.advance(1.0)
        return super().monotonic()


@pytest.mark.parametrize("words", ["", "state:running", "id:7", "text"])
def test_each_page_of_runs_goes_on_after_the_last_one(metadata: SqliteMetadata, words: str) -> None:
    for number in range(5):
        metadata.create_run(a_run(flow=f"Flow{number}", run="7", tags=("text",)), b"")
    views = Views(metadata, Late())
    found: list[str] = []
    cursor = None
    while True:
        runs, cursor = views.records(parse(words, 0.0), cursor, 2)
        found += [run.flow for run in runs]
        if cursor is None:
            break
    assert [f"Flow{number}" for number in (4, 3, 2, 1, 0)] == found


@pytest.mark.parametrize(
    ("value", "again"),
    [(float("inf"), float("inf")), (0.1, 0.1), ("it's", "it's"), (True, True), ("x" * 1000, None)],
)
def test_a_run_is_run_again_with_plain_values_of_its_parameters_or_says_which_is_unknown(
    metadata: SqliteMetadata, tmp_path: Path, value: Any, again: Any
) -> None:
    writer = ArtifactWriter(BlobStore(LocalStore(tmp_path)))
    manifest = Manifest(artifacts={"x": writer.save("x", value)}).encode()
    run = metadata.create_run(a_run(settings={"parameters": ["x"]}), manifest)
    views = Views(metadata, FakeClock())

    if again is None:
        with pytest.raises(InvalidInput, match=r"parameter x \(str\) is not known here in full"):
            views.parameters_again(run, {})
    else:
        assert {"x": again} == views.parameters_again(run, {})
    assert {"x": 1} == views.parameters_again(run, {"x": 1})
