"""Functions that process many items in several processes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import count

import pytest

from aflow import parallel_imap_unordered, parallel_map, profile


def test_results_come_in_the_order_of_the_items() -> None:
    factor = 3
    assert [0, 3, 6, 9] == parallel_map(lambda x: x * factor, range(4), max_parallel=2)
    assert [] == parallel_map(lambda x: x, [])


def test_results_come_as_they_are_ready_from_other_processes() -> None:
    found = list(parallel_imap_unordered(lambda x: (x, os.getpid()), [1, 2, 3], max_parallel=2))
    assert {1, 2, 3} == {x for x, _ in found}
    assert os.getpid() not in {pid for _, pid in found}


def test_items_are_taken_as_results_are_wanted() -> None:
    taken = []

    def items() -> Iterator[int]:
        for item in count():
            taken.append(item)
            yield item

    results = parallel_imap_unordered(lambda x: x * 2, items(), max_parallel=2)
    assert {0, 2, 4, 6} >= {next(results), next(results)}
    assert len(taken) <= 4


def test_what_the_function_raises_ends_the_map_at_once() -> None:
    with pytest.raises(ZeroDivisionError):
        parallel_map(lambda x: 1 / x, count(), max_parallel=2)


def test_a_profile_is_printed_or_added_up(capsys: pytest.CaptureFixture[str]) -> None:
    with profile("loading"):
        pass
    began, ended = capsys.readouterr().out.splitlines()
    assert "PROFILE: loading starting" == began
    assert re.fullmatch(r"PROFILE: loading completed in \d+ms", ended)
    stats: dict[str, float] = {}
    for _ in range(2):
        with profile("loading", stats):
            pass
    assert ["loading"] == list(stats)
