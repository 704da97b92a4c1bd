"""What a job tells the state machine: a small object in the bucket, its word, which the next state
reads. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

WORD_OF_FAILURE = "run-failed"  # stands for a step in the word's name


def word_name(flow: str, run: str, step: str, place: str) -> str:
    """The object, by its name in the store, that holds what a job has said."""
    return f"deploy/words/{flow}/{run}/{step}/{place}"


def state_after(run: str, step: str, place: str, started: str | None) -> dict[str, Any]:
    """The state of the machine as it goes on behind a step; `started` is there if it was before."""
    state: dict[str, Any] = {"run": run, "place": place, "from": {"step": step}}
    return state if started is None else {**state, "started": started}


def word_of_switch(state: Mapping[str, Any], following: str) -> dict[str, Any]:
    """The state, and which step follows."""
    return {**state, "next": following}


def word_of_foreach(state: Mapping[str, Any], items: Sequence[int], *, distributed: bool) -> Any:
    """The items by their numbers: with the state, or alone for a distributed map, which reads them
    by itself."""
    return [*items] if distributed else {**state, "items": [*items]}
