"""How often a run is tried that cannot be taken up."""

from __future__ import annotations

from aflow.server.sharing import LOOK, pause_after


def test_pauses_grow_and_stay_below_five_minutes() -> None:
    pauses = [pause_after(tries) for tries in range(1000)]
    assert LOOK == pauses[0]
    assert pauses == sorted(pauses)
    assert 300.0 == pauses[-1]
