"""Numbers of tasks that follow from where the tasks stand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aflow.errors import InvalidInput
from aflow.flow.spec import define
from aflow.step_functions import tasks
from aflow.step_functions.tasks import Level, format_place, number_of, ordered, parse
from tests.unit.step_functions.flows import Loop, Nested

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


@given(PLACES, st.integers(0, 3))
def test_numbers_grow_along_the_way_of_an_item(place, rounds):
    first = number_of(ORDER, "step2", tasks.rounds_added(place, rounds))
    assert first < number_of(ORDER, "step3", tasks.rounds_added(place, rounds))
    assert first < number_of(ORDER, "step1", tasks.rounds_added(place, rounds + 1))


@given(PLACES)
def test_a_place_is_read_as_it_was_written(place):
    assert place == format_place(parse(place))
    assert place == tasks.rounds_added(tasks.rounds_added(place, 2), -2)


@pytest.mark.parametrize("text", ["", "x", "0..1", "0_1_2", "0.-1"])
def test_what_is_no_place_is_refused(text):
    with pytest.raises(InvalidInput, match="is not a place"):
        parse(text)


def test_a_loop_in_a_foreach_that_goes_round_too_often_is_refused():
    with pytest.raises(InvalidInput, match=r"Step step3 has gone round 600 times"):
        number_of(ORDER, "step3", "0.1_600")
