"""Which tasks may start on one machine, tested without a machine."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aflow.scheduler.slots import Slots, demand_of, shown


def started(slots: Slots) -> list[Any]:
    return [grant.key for grant in slots.start()]


def add(slots: Slots, key: str, **amounts: float) -> None:
    slots.add([key], demand_of(amounts))


def test_what_fits_starts_in_order_and_what_does_not_waits_for_an_end() -> None:
    slots = Slots({"cpu": 4, "memory": 1000})
    add(slots, "a", cpu=2, memory=600)
    add(slots, "b", cpu=1, memory=600)
    add(slots, "c", cpu=1)

    assert ["a", "c"] == started(slots), "c needs nothing that b lacks"
    slots.release("c")
    assert [] == started(slots)
    slots.release("a")
    assert ["b"] == started(slots)


def test_small_ones_cannot_keep_a_large_one_waiting_for_ever() -> None:
    slots = Slots({"gpu": 4})
    for key in "abcd":
        add(slots, key, gpu=1)
    assert [*"abcd"] == started(slots)
    add(slots, "large", gpu=4)
    for key in "efgh":
        add(slots, key, gpu=1)

    for key in "abc":
        slots.release(key)
        assert [] == started(slots), "what the large one lacks is kept for it"
    slots.release("d")
    assert ["large"] == started(slots)
    slots.release("large")
    assert [*"efgh"] == started(slots)


def test_each_has_gpus_of_its_own_the_lowest_first() -> None:
    slots = Slots({"gpu": 3}, ["0", "1", "GPU-x"])
    add(slots, "one", gpu=1)
    add(slots, "two", gpu=2)
    grants = {grant.key: grant.devices for grant in slots.start()}

    assert {"one": ("0",), "two": ("1", "GPU-x")} == grants
    slots.release("two")
    slots.release("one")
    add(slots, "three", gpu=3)
    assert [("0", "1", "GPU-x")] == [grant.devices for grant in slots.start()]


def test_the_members_of_a_gang_start_together() -> None:
    slots = Slots({"cpu": 4}, workers=3)
    add(slots, "alone", cpu=3)
    assert ["alone"] == started(slots)
    slots.add(["m0", "m1"], demand_of({"cpu": 1}))
    assert [] == started(slots), "there is room for one member alone"
    slots.release("alone")
    assert ["m0", "m1"] == started(slots)


def test_workers_bound_those_who_ask_for_nothing_too() -> None:
    slots = Slots({}, workers=2)
    for key in "abc":
        add(slots, key)

    assert ["a", "b"] == started(slots)
    slots.release("a")
    assert ["c"] == started(slots)


def test_what_is_withdrawn_keeps_nobody_waiting() -> None:
    slots = Slots({"gpu": 2})
    add(slots, "a", gpu=1)
    assert ["a"] == started(slots)
    add(slots, "large", gpu=2)
    add(slots, "b", gpu=1)
    assert [] == started(slots)

    assert slots.remove("large")
    assert not slots.remove("large")
    assert ["b"] == started(slots)


def test_it_is_known_what_can_never_start_and_how_many_fit() -> None:
    slots = Slots({"gpu": 4, "memory": 64000})

    assert "gpu=8" == shown(slots.lacking(demand_of({"gpu": 8, "memory": 1})))
    assert "licence=1" == shown(slots.lacking(demand_of({"licence": 1})))
    assert () == slots.lacking(demand_of({"gpu": 2}), 2)
    assert "gpu=6" == shown(slots.lacking(demand_of({"gpu": 2}), 3))
    assert 2 == slots.at_once(demand_of({"gpu": 2, "memory": 16000}))
    assert slots.at_once(()) is None


def test_a_demand_is_clipped_to_what_the_machine_has() -> None:
    slots = Slots({"cpu": 4, "gpu": 1})

    assert "cpu=4, gpu=1" == shown(slots.offered)
    assert "cpu=2, gpu=1" == shown(slots.clipped(demand_of({"cpu": 2, "gpu": 8, "licence": 1})))


def test_a_gang_goes_on_without_a_member_that_is_withdrawn() -> None:
    slots = Slots({"cpu": 2}, workers=2)
    add(slots, "alone", cpu=1)
    assert ["alone"] == started(slots)
    slots.add(["m0", "m1", "m2"], demand_of({"cpu": 0.1}))
    assert [] == started(slots)

    assert slots.remove("m1")
    slots.release("alone")
    assert ["m0", "m2"] == started(slots)


def test_tenths_add_up() -> None:
    slots = Slots({"cpu": 1})
    for key in range(11):
        add(slots, str(key), cpu=0.1)

    assert 10 == len(started(slots))


NAMES = ["cpu", "gpu", "licence"]


@given(
    st.lists(
        st.tuples(
            st.dictionaries(st.sampled_from(NAMES), st.integers(0, 4), max_size=3),
            st.integers(1, 2),
        ),
        max_size=30,
    ),
    st.integers(2, 5),
    st.randoms(use_true_random=False),
)
def test_nothing_is_given_twice_and_everything_starts_in_the_end(
    wanted: list[tuple[dict[str, int], int]], workers: int, random: Any
) -> None:
    capacity = {"cpu": 8.0, "gpu": 8.0, "licence": 8.0}
    slots = Slots(capacity, [str(each) for each in range(8)], workers)
    demands: dict[Any, dict[str, int]] = {}
    running: dict[Any, tuple[str, ...]] = {}
    done = 0

    def note(grants: Any) -> None:
        for grant in grants:
            assert grant.key not in running
            running[grant.key] = grant.devices
            assert len(grant.devices) == demands[grant.key].get("gpu", 0)
        assert len(running) <= workers
        devices = [device for held in running.values() for device in held]
        assert len(devices) == len(set(devices))
        for name, amount in capacity.items():
            assert sum(demands[key].get(name, 0) for key in running) <= amount

    for number, (amounts, size) in enumerate(wanted):
        keys = [(number, member) for member in range(size)]
        demands |= dict.fromkeys(keys, amounts)
        slots.add(keys, demand_of(amounts))
        note(slots.start())
        if running and random.random() < 0.5:
            slots.release(ended := random.choice([*running]))
            del running[ended]
            done += 1
            note(slots.start())
    while running:
        slots.release(ended := random.choice([*running]))
        del running[ended]
        done += 1
        note(slots.start())

    assert done == len(demands)


def test_a_demand_of_nothing_is_shown_as_such() -> None:
    assert "nothing" == shown(demand_of({"gpu": 0}))
    assert "cpu=0.5, gpu=1" == shown(demand_of({"gpu": 0.5, "cpu": 0.5})), "GPUs are whole"


@pytest.mark.parametrize("count", [1, 3])
def test_a_release_of_what_never_started_changes_nothing(count: int) -> None:
    slots = Slots({"cpu": count})
    slots.release("nobody")
    for number in range(count + 1):
        add(slots, str(number), cpu=1)

    assert count == len(started(slots))
