"""Metaflow's helper modules for flows: tags, log lines, measurements."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from aflow.errors import InvalidName
from aflow.metadata.metaflow import helpers

AT = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)


@pytest.mark.parametrize("tag", ["a", "äß", b"bytes", "x" * 500])
def test_a_text_of_some_letters_is_a_tag(tag: Any) -> None:
    assert helpers.validate_tag(tag) is None  # type: ignore[func-returns-value]


@pytest.mark.parametrize("tag", ["", b"", b"\xff", "\ud800", "x" * 501, 7, None])
def test_what_is_no_tag_is_refused(tag: Any) -> None:
    with pytest.raises(InvalidName):
        helpers.validate_tag(tag)


def test_a_run_may_have_fifty_tags_or_as_many_as_it_had() -> None:
    many = [str(number) for number in range(51)]

    helpers.validate_tags(many[:50])
    helpers.validate_tags(many, existing_tags=[*many, "another"])
    with pytest.raises(InvalidName, match="at most 50 tags; these are 51"):
        helpers.validate_tags(many)
    with pytest.raises(InvalidName, match="at most 50"):
        helpers.validate_tags(many, existing_tags=many[:50])


def test_a_line_of_a_log_says_where_it_is_from() -> None:
    line = helpers.decorate("task", "hello", now=AT, lineid="1")

    assert b"[MFLOG|0|2026-01-02T03:04:05.000678Z|task|1]hello" == line
    found = helpers.parse(line)
    assert found is not None
    assert (b"task", b"hello", AT) == (found.logsource, found.msg, found.utc_tstamp)
    marked = helpers.set_should_persist(line)
    assert b"[!" + line == marked
    assert helpers.is_structured(marked)
    assert line == helpers.unset_should_persist(marked)
    assert b"]> hello" in helpers.refine(line, prefix="> ")
    assert helpers.parse("just text") is None
    assert helpers.parse("[MFLOG|0|no timeZ|task|1]x") is None
    assert helpers.parse(helpers.decorate("task", "now")) is not None


def test_lines_of_several_logs_come_by_time_and_those_without_one_last() -> None:
    def line(second: int, text: str) -> bytes:
        return helpers.decorate("task", f"{text}\n", now=AT.replace(second=second))

    merged = helpers.merge_logs([line(3, "c") + b"odd\n" + line(1, "a"), line(2, "b")])

    assert [b"a", b"b", b"c", b"odd\n"] == [each.msg for each in merged]


def test_measures_and_events_can_be_noted_and_lead_nowhere(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with helpers.system_monitor.measure("a"), helpers.system_monitor.count("b"):
        helpers.system_monitor.gauge(1)
    with caplog.at_level("DEBUG", "aflow.flow"):
        helpers.system_logger.log_event("info", "module", "name", {"x": 1})

    assert "info module.name {'x': 1}" in caplog.text


def test_a_foreach_goes_over_an_unbounded_input_as_over_any_iterable() -> None:
    items = helpers.InternalTestUnboundedForeachInput(["a", "b"])

    assert isinstance(items, helpers.UnboundedForeachInput)
    assert ["a", "b"] == [*items]
    assert ("b", 2, items) == (items[1], len(items), items[None])

    @helpers.unbounded_test_foreach
    def step() -> str:
        return "itself"

    assert "itself" == step()
