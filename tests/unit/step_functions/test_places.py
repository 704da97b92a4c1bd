"""Numbers of tasks that are computed from their positions in the graph."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aflow.errors import InvalidInput
from aflow.flow.spec import define
from aflow.scheduler.messages import FromBranches, FromForeach, FromTask, NoInputs
from aflow.step_functions import tasks
from aflow.step_functions.tasks import (
    Level,
    TaskReference,
    format_place,
    number_of,
    ordered,
    parse,
)
from tests.unit.step_functions.flows import Branches, Loop, Nested

ORDER = {f"step{number}": number for number in range(1, 8)}
LEVELS = st.builds(Level, st.integers(0, 500), st.integers(0, 3))
PLACES = st.lists(LEVELS, max_size=4).map(lambda inner: format_place([Level(0), *inner]))


def test_steps_are_ordered_along_the_flow_also_round_a_loop():
    assert ["start", "row", "cell", "across", "down", "end"] == [*ordered(define(Nested).graph)]
    assert ["start", "work", "end"] == [*ordered(define(Loop).graph)]
    assert {"work"} == tasks.looping(define(Loop).graph)


@given(st.sets(st.tuples(st.sampled_from([*ORDER]), PLACES), max_size=60))
def test_different_tasks_have_different_numbers_that_a_pathspec_may_name(tasks):
    numbers = {number_of(ORDER, step, place) for step, place in tasks}
    assert len(tasks) == len(numbers)
    assert all(0 < number < 10**18 for number in numbers)


def test_a_place_with_too_many_parts_for_a_number_has_its_digest_in_it():
    exact, digest = (number_of(ORDER, "step1", place) for place in ("0.1.3", "0.1_2.3"))
    assert (2, 7) == (exact >> 56, digest >> 56)
    assert 1 << 22 | 3 == exact & (1 << 44) - 1


@given(PLACES, st.integers(0, 3))
def test_numbers_grow_along_the_way_of_an_item(place, rounds):
    first = number_of(ORDER, "step2", tasks.rounds_added(place, rounds))
    assert first < number_of(ORDER, "step3", tasks.rounds_added(place, rounds))
    assert first < number_of(ORDER, "step1", tasks.rounds_added(place, rounds + 1))


@given(PLACES)
def test_a_place_is_read_as_it_was_written(place):
    assert place == format_place(parse(place))
    assert place == tasks.rounds_added(tasks.rounds_added(place, 2), -2)


def test_a_job_finds_its_task_and_what_it_reads_by_its_place():
    numbers = tasks.Numbers(define(Nested).graph)
    of = numbers.of
    assert TaskReference(of("start", "0"), NoInputs(), None, None, False) == numbers.reference(
        "start", "0", "", None
    )
    row, cell = of("row", "0.1"), of("cell", "0.1.2")
    assert TaskReference(row, FromTask(of("start", "0")), of("start", "0"), 1, True) == (
        numbers.reference("row", "0.1", "start", None)
    )
    assert TaskReference(cell, FromTask(row), row, 2, True) == numbers.reference(
        "cell", "0.1.2", "row", None
    )
    across = TaskReference(
        of("across", "0.1"), FromForeach(row, ("cell",), 0), of("start", "0"), 1, False
    )
    assert across == numbers.reference("across", "0.1", "row", None)
    assert FromTask(of("down", "0")) == numbers.reference("end", "0", "down", None).inputs


def test_a_join_of_branches_reads_the_tasks_with_which_they_have_ended():
    numbers = tasks.Numbers(define(Branches).graph)
    ended = '{"step": ["a", "b"], "place": ["0", "0"]}'
    read = numbers.reference("join", "0", "", ended).inputs
    assert FromBranches((numbers.of("a", "0"), numbers.of("b", "0"))) == read
    for text in ("[", '{"step": ["a"]}', '{"step": ["a"], "place": []}'):
        with pytest.raises(InvalidInput, match="These are not branches of a state machine"):
            numbers.reference("join", "0", "", text)


def test_a_loop_goes_round_once_more_at_each_switch_that_it_comes_back_to():
    numbers = tasks.Numbers(define(Loop).graph)
    assert (True, False) == (numbers.loops("work"), numbers.loops("start"))
    assert ("0_1", "0") == (numbers.after("work", "0"), numbers.after("start", "0"))
    again = numbers.reference("work", "0_1", "work", None)
    assert (numbers.of("work", "0_1"), FromTask(numbers.of("work", "0"))) == again[:2]
    assert (
        FromTask(numbers.of("start", "0")) == numbers.reference("work", "0", "start", None).inputs
    )


def test_a_job_of_a_step_that_is_not_in_the_flow_or_came_from_none_is_refused():
    numbers = tasks.Numbers(define(Nested).graph)
    with pytest.raises(InvalidInput, match="Flow Nested has no step 'other' in this version"):
        numbers.reference("other", "0", "start", None)
    with pytest.raises(InvalidInput, match="Step end does not know which step came before it"):
        numbers.reference("end", "0", "", None)


@pytest.mark.parametrize("text", ["", "x", "0..1", "0_1_2", "0.-1"])
def test_what_is_no_place_is_refused(text):
    with pytest.raises(InvalidInput, match="is not a place"):
        parse(text)


def test_a_loop_in_a_foreach_that_goes_round_too_often_is_refused():
    with pytest.raises(InvalidInput, match=r"Step step3 has gone round 600 times"):
        number_of(ORDER, "step3", "0.1_600")
