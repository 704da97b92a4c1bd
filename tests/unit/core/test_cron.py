"""The due times of cron expressions, compared with a search minute by minute."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aflow._core.cron import latest_ticks, next_tick, parse, zone_of
from aflow.errors import InvalidInput

ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe"]
# Days around which clocks change in one of them, and others.
STARTS = [
    datetime(2026, 3, 28, tzinfo=UTC), datetime(2026, 10, 24, tzinfo=UTC),
    datetime(2026, 3, 7, tzinfo=UTC), datetime(2026, 10, 31, tzinfo=UTC),
    datetime(2026, 4, 4, tzinfo=UTC), datetime(2028, 2, 28, tzinfo=UTC),
    datetime(2026, 12, 30, tzinfo=UTC),
]  # fmt: skip

minutes = st.sampled_from(["0", "30", "*/20", "5,45", "10-15", "*"])
hours = st.sampled_from(["*", "0", "2", "1-3", "*/6", "23", "2,14"])
days = st.sampled_from(["*", "?", "1", "28-31", "L", "LW", "15W", "29,30"])
months = st.sampled_from(["*", "3", "MAR,OCT", "10-12", "2"])
weekdays = st.sampled_from(["*", "?", "SUN", "MON-FRI", "1,7", "FRI-MON", "6L", "SUN#4", "7#5"])
years = st.sampled_from(["", " *", " 2026", " 2026-2028"])


def walked(text: str, zone: str, after: datetime, until: datetime) -> list[float]:
    """Return all minutes at which the expression is due."""
    cron, there, found = parse(text), zone_of(zone), []
    at = after + timedelta(minutes=1)
    while at <= until:
        local = at.astimezone(there)
        if (
            local.fold == 0
            and local.minute in cron.minutes
            and local.hour in cron.hours
            and local.month in cron.months
            and (cron.years is None or local.year in cron.years)
            and cron.is_day(local.date())
        ):
            found.append(at.timestamp())
        at += timedelta(minutes=1)
    return found


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(minutes, hours, days, months, weekdays, years),
    st.sampled_from(ZONES),
    st.sampled_from(STARTS),
)
def test_ticks_are_those_of_a_walk_through_all_minutes(
    fields: tuple[str, ...], zone: str, after: datetime
) -> None:
    text, until = " ".join(fields[:5]) + fields[5], after + timedelta(days=3)
    cron, there = parse(text), zone_of(zone)
    expected = walked(text, zone, after, until)

    assert expected == latest_ticks(cron, there, after.timestamp(), until.timestamp(), 10**6)
    if expected:
        assert expected[0] == next_tick(cron, there, after.timestamp())


def due(text: str, year: int = 2026, zone: str = "UTC") -> list[str]:
    begin, end = datetime(year, 1, 1, tzinfo=UTC), datetime(year, 12, 31, 23, 59, tzinfo=UTC)
    found = latest_ticks(parse(text), zone_of(zone), begin.timestamp() - 1, end.timestamp(), 10**6)
    return [datetime.fromtimestamp(at, UTC).strftime("%m-%d") for at in found]


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("0 0 L * ? *", ["01-31", "02-28", "03-31"]),
        ("0 0 LW * ? *", ["01-30", "02-27", "03-31"]),
        ("0 0 15W * ? *", ["01-15", "02-16", "03-16"]),
        ("0 0 1W * ? *", ["01-01", "02-02", "03-02"]),
        ("0 0 ? * 6#3 *", ["01-16", "02-20", "03-20"]),
        ("0 0 ? * 6L *", ["01-30", "02-27", "03-27"]),
        ("0 0 ? * SUN *", ["01-04", "01-11", "01-18"]),
        ("0 0 ? * FRI-MON *", ["01-02", "01-03", "01-04"]),
        ("0 0 ? * L *", ["01-03", "01-10", "01-17"]),  # the last day of the week, a Saturday
        ("0 0 31 * ? *", ["01-31", "03-31", "05-31"]),
        ("0 0 13 * FRI", ["01-02", "01-09", "01-13"]),
        # Among five fields days of the week are those of Unix: 0 is Sunday, and so is 7.
        ("0 0 * * 0", ["01-04", "01-11", "01-18"]),
        ("0 0 * * 7", ["01-04", "01-11", "01-18"]),
        ("0 0 * * 1", ["01-05", "01-12", "01-19"]),
        ("0 0 * * 6-7", ["01-03", "01-04", "01-10"]),
        ("0 0 * * FRI-1", ["01-02", "01-03", "01-04"]),
        ("0 0 * * 5#3", ["01-16", "02-20", "03-20"]),
        ("0 0 * * 5L", ["01-30", "02-27", "03-27"]),
    ],
)
def test_what_aws_adds_means_what_aws_says(text: str, first: list[str]) -> None:
    assert first == due(text)[:3]


def test_a_time_that_is_skipped_is_left_out_and_one_that_comes_twice_counts_once() -> None:
    berlin = zone_of("Europe/Berlin")
    spring = datetime(2026, 3, 29, tzinfo=UTC).timestamp()
    autumn = datetime(2026, 10, 25, tzinfo=UTC).timestamp()
    at = parse("30 2 * * ? *")
    assert [] == latest_ticks(at, berlin, spring, spring + 12 * 3600, 9)
    assert [autumn + 1800] == latest_ticks(at, berlin, autumn - 3600, autumn + 12 * 3600, 9)


def test_what_never_comes_is_known_to_and_what_comes_late_is_found() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
    assert None is next_tick(parse("0 0 1 1 ? 2025"), zone_of(None), now)
    assert None is next_tick(parse("0 0 30 2 ? *"), zone_of(None), now)
    next_year = next_tick(parse("0 0 1 * ? 2025,2027-2028"), zone_of(None), now)
    assert datetime(2027, 1, 1, tzinfo=UTC).timestamp() == next_year
    leap = next_tick(parse("0 12 29 2 ? *"), zone_of(None), now)
    assert datetime(2028, 2, 29, 12, tzinfo=UTC).timestamp() == leap


@pytest.mark.parametrize(
    "text",
    ["", "* * * *", "60 * * * ?", "* 24 * * ?", "* * 32 * ?", "* * * 13 ?", "* * ? * 8",
     "a b c d e", "* * * * ? 1969", "*/0 * * * ?", "* * 32W * ?",
     "* * ? * MON#6", "5- * * * ?", "١ * * * ?"],
)  # fmt: skip
def test_what_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse(text)


@pytest.mark.parametrize("name", ["Mars/Phobos", "../etc/passwd", "/etc/localtime", "a" * 5000])
def test_zones_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="There is no time zone"):
        zone_of(name)


def test_the_latest_ticks_of_half_a_century_cost_what_a_few_cost() -> None:
    every_minute = parse("* * * * ? *")
    assert [1.8e9 - 60, 1.8e9] == latest_ticks(every_minute, zone_of(None), 0.0, 1.8e9, 2)
