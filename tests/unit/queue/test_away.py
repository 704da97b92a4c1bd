"""Users of a broker that comes back do not come back to it all at once."""

from __future__ import annotations

from aflow.queue.base import AWAY, wait_before_next_try


def test_who_has_lost_a_broker_comes_back_when_the_lot_says() -> None:
    waits = [wait_before_next_try(lot / 1000) for lot in range(1001)]

    assert (AWAY / 2, AWAY * 3 / 2) == (min(waits), max(waits))
    # A thousand that lost it together: of each twentieth of a second, no more than its share.
    shares = [sum(at <= wait < at + 0.05 for wait in waits) for at in (0.5, 0.75, 1.0, 1.25)]
    assert 52 > max(shares)
