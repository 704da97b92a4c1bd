"""Events and inputs survive serialization; damaged or too new ones raise errors."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aflow.errors import MetadataError, MetadataTooNew
from aflow.scheduler.messages import (
    AttemptEnded,
    AttemptStarted,
    CancelRequested,
    Event,
    FromBranches,
    FromForeach,
    FromTask,
    Inputs,
    ItemsReady,
    NoInputs,
    Outcome,
    RunStarted,
    TimePassed,
    Transition,
    decode_events,
    decode_inputs,
    encode_events,
    encode_inputs,
)
from aflow.scheduler.states import AttemptState

numbers = st.integers(0, 2**63 - 1)
# Any string: a reason may contain surrogates, which represent undecodable bytes.
texts = st.text(st.characters(exclude_categories=()), max_size=20)
steps = st.lists(texts, max_size=3).map(tuple)
transitions = st.builds(Transition, steps, st.none() | texts, st.none() | numbers)
outcomes = st.builds(
    Outcome, st.sampled_from(AttemptState), st.none() | transitions, texts, st.booleans()
)
events: st.SearchStrategy[Event] = st.one_of(
    st.builds(RunStarted),
    st.builds(AttemptStarted, numbers, numbers, texts),
    st.builds(AttemptEnded, numbers, numbers, outcomes),
    st.builds(ItemsReady, numbers, numbers, numbers),
    st.builds(TimePassed),
    st.builds(CancelRequested, texts),
)
inputs: st.SearchStrategy[Inputs] = st.one_of(
    st.builds(NoInputs),
    st.builds(FromTask, numbers),
    st.builds(FromBranches, st.lists(numbers).map(tuple)),
    st.builds(FromForeach, numbers, st.lists(st.text(), max_size=3).map(tuple), numbers),
)


@given(st.lists(st.tuples(st.floats(allow_nan=False), events)))
def test_events_survive_being_bytes(batch: list[tuple[float, Event]]) -> None:
    assert batch == decode_events(encode_events(batch))


@given(inputs)
def test_inputs_survive_being_bytes(value: Inputs) -> None:
    assert value == decode_inputs(encode_inputs(value))


def test_the_bytes_of_a_journal_stay_what_they_are() -> None:
    went = Transition(("body",), "xs", 3)
    batch: list[tuple[float, Event]] = [
        (1.5, RunStarted()),
        (2.5, AttemptStarted(1, 0)),
        (3.5, AttemptEnded(1, 0, Outcome(AttemptState.SUCCEEDED, went))),
        (4.5, AttemptEnded(2, 1, Outcome(AttemptState.LOST, None, "Gone."))),
        (5.5, AttemptEnded(2, 2, Outcome(AttemptState.SUCCEEDED, Transition(("join",))))),
        (6.5, TimePassed()),
        (7.5, CancelRequested("Enough.")),
        (8.5, ItemsReady(3, 0, 12)),
    ]

    assert [
        1,
        [1.5, "s"],
        [2.5, "b", 1, 0],
        [3.5, "e", 1, 0, ["body"], "xs", 3],
        [4.5, "e", 2, 1, "l", "Gone.", True],
        [5.5, "e", 2, 2, ["join"]],
        [6.5, "t"],
        [7.5, "c", "Enough."],
        [8.5, "i", 3, 0, 12],
    ] == msgpack.unpackb(encode_events(batch))


def test_the_bytes_of_inputs_stay_what_they_are() -> None:
    rows: list[tuple[Inputs, bytes]] = [
        (NoInputs(), b""),
        (FromTask(7), msgpack.packb([1, 7])),
        (FromBranches((7, 8)), msgpack.packb([2, [7, 8]])),
        (FromForeach(7, ("body",), 3), msgpack.packb([3, 7, ["body"], 3])),
    ]
    for value, data in rows:
        assert data == encode_inputs(value)
        assert value == decode_inputs(data)


def test_a_join_of_a_million_items_is_a_few_bytes() -> None:
    assert len(encode_inputs(FromForeach(1, ("body",), 1_000_000))) < 20


def test_a_journal_of_a_later_version_is_too_new() -> None:
    with pytest.raises(MetadataTooNew, match="version 2, but this aflow reads up to version 1"):
        decode_events(msgpack.packb([2, {"anything": "at all"}]))


def test_inputs_of_a_kind_that_is_not_known_are_too_new() -> None:
    with pytest.raises(MetadataTooNew, match="Upgrade"):
        decode_inputs(msgpack.packb([4, 1]))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        encode_events([(1.0, CancelRequested("Enough."))])[:-3],
        msgpack.packb([]),
        msgpack.packb(["1"]),
        msgpack.packb([0]),
        msgpack.packb({"version": 1}),
        msgpack.packb([1, [1.0, "z"]]),
        msgpack.packb([1, [1.0, "e", 1]]),
        msgpack.packb([1, [1.0, "e", 1, 0, "?", "", True]]),
    ],
)
def test_a_damaged_journal_says_so(data: bytes) -> None:
    with pytest.raises(MetadataError, match="journal of the run is damaged"):
        decode_events(data)


@pytest.mark.parametrize("data", [b"\xc1", msgpack.packb([1]), msgpack.packb(["x", 1]), b"\x00"])
def test_damaged_inputs_say_so(data: bytes) -> None:
    with pytest.raises(MetadataError, match="inputs of a task are damaged"):
        decode_inputs(data)
