"""Metaflow's formats: pickles with in-band buffers, logs, graphs."""

from __future__ import annotations

import pickle
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aflow.errors import CorruptBlob
from aflow.metadata.metaflow import layout
from aflow.storage.codecs import dump, gunzipped
from aflow.storage.logs import LogBuffer, LogRecord, read_log


def inside(value: object) -> object:
    """Return the value, as Metaflow's client would read it."""
    parts, _, buffers = dump("x", "x", value, out_of_band_from=1)
    return pickle.loads(b"".join(layout.in_band(b"".join(parts), buffers)))


@given(st.lists(st.integers(0, 3000), max_size=5), st.text())
def test_a_pickle_with_buffers_beside_it_has_them_inside(sizes: Sequence[int], text: str) -> None:
    numpy = pytest.importorskip("numpy")
    arrays = [numpy.arange(size) for size in sizes]
    found = inside({"arrays": arrays, "again": arrays, "text": text})

    assert isinstance(found, dict)
    assert text == found["text"]
    assert all((one == other).all() for one, other in zip(arrays, found["arrays"], strict=True))
    assert all(one is other for one, other in zip(found["arrays"], found["again"], strict=True))
    assert all(each.flags.writeable for each in found["arrays"])


def test_what_could_not_be_written_to_cannot_be_afterwards() -> None:
    numpy = pytest.importorskip("numpy")
    fixed = numpy.arange(10)
    fixed.flags.writeable = False
    found = inside(fixed)

    assert isinstance(found, numpy.ndarray)
    assert (found == fixed).all()
    assert not found.flags.writeable


def test_a_pickle_that_lacks_a_buffer_is_refused() -> None:
    numpy = pytest.importorskip("numpy")
    parts, _, buffers = dump("x", "x", [numpy.arange(9), numpy.ones(9)], out_of_band_from=1)
    with pytest.raises(CorruptBlob):
        list(layout.in_band(b"".join(parts), buffers[:1]))


@given(st.binary(max_size=5000))
def test_what_is_packed_is_unpacked(data: bytes) -> None:
    assert data == gunzipped(layout.packed([data[:10], data[10:]]), "x", len(data) or 1)


def test_a_file_that_is_damaged_or_too_large_is_refused() -> None:
    packed = layout.packed([b"x" * 100_000])
    for data, largest in ((packed[:-20], None), (packed, 5000), (packed[:30] + b"?" * 50, None)):
        with pytest.raises(CorruptBlob, match="the file is damaged"):
            gunzipped(data, "the file", largest)


def test_lines_of_a_log_are_those_that_were_printed() -> None:
    log = LogBuffer(10_000)
    for at, stream, text, whole in (
        (1.5, 0, b"  one", True), (1.6, 1, b"err", True), (2.0, 0, b"be", False),
        (2.1, 0, b"gun", True), (3.0, 0, b"\xff [MFLOG|", True),
    ):  # fmt: skip
        log.add(at, stream, text, whole)
    file = layout.log_file(read_log(log.take_chunk()), "stdout")
    found = list(layout.log_records(file, "stdout"))

    assert [b"  one", b"begun", b"\xff [MFLOG|"] == [each.text for each in found]
    assert [1.5, 2.1, 3.0] == [each.at for each in found]
    assert [LogRecord(0.0, "stdout", b"of none")] == [*layout.log_records(b"of none\n", "stdout")]
