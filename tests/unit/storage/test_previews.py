from __future__ import annotations

import json
from base64 import b64decode
from typing import Any

import msgpack
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aflow.storage.previews import preview, short_text


class Hostile:
    """An object that raises on any access."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("do not touch")

    def __repr__(self) -> str:
        raise RuntimeError("do not touch")

    def __len__(self) -> int:
        raise RuntimeError("do not touch")


class HostileList(list[int]):
    def __iter__(self) -> Any:
        raise RuntimeError("do not touch")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (5, ("int", {"repr": "5"})),
        (True, ("bool", {"repr": "True"})),
        (None, ("NoneType", {"repr": "None"})),
        (2.5, ("float", {"repr": "2.5"})),
        ("text", ("str", {"repr": "'text'"})),
        ("a" * 100, ("str", {"repr": "'" + "a" * 76 + "..."})),
        pytest.param(10**5000, ("int", {"repr": "<int of 16610 bits>"}), id="huge int"),
        (b"ab", ("bytes", {"len": 2, "repr": "b'ab'"})),
        ([1, "a", [2]], ("list", {"len": 3, "repr": "[1, 'a', <list>]"})),
        ((1,), ("tuple", {"len": 1, "repr": "(1,)"})),
        (list(range(100)), ("list", {"len": 100, "repr": "[0, 1, 2, 3, 4, 5, ...]"})),
        ({"a": 1}, ("dict", {"len": 1, "json": '{\n "a": 1\n}'})),
        ({"a": 1j}, ("dict", {"len": 1})),
        (range(10), ("range", {"len": 10})),
        pytest.param(range(10**30), ("range", {}), id="a range too long for len"),
        (np.array(["a"]), ("numpy.ndarray", {"shape": [1], "dtype": "<U1"})),
        (np.float64(2.5), ("numpy.float64", {"repr": "2.5", "dtype": "float64"})),
    ],
)
def test_a_preview_is_the_type_and_a_few_plain_facts(value: object, expected: object) -> None:
    assert expected == preview(value)


def test_no_code_of_the_users_is_called() -> None:
    assert (f"{__name__}.Hostile", {}) == preview(Hostile())
    assert (f"{__name__}.HostileList", {}) == preview(HostileList())
    assert ("list", {"len": 1, "repr": "[<Hostile>]"}) == preview([Hostile()])
    assert "<Hostile>" == short_text(Hostile())


def test_a_table_shows_its_shape_columns_and_first_rows() -> None:
    kind, facts = preview(pd.DataFrame({"a": [1, 2], 7: [3, 4], ("b", "c"): ["x", Hostile()]}))

    assert kind.startswith("pandas.")
    assert ([2, 3], ["a", "7", "tuple"]) == (facts["shape"], facts["columns"])
    assert [["1", "3", "x"], ["2", "4", "<Hostile>"]] == facts["rows"]
    assert ["int64", "int64", "object"] == facts["dtypes"]


def test_tables_of_polars_and_pyarrow_show_the_same_as_those_of_pandas() -> None:
    polars, pyarrow = pytest.importorskip("polars"), pytest.importorskip("pyarrow")
    for table in (polars.DataFrame({"a": [1, 2]}), pyarrow.table({"a": [1, 2]})):
        facts = preview(table)[1]
        assert ([2, 1], ["a"]) == (facts["shape"], facts["columns"])
        assert [["1"], ["2"]] == facts["rows"]
    twice = pyarrow.Table.from_arrays([pyarrow.array([1]), pyarrow.array(["x"])], names=["a", "a"])
    assert (["a", "a"], [["1", "x"]]) == (preview(twice)[1]["columns"], preview(twice)[1]["rows"])


def test_a_wide_and_long_table_shows_its_upper_left_corner() -> None:
    facts = preview(pd.DataFrame(np.zeros((5000, 300))))[1]

    assert [5000, 300] == facts["shape"]
    assert (6, 20) == (len(facts["rows"]), len(facts["columns"]))


def test_an_array_of_numbers_shows_its_range_and_how_it_is_distributed() -> None:
    facts = preview(np.array([[0.0, 1.0], [float("nan"), 4.0]]))[1]

    assert ([2, 2], "float64") == (facts["shape"], facts["dtype"])
    assert ("0", "4") == (facts["min"], facts["max"])
    assert 3 == sum(facts["histogram"]), "a value that is not a number is left out"
    sampled = preview(np.arange(1_000_000))[1]
    assert sampled["sampled"]
    assert sum(sampled["histogram"]) <= 4096


def test_a_series_shows_its_length_type_and_range() -> None:
    facts = preview(pd.Series([1.0, 2.0]))[1]

    assert (2, "float64", "1", "2") == tuple(facts[n] for n in ("len", "dtype", "min", "max"))
    assert {"len": 1, "dtype": "object"} == preview(pd.Series([Hostile()], dtype=object))[1]


def test_images_and_figures_are_shown_small() -> None:
    pillow, figures = pytest.importorskip("PIL.Image"), pytest.importorskip("matplotlib.figure")
    pytest.importorskip("matplotlib.backends.backend_agg")
    figure = figures.Figure()
    figure.subplots().plot([1, 2])
    canvas = figure.canvas
    for image in (pillow.new("RGB", (5000, 4000), "red"), figure):
        data = b64decode(preview(image)[1]["image"])
        assert data.startswith(b"\x89PNG")
        assert len(data) <= 24_000
    assert canvas is figure.canvas, "the figure is as it was"


def test_nested_plain_values_are_shown_as_json_as_far_as_there_is_room() -> None:
    assert {"a": [1, {"b": None}]} == json.loads(preview({"a": [1, {"b": None}]})[1]["json"])
    assert len(preview({str(n): "x" * 100 for n in range(10_000)})[1]["json"]) <= 1200
    loop: dict[str, Any] = {}
    loop["self"] = loop
    assert "bits" in preview({10**5000: "a key too long for repr"})[1]["json"]
    preview(loop)  # comes to an end


TEXTS = st.text(st.characters())  # with lone surrogates, as in names of files


@given(
    st.recursive(
        st.none() | st.integers() | TEXTS | st.binary() | st.floats(),
        lambda inner: (
            st.lists(inner)
            | st.tuples(inner)
            | st.frozensets(TEXTS)
            | st.dictionaries(TEXTS | st.integers(), inner)
        ),
    )
)
def test_a_preview_is_small_and_can_be_packed(value: object) -> None:
    _, facts = preview(value)

    assert len(msgpack.packb(facts)) < 5000


def test_numbers_that_fit_no_bins_have_their_shape_all_the_same() -> None:
    for wide_or_narrow in ([-1e308, 1e308], [1.0, np.nextafter(1.0, 2.0)]):
        facts = preview(np.array(wide_or_narrow))[1]
        assert {"shape": [2], "dtype": "float64"} == facts


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a word", "a word"),
        ("a" * 50, "a" * 30),
        (7, "7"),
        (("svm", 0.1), "('svm', 0.1)"),
        ({"a": 1}, "<dict>"),
    ],
)
def test_the_short_text_of_a_value_has_at_most_thirty_characters(
    value: object, expected: str
) -> None:
    assert expected == short_text(value)
