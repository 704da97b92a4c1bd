"""Long waits are reported: after five seconds, and then every minute."""

from __future__ import annotations

import logging

import pytest

from aflow._core.waiting import Waiting
from tests.support.clocks import FakeClock


def test_a_wait_is_said_after_five_seconds_and_then_each_minute() -> None:
    clock, said = FakeClock(), list[str]()
    waiting = Waiting("the service", clock, said.append)
    for _ in range(130):
        waiting.still("Connection refused.", "Start it.")
        clock.advance(1.0)
    waiting.over()

    assert [
        "Waiting for the service (5.0s so far): Connection refused. Start it.",
        "Waiting for the service (1m 05s so far): Connection refused. Start it.",
        "Waiting for the service (2m 05s so far): Connection refused. Start it.",
        "the service is available again after 2m 10s; continuing.",
    ] == said


def test_a_short_wait_says_nothing_and_no_pause_is_longer_than_until_it_is_said() -> None:
    clock, said = FakeClock(), list[str]()
    waiting = Waiting("the service", clock, said.append)
    clock.advance(3.0)
    waiting.still("busy")
    assert (2.0, 1.0) == (waiting.capped(8.0), waiting.capped(1.0))
    waiting.over()
    assert [] == said


def test_without_a_listener_it_is_written_to_the_log_of_aflow(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = FakeClock()
    waiting = Waiting("the service", clock)
    clock.advance(5.0)
    with caplog.at_level(logging.WARNING, "aflow"):
        waiting.still()
    assert ["Waiting for the service (5.0s so far)."] == caplog.messages
