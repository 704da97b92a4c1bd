"""The filter terms for a list of runs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aflow.errors import AflowError
from aflow.scheduler.states import RunState
from aflow.server.filters import RunFilter, parse

NOW = 1_000_000.0


def test_no_words_mean_all_runs() -> None:
    assert RunFilter() == parse("  ", NOW)
    assert parse("", NOW).is_indexed


def test_each_word_narrows_the_list() -> None:
    found = parse("flow:Train state:failed state:running tag:prod user:ann id:7", NOW)

    assert ("Train", "7", ("prod",), ("ann",)) == (found.flow, found.run, found.tags, found.users)
    assert (RunState.FAILED, RunState.RUNNING) == found.states
    assert not found.is_indexed, "the metadata have no index of ids alone"
    assert parse("flow:Train tag:prod", NOW).is_indexed


def test_times_are_spans_before_now_or_dates_in_utc() -> None:
    assert NOW - 7 * 86400 == parse("since:7d", NOW).since
    assert NOW - 5400 == parse("until:90m", NOW).until
    assert 0.0 == parse("since:1970-01-01", NOW).since
    assert 3600.0 == parse("since:1970-01-01T02:00:00+01:00", NOW).since


def test_parameters_and_free_text_are_looked_for_in_each_run() -> None:
    found = parse("param.alpha:0.1 Nightly", NOW)

    assert ({"alpha": "0.1"}, ("nightly",)) == (found.parameters, found.text)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("state:broken", "state:broken is unknown: use one of"),
        ("colour:red", "There is no filter 'colour': use flow:"),
        ("flow:", "'flow:' has no value: write flow:VALUE."),
        ("flow:a flow:b", "flow: is there twice"),
        ("since:yesterday", "'yesterday' is not a time"),
        ("flow:../etc", "../etc"),
        ("id:\ud800", "characters that are not allowed"),
        ("user:\0", "characters that are not allowed"),
        ("x" * 2000, "too long"),
        ("a " * 30, "too many words"),
    ],
)
def test_a_wrong_word_is_refused_with_what_would_be_right(words: str, sentence: str) -> None:
    with pytest.raises(AflowError) as raised:
        parse(words, NOW)
    assert sentence in str(raised.value)


@given(st.text(max_size=60))
def test_any_text_is_a_filter_or_refused_in_a_sentence(words: str) -> None:
    said = ""
    try:
        parse(words, NOW)
    except AflowError as error:
        said = str(error)
    assert said == "" or said.endswith(".")
