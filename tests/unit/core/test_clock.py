"""Clocks that stay monotonic if the machine's clock is set."""

from __future__ import annotations

from aflow._core.clock import ForwardClock
from tests.support.clocks import FakeClock


def test_a_clock_that_is_set_back_goes_on_as_if_nothing_had_been() -> None:
    machine = FakeClock(1000.0)
    clock = ForwardClock(machine)
    machine.advance(1.0)
    assert 1001.0 == clock.now()
    machine.jump(-3600.0)
    machine.advance(0.5)
    assert 1001.5 == clock.now()
    machine.advance(10.0)
    assert 1011.5 == clock.now()


def test_a_clock_that_is_set_forward_is_followed() -> None:
    machine = FakeClock(1000.0)
    clock = ForwardClock(machine)
    machine.jump(3600.0)
    assert 4600.0 == clock.now()


def test_it_begins_no_earlier_than_it_is_asked_to() -> None:
    machine = FakeClock(1000.0)
    clock = ForwardClock(machine, 2000.0)
    machine.advance(2.0)
    assert 2002.0 == clock.now()
