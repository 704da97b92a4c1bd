"""The table of runs."""

from __future__ import annotations

import pytest

from aflow._core.clock import duration
from aflow.cli.tables import table


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0.0s"),
        (0.04, "0.0s"),
        (59.94, "59.9s"),
        (60, "1m 00s"),
        (3599.9, "59m 59s"),
        (3600, "1h 00m"),
        (86_399, "23h 59m"),
        (90_000, "1d 01h"),
    ],
)
def test_a_duration_is_shown_in_its_two_largest_units(seconds: float, text: str) -> None:
    assert text == duration(seconds)


def test_the_columns_of_a_table_are_as_wide_as_their_widest_cell() -> None:
    assert ["A    BB", "ccc  d"] == table([("A", "BB"), ("ccc", "d")])
