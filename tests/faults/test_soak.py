"""The public chaos tool: a run under random faults of all kinds satisfies all invariants, and a
violated invariant is reported with its seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from aflow.testing.chaos import ChaosError, Fault, Fleet, soak
from tests.faults.conftest import Undisturbed
from tests.faults.soak import SOURCE

pytestmark = [pytest.mark.xdist_group("faults"), pytest.mark.timeout(300)]


@pytest.mark.parametrize("by_server", [False, True])
def test_a_run_under_random_faults_keeps_all_promises(
    fleet: Fleet, undisturbed: Undisturbed, by_server: bool
) -> None:
    expected = undisturbed(SOURCE)
    fleet.write(SOURCE)

    report = soak(fleet, seed=1, kills=8, expected=expected, by_server=by_server)

    assert 0 < report.kills <= 8
    assert report.tasks <= report.begun


def test_a_broken_promise_is_reported_with_its_seed(fleet: Fleet, undisturbed: Undisturbed) -> None:
    expected = undisturbed(SOURCE)
    other = {place: dict.fromkeys(left, "another digest") for place, left in expected.items()}
    fleet.write(SOURCE)
    nothing = Fault("nothing", 1, lambda machines: True)

    with pytest.raises(ChaosError, match=r"seed 5, after \{'nothing': 1\}: "):
        soak(fleet, seed=5, kills=1, faults=[nothing], expected=other)


def test_a_flow_that_is_not_there_is_reported_as_such(tmp_path: Path) -> None:
    folder = tmp_path / "fleet"
    folder.mkdir()
    fleet = Fleet(folder, f"sqlite:///{folder}/metadata.db", f"sqlite:///{folder}/queue.db")
    try:
        with pytest.raises(ChaosError, match="the coordinator ended with 2"):
            soak(fleet, seed=5, kills=1, faults=[])
    finally:
        fleet.close()
