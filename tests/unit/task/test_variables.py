"""Environment variables that several steps of a process set at the same time."""

from __future__ import annotations

import os

import pytest

from aflow.errors import TaskError
from aflow.task.environment import Variables


def test_the_last_to_release_puts_back_what_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFLOW_THERE", "before")
    monkeypatch.delenv("AFLOW_NEW", raising=False)
    variables, values = Variables("environment"), {"AFLOW_THERE": "x", "AFLOW_NEW": "y"}
    variables.take(values)
    variables.take(values)
    variables.release(values)
    assert ("x", "y") == (os.environ["AFLOW_THERE"], os.environ["AFLOW_NEW"])
    assert variables.holds("AFLOW_NEW")
    variables.release(values)
    assert ("before", None) == (os.environ["AFLOW_THERE"], os.environ.get("AFLOW_NEW"))
    assert not variables.holds("AFLOW_NEW")


def test_another_value_for_a_variable_that_is_held_is_refused_without_being_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("AFLOW_NEW", raising=False)
    variables = Variables("secrets")
    variables.take({"AFLOW_NEW": "hunter2"})
    with pytest.raises(TaskError, match="@secrets: the variable AFLOW_NEW has another") as raised:
        variables.take({"AFLOW_OTHER": "z", "AFLOW_NEW": "swordfish"})
    assert not {"hunter2", "swordfish"} & set(str(raised.value).split())
    assert "AFLOW_OTHER" not in os.environ
    variables.release({"AFLOW_NEW": "hunter2"})


def test_a_value_that_no_variable_can_have_is_refused_before_any_is_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("AFLOW_NEW", raising=False)
    variables = Variables("secrets")

    with pytest.raises(TaskError, match="@secrets: the value of the variable AFLOW_HALF") as raised:
        variables.take({"AFLOW_NEW": "hunter2", "AFLOW_HALF": "swordfish\ud800"})

    assert "swordfish" not in str(raised.value)
    assert "AFLOW_NEW" not in os.environ
