from __future__ import annotations

import math
import os
import pickle
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aflow.errors import ArtifactNotLoadable, CorruptBlob, StorageError, StoreUnavailable
from aflow.storage.artifacts import (
    ArtifactReader,
    ArtifactWriter,
    Entry,
    Manifest,
    PackingWriter,
    digest,
    unchanged,
)
from aflow.storage.blobs import MAP_UNVERIFIED_FROM, BlobStore, blob_name
from aflow.storage.local import LocalStore
from aflow.storage.memory import MemoryStore

STORES: dict[str, Callable[[Path], Any]] = {
    "memory": lambda path: MemoryStore(),
    "local": lambda path: LocalStore(path),
}


@pytest.fixture(params=STORES)
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    return BlobStore(STORES[request.param](tmp_path))


@pytest.fixture
def disk(tmp_path: Path) -> BlobStore:
    return BlobStore(LocalStore(tmp_path))


def names_in(blobs: BlobStore) -> list[str]:
    return list(blobs.store.list(""))


def bytes_in(blobs: BlobStore) -> int:
    return sum(blobs.store.size(name) or 0 for name in names_in(blobs))


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(max_size=20_000)
    | st.datetimes(),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(), inner, max_size=5)
    ),
    max_leaves=20,
)


@given(VALUES, st.sampled_from([0, 100, 4096]))
def test_what_was_saved_is_what_is_loaded(value: object, inline_limit: int) -> None:
    blobs = BlobStore(MemoryStore())
    entry = ArtifactWriter(blobs, inline_limit=inline_limit).save("x", value)

    assert value == ArtifactReader(blobs).load("x", entry)
    assert unchanged(value, entry, blobs)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param({"\udce9": "caf\udce9"}, id="names of files"),
        pytest.param({10**5000: {-(10**5000)}}, id="huge ints"),
    ],
)
def test_what_cannot_be_shown_is_stored_all_the_same(blobs: BlobStore, value: object) -> None:
    written = Manifest(artifacts={"x": ArtifactWriter(blobs).save("x", value)}).encode()
    entry = Manifest.decode(written).artifacts["x"]

    assert value == ArtifactReader(blobs).load("x", entry)
    assert digest(entry) != digest(ArtifactWriter(blobs).save("x", {10**5000: {10**5000}}))


def test_small_values_ride_in_the_manifest(blobs: BlobStore) -> None:
    entry = ArtifactWriter(blobs).save("x", [1, 2, 3])

    assert [] == names_in(blobs)
    assert len(entry.inline or b"") == entry.size
    assert () == entry.blobs


def test_larger_values_are_one_blob(blobs: BlobStore) -> None:
    entry = ArtifactWriter(blobs).save("x", list(range(10_000)))

    assert entry.inline is None
    assert [blob_name(entry.blobs[0][0])] == names_in(blobs)


def test_a_manifest_does_not_grow_past_its_total(blobs: BlobStore) -> None:
    writer = ArtifactWriter(blobs, inline_limit=100, inline_total=150)
    entries = [writer.save("x", "a" * 60 + str(number)) for number in range(3)]

    assert [True, True, False] == [entry.inline is not None for entry in entries[:1] * 2] + [
        entries[2].inline is not None
    ]


def test_the_same_value_has_the_same_digest_inline_or_not(blobs: BlobStore) -> None:
    array = np.arange(100_000)
    for value in ("a text", array, [array, array + 1]):
        inline = ArtifactWriter(blobs).save("x", value)
        outside = ArtifactWriter(blobs, inline_limit=0).save("y", value)

        assert inline.inline is not None
        assert outside.inline is None
        assert digest(inline) == digest(outside)


def test_different_values_have_different_digests(blobs: BlobStore) -> None:
    writer = ArtifactWriter(blobs)
    array = np.arange(100_000)
    values = ["a", "b", array, array + 1, array.astype(float), [array, array], list(range(10_000))]

    assert len(values) == len({digest(writer.save("x", value)) for value in values})


# ------------------------------------------------------------------ many small values


def left(blobs: BlobStore, values: dict[str, Any]) -> dict[str, Entry]:
    """Return the entries of the values that an attempt stores."""
    with blobs.batch() as batch:
        writer = PackingWriter(batch, inline_total=100)
        entries = {name: writer.save(name, value) for name, value in values.items()}
        writer.finish(entries)
    return Manifest.decode(Manifest("start", entries).encode()).artifacts


def some_values(count: int) -> dict[str, Any]:
    return {f"x{number}": f"{number:05}" * 50 for number in range(count)}


def test_many_small_values_share_few_blobs_and_come_back_in_any_order(blobs: BlobStore) -> None:
    column = np.arange(20_000)
    values = some_values(2000) | {"same": "00007" * 50, "numbers": [1, 2, 3] * 5000}
    entries = left(blobs, values | {"column": {"column": column}})
    reader = ArtifactReader(blobs)

    assert len(names_in(blobs)) < 40
    for names in (list(values), sorted(values, key=lambda name: name[::-1])):
        assert values == {name: reader.load(name, entries[name]) for name in sorted(names)}
        assert values == {name: reader.load(name, entries[name]) for name in names}
    assert np.array_equal(column, reader.load("column", entries["column"])["column"])
    assert unchanged(values["numbers"], entries["numbers"], blobs)
    assert not unchanged([1, *values["numbers"][1:], 4], entries["numbers"], blobs)
    assert bytes_in(blobs) < 2000 * 300 + column.nbytes + 40 * 16


def test_a_value_in_a_pack_is_the_same_value_as_in_a_blob_of_its_own(blobs: BlobStore) -> None:
    values = some_values(100) | {"array": np.arange(20_000)}
    alone = {
        name: ArtifactWriter(blobs, inline_limit=0).save(name, values[name]) for name in values
    }

    assert {name: digest(entry) for name, entry in alone.items()} == {
        name: digest(entry) for name, entry in left(blobs, values).items()
    }


def test_few_small_values_are_blobs_of_their_own_which_other_tasks_share(blobs: BlobStore) -> None:
    left(blobs, some_values(50))
    before = names_in(blobs)
    left(blobs, some_values(51))

    assert (50, 51) == (len(before), len(names_in(blobs)))


def test_a_task_that_leaves_nearly_the_same_values_stores_what_is_around_the_others(
    blobs: BlobStore,
) -> None:
    left(blobs, some_values(5000))
    before, size = names_in(blobs), bytes_in(blobs)
    left(blobs, {"new": "z" * 250} | some_values(5000) | {"x2500": "another" * 40})

    assert len(before) > 10
    assert len(names_in(blobs)) <= len(before) + 2
    assert bytes_in(blobs) < 1.4 * size


def test_a_damaged_pack_names_itself_and_the_artifact(disk: BlobStore) -> None:
    draw = random.Random(0)  # by which the digest of no value ends the pack before the last one
    entries = left(disk, {f"x{number}": draw.randbytes(4000) for number in range(70)})
    (((pack, _),),) = {entry.blobs for entry in entries.values()}
    damage(disk, pack)
    whole = ArtifactReader(disk)
    whole.load("x60", entries["x60"])

    with pytest.raises(CorruptBlob, match=f"Artifact 'x0': Blob {pack}.*a part is another"):
        ArtifactReader(disk).load("x0", entries["x0"])
    with pytest.raises(CorruptBlob, match=f"Artifact 'x61': Blob {pack}"):
        whole.load("x61", entries["x61"])  # the second one in a row: the pack is read as a whole


@pytest.mark.parametrize(
    "encoding", ["pack5:", "pack5:0:1", "pack5:a:1:" + "0" * 64, "pack5:0:1:../x", 5, None]
)
def test_an_encoding_that_names_no_part_of_a_pack_is_damage(encoding: Any) -> None:
    entry = Entry(encoding, 1, "int", {}, None, (("0" * 64, 1),))
    with pytest.raises(StorageError, match="A manifest is damaged"):
        Manifest.decode(Manifest("start", {"x": entry}).encode())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("step", None), ("inherited", {0: 5}), ("inherited", {0: (1,)}), ("artifacts", {1: None}),
        ("transition", None), ("transition", (("a",), 5, None)), ("transition", ("a", None, None)),
        ("transition", ((1,), None, None)), ("stack", (("s", "v", "3", 1, "t", 0),)),
        ("stack", (("s", "v"),)),
    ],
)  # fmt: skip
def test_a_manifest_with_a_field_of_another_type_is_damage(field: str, value: Any) -> None:
    manifest: Any = Manifest("start")
    setattr(manifest, field, value)
    with pytest.raises(StorageError, match="A manifest is damaged"):
        Manifest.decode(manifest.encode())


# ------------------------------------------------------------------ arrays and tables


@pytest.mark.parametrize("size", [10, 1000, 100_000, 3_000_000])
def test_an_array_comes_back_writable_and_ones_own(blobs: BlobStore, size: int) -> None:
    array = np.random.default_rng(0).random(size)
    entry = ArtifactWriter(blobs).save("x", array)
    first, second = (ArtifactReader(blobs).load("x", entry) for _ in range(2))
    first[0] = 42.0

    assert array[0] == second[0]
    assert array[0] == ArtifactReader(blobs).load("x", entry)[0]
    assert np.array_equal(array[1:], first[1:])


def test_an_array_that_may_not_be_written_to_stays_so(blobs: BlobStore) -> None:
    array = np.arange(100_000)
    array.setflags(write=False)
    loaded = ArtifactReader(blobs).load("x", ArtifactWriter(blobs).save("x", array))

    assert not loaded.flags.writeable
    assert np.array_equal(array, loaded)


@pytest.mark.parametrize(
    "array",
    [
        np.asfortranarray(np.random.default_rng(0).random((300, 400))),
        np.random.default_rng(0).random((600, 600))[::2, ::3],
        np.zeros((0, 5)),
        np.array(["a", None, {}], dtype=object),
        np.zeros(50_000, dtype=[("a", "i4"), ("b", "f8")]),
        np.array(3.5),
    ],
    ids=["fortran", "strided", "empty", "objects", "records", "scalar"],
)
def test_arrays_of_every_kind_come_back(blobs: BlobStore, array: np.ndarray) -> None:
    loaded = ArtifactReader(blobs).load("x", ArtifactWriter(blobs).save("x", array))

    assert array.dtype == loaded.dtype
    assert np.array_equal(array, loaded)


def test_a_table_with_one_new_column_stores_only_the_column(blobs: BlobStore) -> None:
    columns = {
        name: np.random.default_rng(number).random(100_000)
        for number, name in enumerate("abcdefgh")
    }
    writer = ArtifactWriter(blobs)
    table = pd.DataFrame(columns)
    entry = writer.save("table", table)
    before = bytes_in(blobs)
    table = ArtifactReader(blobs).load("table", entry)
    table["new"] = np.random.default_rng(99).random(100_000)
    entry = writer.save("table", table)

    assert bytes_in(blobs) - before < 1.1 * 800_000
    pd.testing.assert_frame_equal(table, ArtifactReader(blobs).load("table", entry))


def test_a_large_bytes_value_is_pickled_without_a_copy_of_it() -> None:
    from aflow.storage import codecs

    value = os.urandom(1 << 20)
    parts = codecs.dump("x", "x", [value]).parts

    assert any(part is value for part in parts)


def test_a_list_of_very_many_arrays_does_not_become_as_many_objects(blobs: BlobStore) -> None:
    value = [np.full(8192, number) for number in range(1100)]
    entry = ArtifactWriter(blobs).save("x", value)

    assert 1025 == len(entry.blobs)
    assert np.array_equal(value, ArtifactReader(blobs).load("x", entry))


# ------------------------------------------------------------------ verification


@pytest.fixture(scope="module")
def large() -> np.ndarray:
    return np.random.default_rng(0).random(MAP_UNVERIFIED_FROM // 8)


def damage(blobs: BlobStore, key: str) -> None:
    with open(Path(blobs.store.url.removeprefix("file://")) / blob_name(key), "r+b") as file:
        file.seek(1000)
        byte = file.read(1)
        file.seek(1000)
        file.write(bytes([byte[0] ^ 1]))


def test_a_damaged_artifact_names_itself_and_the_key(disk: BlobStore) -> None:
    entry = ArtifactWriter(disk).save("model", np.random.default_rng(0).random(10_000))
    damage(disk, entry.blobs[0][0])

    with pytest.raises(CorruptBlob, match=f"Artifact 'model': Blob {entry.blobs[0][0]}"):
        ArtifactReader(disk).load("model", entry)


@pytest.mark.parametrize("in_background", [True, False])
def test_a_damaged_large_array_is_noticed_before_the_commit(
    disk: BlobStore, large: np.ndarray, in_background: bool
) -> None:
    entry = ArtifactWriter(disk).save("x", large)
    damage(disk, entry.blobs[0][0])
    reader = ArtifactReader(disk)
    reader.load("x", entry)
    if in_background:
        reader.start_verification()

    with pytest.raises(CorruptBlob, match=f"Artifact 'x': Blob {entry.blobs[0][0]}"):
        reader.verify_pending()


def test_a_large_pickle_is_verified_before_it_is_unpickled(disk: BlobStore, tmp_path: Path) -> None:
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (ran,)

    filler = bytes(MAP_UNVERIFIED_FROM)  # within the pickle: the blob would be mapped
    key = disk.put_raw(pickle.dumps([filler, "ours"]))
    evil = disk.put_raw(pickle.dumps([filler, Evil()]))
    size = len(pickle.dumps([filler, "ours"]))
    entry = Entry("pickle5", size, "list", {}, None, ((str(key), size),))
    assert "ours" == ArtifactReader(disk).load("x", entry)[1]
    disk.store.delete(blob_name(key))
    disk.store.put(blob_name(key), [bytes(disk.store.get(blob_name(evil)))])

    with pytest.raises(CorruptBlob, match="Artifact 'x'"):
        ArtifactReader(disk).load("x", entry)
    assert not ran.exists()


def test_a_whole_large_array_passes_verification_though_it_was_changed(
    disk: BlobStore, large: np.ndarray
) -> None:
    reader = ArtifactReader(disk)
    entry = ArtifactWriter(disk).save("x", large)
    reader.load("x", entry)[:] = 0
    reader.start_verification()
    reader.verify_pending()

    assert large[0] == reader.load("x", entry)[0]
    reader.start_verification()
    reader.verify_pending()


def test_no_thread_is_started_where_nothing_large_was_mapped(blobs: BlobStore) -> None:
    import threading

    before = threading.active_count()
    reader = ArtifactReader(blobs)
    reader.load("x", ArtifactWriter(blobs).save("x", np.zeros(100_000)))
    reader.start_verification()

    assert before == threading.active_count()
    reader.verify_pending()


def test_an_artifact_whose_blob_is_gone_says_what_to_do(blobs: BlobStore) -> None:
    entry = ArtifactWriter(blobs).save("x", list(range(10_000)))
    blobs.store.delete(blob_name(entry.blobs[0][0]))

    with pytest.raises(ArtifactNotLoadable, match=r"'x': There is no object.*Run the step"):
        ArtifactReader(blobs).load("x", entry)


def test_a_store_that_is_gone_is_unavailable(tmp_path: Path) -> None:
    entry = ArtifactWriter(BlobStore(MemoryStore())).save("x", list(range(10_000)))

    with pytest.raises(StoreUnavailable, match="the folder is not there"):
        ArtifactReader(BlobStore(LocalStore(tmp_path / "gone"))).load("x", entry)


def test_an_encoding_of_a_newer_aflow_is_refused_by_name(blobs: BlobStore) -> None:
    with pytest.raises(ArtifactNotLoadable, match=r"'x' is stored as 'arrow9'.*Upgrade"):
        ArtifactReader(blobs).load("x", Entry("arrow9", 1, "int", {}, b"1"))


# ------------------------------------------------------------------ change detection


class Thing:
    def __init__(self) -> None:
        self.parts = {"a": [1, 2], "b": {"x", "y", "z"}}


CHANGES: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "list": ([1, 2], lambda value: value.append(3)),
    "set": ({"a", "b", "c", "d"}, lambda value: value.remove("c")),
    "dict in tuple": ((1, {"a": 1}), lambda value: value[1].update(a=2)),
    "object": (Thing(), lambda value: value.parts["b"].add("w")),
    "small array": (np.arange(10), lambda value: value.fill(1)),
    "array": (np.arange(100_000), lambda value: value.fill(1)),
    "large array": (np.random.default_rng(0).random(3_000_000), lambda value: value.fill(1)),
    "table": (pd.DataFrame({"a": range(100_000)}), lambda value: value.__setitem__("b", 1)),
    "text table": (pd.DataFrame({"a": ["x", "y"] * 5000}), lambda value: value.pop("a")),
    "large list": (list(range(100_000)), lambda value: value.pop()),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_value_that_was_only_read_is_unchanged_and_one_that_was_written_to_is_not(
    blobs: BlobStore, kind: str
) -> None:
    original, change = CHANGES[kind]
    entry = ArtifactWriter(blobs).save("x", original)
    value = ArtifactReader(blobs).load("x", entry)
    repr(value)

    assert unchanged(value, entry, blobs)
    change(value)
    assert not unchanged(value, entry, blobs)


def test_a_model_of_torch_that_was_only_read_is_unchanged(blobs: BlobStore) -> None:
    torch = pytest.importorskip("torch")
    entry = ArtifactWriter(blobs).save("x", [torch.nn.Linear(3, 2), torch.tensor([True])])
    value = ArtifactReader(blobs).load("x", entry)

    assert unchanged(value, entry, blobs)
    assert digest(entry) == digest(ArtifactWriter(blobs).save("x", value))
    with torch.no_grad():
        value[0].weight[0, 0] += 1
    assert not unchanged(value, entry, blobs)
    assert digest(entry) != digest(ArtifactWriter(blobs).save("x", value))


def test_a_set_with_another_order_inside_is_unchanged(blobs: BlobStore) -> None:
    original = {f"name {number}" for number in range(1000)}
    for number in range(10, 1000):
        original.discard(f"name {number}")
    entry = ArtifactWriter(blobs).save("x", original)
    value = ArtifactReader(blobs).load("x", entry)

    assert unchanged(value, entry, blobs)


@pytest.mark.parametrize("value", [1, "text", (1, ("a", frozenset({2})), None), 2.5, b"1", True])
def test_immutable_values_are_unchanged_without_looking(blobs: BlobStore, value: object) -> None:
    assert unchanged(value, Entry("pickle5", 0, "", {}, b"never looked at"), blobs)


def test_an_untouched_large_array_is_saved_again_without_hashing(
    disk: BlobStore, large: np.ndarray
) -> None:
    if not os.path.exists("/proc/self/smaps"):
        pytest.skip("there is no /proc/self/smaps to tell which pages were written to")
    entry = ArtifactWriter(disk).save("x", large)
    value = ArtifactReader(disk).load("x", entry)
    damage(disk, entry.blobs[0][0])  # hashing it again would give another key

    assert math.isfinite(value.sum())
    assert entry.blobs == ArtifactWriter(disk).save("y", value).blobs


def test_the_second_load_gives_another_object(blobs: BlobStore) -> None:
    entry = ArtifactWriter(blobs).save("x", [1])
    reader = ArtifactReader(blobs)

    assert reader.load("x", entry) is not reader.load("x", entry)


def test_a_writer_without_previews_says_nothing_of_what_is_in_values(blobs: BlobStore) -> None:
    writer = ArtifactWriter(blobs, previews=False)
    secret = {"text": "s3cret", "items": ["s3cret"], "nested": {"a": {"b": "s3cret"}}, "number": 7}
    found = {name: writer.save(name, value) for name, value in secret.items()}
    assert {"len": 1} == found["items"].preview == found["nested"].preview
    assert {} == found["text"].preview == found["number"].preview
    array = writer.save("array", np.arange(12.0).reshape(3, 4)).preview
    assert {"shape", "dtype"} == array.keys()


@pytest.mark.filterwarnings("ignore:numpy.core.* is deprecated")
def test_an_array_of_numpy_2_is_loaded_where_numpy_has_its_older_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from aflow.storage import codecs

    values = [np.arange(3), np.array([1, None], dtype=object), np.float64(2.5)]
    stored = pickle.dumps(values, 5)
    assert b"numpy._core" in stored
    # As in numpy 1.25 and before it, which have no such module.
    for name in ("numpy._core.multiarray", "numpy._core.numeric"):
        monkeypatch.setitem(sys.modules, name, None)

    loaded = codecs.load("Artifact 'x'", stored)

    assert [0, 1, 2] == loaded[0].tolist()
    assert [1, None] == loaded[1].tolist()
    assert 2.5 == loaded[2]
