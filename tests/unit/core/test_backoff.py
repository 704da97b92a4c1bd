"""The delays between retries, and when retrying stops."""

from __future__ import annotations

import asyncio

import pytest

from aflow._core.backoff import Backoff, Tries
from tests.support.clocks import FakeClock


def test_delays_double_up_to_the_longest_and_jitter_leaves_out_a_part() -> None:
    backoff = Backoff(0.5, 60.0)
    bounds = [backoff.bound(failures) for failures in range(1, 2000)]
    assert [0.5, 1.0, 2.0, 4.0] == bounds[:4]
    assert sorted(bounds) == bounds
    assert 60.0 == bounds[-1]

    assert (0.0, 1.0, 2.0) == tuple(backoff.delay(3, share) for share in (0.0, 0.5, 1.0))
    almost = Backoff(10.0, 10.0, jitter=0.2)
    assert (8.0, 10.0) == (almost.delay(1, 0.0), almost.delay(1, 1.0))


def test_a_delay_follows_the_one_before() -> None:
    backoff = Backoff(2.0, 30.0, growth=1.5)
    assert (2.0, 3.0, 30.0) == tuple(backoff.after(previous) for previous in (0.0, 2.0, 29.0))


def test_a_thousand_clients_that_lose_a_broker_together_do_not_come_back_together() -> None:
    delays = [Backoff(1.0, 2.0).delay(5, share / 1000) for share in range(1001)]
    # Of each twentieth of a second no more than its part.
    shares = [sum(at <= each < at + 0.05 for each in delays) for at in (0.0, 0.5, 1.0, 1.5, 1.9)]
    assert 27 > max(shares)


def test_tries_end_after_their_number_or_when_the_patience_is_over() -> None:
    by_number = Tries(Backoff(1.0, 8.0), most=3, share=lambda: 1.0)
    assert [1.0, 2.0, None] == [by_number.failed() for _ in range(3)]
    by_number.succeeded()
    assert 1.0 == by_number.failed()

    clock = FakeClock()
    by_time = Tries(Backoff(4.0, 8.0), patience=10.0, clock=clock, share=lambda: 1.0)
    delays = []
    while (delay := by_time.failed()) is not None:
        delays.append(delay)
        clock.advance(delay)
    assert [4.0, 6.0] == delays  # the last try is made when the patience is over
    by_time.succeeded()
    assert 4.0 == by_time.failed()


def test_a_long_wait_is_reported_and_so_is_its_end() -> None:
    clock, said = FakeClock(), list[str]()
    tries = Tries(
        Backoff(3.0, 8.0), waiting_for="the broker", clock=clock, share=lambda: 1.0, log=said.append
    )
    for _ in range(3):
        clock.advance(tries.failed("Connection refused.") or 0.0)
    assert ["Waiting for the broker (9.0s so far): Connection refused."] == said
    tries.succeeded()
    assert "the broker is available again" in said[-1]
    tries.succeeded()
    tries.failed("Connection refused.")  # another wait, which has just begun
    assert 2 == len(said)


class Flaky:
    """Fails a number of times."""

    def __init__(self, times: int, error: Exception) -> None:
        self.left, self.error = times, error

    def call(self) -> str:
        self.left -= 1
        if self.left >= 0:
            raise self.error
        return "done"

    async def awaited(self) -> str:
        return self.call()


def test_calls_are_made_again_blocking_and_in_an_event_loop() -> None:
    waits: list[float] = []
    backoff = Backoff(0.0, 0.0)
    assert "done" == Tries(backoff).retry(Flaky(4, OSError()).call, OSError, pause=waits.append)
    assert 4 == len(waits)
    assert "done" == asyncio.run(Tries(backoff).retry_async(Flaky(4, OSError()).awaited, OSError))
    with pytest.raises(OSError, match="away"):
        Tries(backoff, most=3).retry(Flaky(3, OSError("away")).call, OSError)
    with pytest.raises(OSError, match="away"):
        asyncio.run(Tries(backoff, most=3).retry_async(Flaky(3, OSError("away")).awaited, OSError))


def test_an_error_that_no_further_try_can_repair_is_raised_at_once() -> None:
    flaky = Flaky(5, FileNotFoundError())
    with pytest.raises(FileNotFoundError):
        Tries(Backoff(9.0, 9.0)).retry(flaky.call, OSError, unless=FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        Tries(Backoff(9.0, 9.0)).retry(flaky.call, ValueError)
    assert 3 == flaky.left
