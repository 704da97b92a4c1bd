"""A clock that never goes back."""

from __future__ import annotations

from aflow.clock import ForwardClock


class SetClock:
    """A clock that is set, and one that runs on."""

    def __init__(self) -> None:
        self.wall = 1000.0
        self.since = 5.0

    def now(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.since


def test_a_clock_that_is_set_back_goes_on_as_if_nothing_had_been() -> None:
    machine = SetClock()
    clock = ForwardClock(machine)
    machine.wall, machine.since = 1001.0, 6.0
    assert 1001.0 == clock.now()
    machine.wall, machine.since = -2599.0, 6.5
    assert 1001.5 == clock.now()
    machine.since = 16.5
    assert 1011.5 == clock.now()


def test_a_clock_that_is_set_forward_is_followed() -> None:
    machine = SetClock()
    clock = ForwardClock(machine)
    machine.wall = 4600.0
    assert 4600.0 == clock.now()


def test_it_begins_no_earlier_than_it_is_told_to() -> None:
    machine = SetClock()
    clock = ForwardClock(machine, 2000.0)
    machine.wall, machine.since = 1002.0, 7.0
    assert 2002.0 == clock.now()
