"""Messages are signed and opened; forged or damaged ones are rejected before they are parsed."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aflow.errors import ForgedMessage, InvalidMessage, MessageTooNew, QueueError
from aflow.queue import messages
from aflow.queue.messages import AHEAD, LONGEST_LIFE, seal, unseal

NOW = 1_800_000_000.0
KEYS = [(), (b"a key",), (b"a key", b"an older one")]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,  # with the 50 of the default to make them takes a hundred times what they test
)


@given(st.dictionaries(st.text(), VALUES), st.sampled_from(KEYS))
def test_what_is_sealed_is_opened(fields: dict[str, object], keys: tuple[bytes, ...]) -> None:
    sealed = seal("task", "tasks.a", NOW, fields, keys)
    assert ("task", fields) == unseal(sealed, ["report", "task"], "tasks.a", NOW, keys)
    assert ("task", NOW, fields) == messages.peek(sealed)


@given(st.binary(max_size=100) | st.binary(max_size=99).map(lambda rest: b"AFM2\0" + rest))
def test_any_bytes_are_refused_or_were_sealed(data: bytes) -> None:
    for keys in KEYS:
        with pytest.raises(QueueError):
            unseal(data, ["task"], "t", NOW, keys)
    assert messages.peek(data) is None


@given(st.data())
def test_a_signed_message_that_was_changed_anywhere_is_refused(data: st.DataObject) -> None:
    sealed = bytearray(seal("task", "t", NOW, {"x": 1, "y": "text"}, [b"a key"]))
    place = data.draw(st.integers(0, len(sealed) - 1))
    sealed[place] ^= data.draw(st.integers(1, 255))

    with pytest.raises(QueueError):
        unseal(bytes(sealed), ["task"], "t", NOW, [b"a key"])


def test_a_signature_is_asked_for_where_there_is_a_key_and_only_there() -> None:
    with pytest.raises(ForgedMessage, match="not signed"):
        unseal(seal("task", "t", NOW, {}), ["task"], "t", NOW, [b"a key"])
    with pytest.raises(ForgedMessage, match="no AFLOW_SIGNING_KEY"):
        unseal(seal("task", "t", NOW, {}, [b"a key"]), ["task"], "t", NOW)
    with pytest.raises(ForgedMessage, match="another key"):
        unseal(seal("task", "t", NOW, {}, [b"one"]), ["task"], "t", NOW, [b"another", b"third"])


def test_keys_can_be_changed_while_messages_are_on_their_way() -> None:
    old, new = b"the old key", b"the new key"
    for sealed_with, good_for in (([old], [new, old]), ([new, old], [old, new]), ([new], [new])):
        sealed = seal("task", "t", NOW, {"x": 1}, sealed_with)
        assert ("task", {"x": 1}) == unseal(sealed, ["task"], "t", NOW, good_for)


@pytest.mark.parametrize("keys", KEYS)
def test_a_message_is_good_for_its_topic_alone(keys: tuple[bytes, ...]) -> None:
    with pytest.raises(InvalidMessage, match=r"for another topic \('reports\.one'"):
        unseal(seal("task", "reports.one", NOW, {}, keys), ["task"], "reports.two", NOW, keys)


def test_a_message_is_not_good_for_ever_nor_before_its_time() -> None:
    sealed = seal("task", "t", NOW, {})
    assert unseal(sealed, ["task"], "t", NOW + LONGEST_LIFE)
    assert unseal(sealed, ["task"], "t", NOW - AHEAD)
    assert unseal(sealed, ["task"], "t", None)
    with pytest.raises(InvalidMessage, match="hours ago"):
        unseal(sealed, ["task"], "t", NOW + LONGEST_LIFE + 60)
    with pytest.raises(InvalidMessage, match="hours from now"):
        unseal(sealed, ["task"], "t", NOW - AHEAD - 60)
    with pytest.raises(InvalidMessage, match="does not say when"):
        unseal(seal("task", "t", float("nan"), {}), ["task"], "t", None)


def test_a_kind_that_is_not_expected_is_refused() -> None:
    with pytest.raises(InvalidMessage, match="'report' is not expected here"):
        unseal(seal("report", "t", NOW, {}), ["task"], "t", NOW)


def test_a_message_of_another_version_may_be_for_others() -> None:
    with pytest.raises(MessageTooNew):
        unseal(b"AFM1\0rest", ["task"], "t", NOW)
    with pytest.raises(MessageTooNew):
        unseal(b"AFM3" + bytes(50), ["task"], "t", NOW)


def test_a_message_of_which_far_too_much_would_be_made_is_refused() -> None:
    """An empty map is one byte in the message, and 64 bytes in memory. `peek` reads unsigned
    messages, too."""
    for maps, refused in ((1_000, False), (3_000_000, True)):
        fields = b"\x81\xa1x\xdd" + maps.to_bytes(4, "big") + b"\x80" * maps
        at = b"\xcb" + struct.pack(">d", NOW)
        data = b"AFM2\0\x94\xa4task\xa1t" + at + fields
        assert refused is (messages.peek(data) is None)
        if refused:
            with pytest.raises(InvalidMessage, match="damaged"):
                unseal(data, ["task"], "t", NOW)
