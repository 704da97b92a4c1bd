"""How what a worker has to say is put into letters."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aflow.executors import letters

events = st.lists(st.tuples(st.integers(), st.binary(max_size=8).map(lambda b: b * 100_000)))


@given(events)
def test_letters_have_all_events_in_their_order_and_none_is_too_large(said: list[object]) -> None:
    parts = [*letters.parts(said)]  # type: ignore[arg-type]
    assert said == [event for part in parts for event in part]
    assert all(len(part) == 1 or sum(len(data) for _, data in part) <= 1 << 20 for part in parts)


def test_many_small_events_are_not_one_letter() -> None:
    assert [500, 500, 1] == [len(part) for part in letters.parts([(1, b"x")] * 1001)]
