"""Messages are sealed and opened; what was forged or damaged is refused before it is read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aflow.errors import ForgedMessage, InvalidMessage, QueueError
from aflow.queue.envelope import seal, unseal

KEYS = [None, b"a key"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.dictionaries(st.text(), VALUES), st.sampled_from(KEYS))
def test_what_is_sealed_is_opened(fields: dict[str, object], key: bytes | None) -> None:
    assert ("task", fields) == unseal(seal("task", fields, key), ["report", "task"], key)


@given(st.binary(max_size=100), st.sampled_from(KEYS))
def test_any_bytes_are_refused_or_were_sealed(data: bytes, key: bytes | None) -> None:
    with pytest.raises(QueueError):
        unseal(data, ["task"], key)


@given(st.data(), st.sampled_from(KEYS))
def test_a_signed_message_that_was_changed_anywhere_is_refused(
    data: st.DataObject, key: bytes | None
) -> None:
    sealed = bytearray(seal("task", {"x": 1, "y": "text"}, b"a key"))
    place = data.draw(st.integers(0, len(sealed) - 1))
    sealed[place] ^= data.draw(st.integers(1, 255))

    with pytest.raises(QueueError):
        unseal(bytes(sealed), ["task"], b"a key")


def test_a_signature_is_asked_for_where_there_is_a_key_and_only_there() -> None:
    with pytest.raises(ForgedMessage, match="not signed"):
        unseal(seal("task", {}), ["task"], b"a key")
    with pytest.raises(ForgedMessage, match="no AFLOW_SIGNING_KEY"):
        unseal(seal("task", {}, b"a key"), ["task"])
    with pytest.raises(ForgedMessage, match="another key"):
        unseal(seal("task", {}, b"one"), ["task"], b"another")


def test_a_kind_that_is_not_expected_is_refused() -> None:
    with pytest.raises(InvalidMessage, match="'report' is not expected here"):
        unseal(seal("report", {}), ["task"])
