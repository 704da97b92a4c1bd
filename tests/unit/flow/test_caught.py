"""The record of an exception can be stored for any exception."""

from __future__ import annotations

import pickle

import pytest

from aflow.flow.decorators.catch import ExceptionWrapper


class Plain(Exception):
    pass


class WithOtherArguments(Exception):
    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{reason} ({code})")


class WithoutText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


def record_of(error: BaseException) -> ExceptionWrapper:
    try:
        raise error
    except BaseException as caught:
        copy = pickle.loads(pickle.dumps(ExceptionWrapper.of(caught)))
    assert isinstance(copy, ExceptionWrapper)
    return copy


def test_a_record_tells_type_message_and_traceback() -> None:
    record = record_of(ValueError("too big"))

    assert ("builtins.ValueError", "too big") == (record.type, record.message)
    assert "raise error" in record.traceback
    assert record.traceback == str(record)
    assert ("too big", record.traceback) == (record.exception, record.stacktrace)
    assert "<ExceptionWrapper builtins.ValueError: too big>" == repr(record)


def test_a_record_may_say_what_another_process_has_seen() -> None:
    record = ExceptionWrapper.of(ValueError("x"), text="Traceback...", name="metaflow.Error")

    assert ("metaflow.Error", "x", "Traceback...") == (record.type, record.message, str(record))


def test_the_exception_itself_comes_back() -> None:
    record = record_of(Plain("x", 1))

    assert f"{__name__}.Plain" == record.type
    assert isinstance(record.original, Plain)
    assert ("x", 1) == record.original.args


@pytest.mark.parametrize(
    "error",
    [WithOtherArguments(3, "full"), Plain(lambda: 1), type("Local", (Exception,), {})("x")],
    ids=["other arguments", "a lambda inside", "a class that cannot be imported"],
)
def test_an_exception_that_cannot_be_stored_leaves_its_record(error: Exception) -> None:
    record = record_of(error)

    assert record.original is None
    assert str(error) == record.message


def test_a_reader_without_the_class_still_reads_the_record(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record = record_of(Plain("x"))
    monkeypatch.delitem(globals(), "Plain")

    assert (None, "x") == (record.original, record.message)


def test_an_exception_whose_text_fails_leaves_its_record() -> None:
    assert "(no text: its __str__ raised RuntimeError)" == record_of(WithoutText()).message


def test_records_are_the_same_where_they_say_the_same() -> None:
    record = record_of(ValueError("x"))
    same = ExceptionWrapper(record.type, record.message, record.traceback)

    assert record == same
    assert {record} == {same}
    assert record != ExceptionWrapper("builtins.KeyError", "x", record.traceback)
    assert record != ValueError("x")
