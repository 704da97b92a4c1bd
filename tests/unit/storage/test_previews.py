from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aflow.storage.previews import preview, short_text


class Hostile:
    """Every way of asking it anything raises."""

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
        ({"a": 1}, ("dict", {"len": 1})),
        (range(10), ("range", {"len": 10})),
        (np.zeros((3, 4)), ("numpy.ndarray", {"shape": [3, 4], "dtype": "float64"})),
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


def test_a_table_shows_its_shape_and_columns() -> None:
    kind, facts = preview(pd.DataFrame({"a": [1, 2], 7: [3, 4], ("b", "c"): [5, 6]}))

    assert kind.startswith("pandas.")
    assert {"shape": [2, 3], "columns": ["a", "7", "tuple"]} == facts


def test_a_series_shows_its_length_and_type() -> None:
    assert {"len": 2, "dtype": "float64"} == preview(pd.Series([1.0, 2.0]))[1]


@given(
    st.recursive(
        st.none() | st.integers() | st.text() | st.binary() | st.floats(),
        lambda inner: st.lists(inner) | st.tuples(inner) | st.frozensets(st.text()),
    )
)
def test_a_preview_is_small_and_can_be_packed(value: object) -> None:
    _, facts = preview(value)

    assert len(msgpack.packb(facts, unicode_errors="surrogatepass")) < 500


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
