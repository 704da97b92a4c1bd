"""merge_artifacts: which input each value is taken from, and which conflicts are errors."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aflow.errors import MergeArtifactsError, MissingInMergeArtifacts, UnhandledInMergeArtifacts
from aflow.flow.merge import Merge

INPUTS = [("a/1", {"x": "1", "y": "1", "z": "1"}), ("b/2", {"x": "1", "y": "2", "w": "5"})]


def plan_merge(
    set_already: Collection[str],
    inputs: Iterable[tuple[str, Mapping[str, str]]],
    **options: Collection[str],
) -> dict[str, int]:
    """Return the position of the input that each artifact is taken from."""
    merge = Merge(set_already, **options)
    for label, digests in inputs:
        merge.add(label, digests)
    return merge.plan()


def test_what_inputs_agree_on_is_taken_from_the_first_that_has_it() -> None:
    assert {"x": 0, "z": 0, "w": 1} == plan_merge(["y"], INPUTS)


def test_inputs_that_differ_are_reported_by_artifact_and_label() -> None:
    with pytest.raises(UnhandledInMergeArtifacts) as caught:
        plan_merge([], INPUTS)
    assert ["y"] == caught.value.artifact_names
    assert "the inputs of the join differ in y (differs between a/1 and b/2)" in str(caught.value)


def test_many_differences_are_all_named_and_some_are_reported() -> None:
    names = [f"x{number:02}" for number in range(15)]
    inputs = [(label, dict.fromkeys(names, label)) for label in ("a", "b", "c")]

    with pytest.raises(UnhandledInMergeArtifacts) as caught:
        plan_merge([], inputs)
    assert names == caught.value.artifact_names
    assert "x09 (differs between a and b), 5 more." in str(caught.value)


def test_what_is_excluded_stays_out() -> None:
    assert {"x": 0, "w": 1} == plan_merge([], INPUTS, exclude=["y", "z"])


def test_only_what_is_included_comes_in() -> None:
    assert {"x": 0, "w": 1} == plan_merge([], INPUTS, include=["x", "w"])


def test_what_the_join_has_set_already_may_be_included() -> None:
    assert {"x": 0} == plan_merge(["y", "other"], INPUTS, include=["x", "y", "other"])


def test_what_is_included_and_in_no_input_is_reported() -> None:
    with pytest.raises(MissingInMergeArtifacts, match="no input has 'p', 'q'") as caught:
        plan_merge([], INPUTS, include=["x", "q", "p"])
    assert ["p", "q"] == caught.value.artifact_names


def test_parameters_and_constants_never_merge() -> None:
    assert {"x": 0, "z": 0, "w": 1} == plan_merge([], INPUTS, skip=frozenset({"y"}))


def test_exclude_and_include_together_are_refused() -> None:
    with pytest.raises(MergeArtifactsError, match="exclude= or include=, but not both"):
        plan_merge([], INPUTS, exclude=["x"], include=["y"])


@pytest.mark.parametrize("option", ["exclude", "include"])
def test_a_text_in_place_of_a_list_of_names_is_refused(option: str) -> None:
    options: dict[str, Any] = {option: "xy"}

    with pytest.raises(MergeArtifactsError, match=rf"write {option}=\['xy'\]"):
        plan_merge([], INPUTS, **options)


NAMES = st.sampled_from("abcdef")
MANY_INPUTS = st.lists(st.dictionaries(NAMES, st.sampled_from("12")), max_size=6)


@given(MANY_INPUTS, st.sets(NAMES), st.sets(NAMES), st.sets(NAMES))
def test_a_plan_is_what_comparing_everything_with_everything_gives(
    inputs: list[dict[str, str]], set_already: set[str], exclude: set[str], skip: set[str]
) -> None:
    values: dict[str, set[str]] = {}
    for each in inputs:
        for name in each.keys() - set_already - exclude - skip:
            values.setdefault(name, set()).add(each[name])
    conflicts = sorted(name for name, digests in values.items() if len(digests) > 1)
    merge = Merge(set_already, exclude, (), skip)
    for number, each in enumerate(inputs):
        merge.add(str(number), each)

    if conflicts:
        with pytest.raises(UnhandledInMergeArtifacts) as caught:
            merge.plan()
        assert conflicts == caught.value.artifact_names
    else:
        first = {name: [name in each for each in inputs].index(True) for name in values}
        assert first == merge.plan()
