"""Custom step decorators: how they are declared, created, applied to steps and found by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aflow.errors import InvalidDecorator
from aflow.flow.configs import config_expr
from aflow.flow.custom import (
    USER_SKIP_STEP,
    FlowMutator,
    OnStep,
    StepMutator,
    UserStepDecorator,
    custom_named,
    user_step_decorator,
)
from aflow.flow.decorators.attach import parse_spec
from aflow.flow.decorators.base import decorators_of
from aflow.flow.decorators.retry import retry
from aflow.flow.lint import check
from aflow.flow.spec import FlowSpec, define, step

HERE = __name__


@user_step_decorator
def jotted(step_name: str, flow: Any, inputs: Any, attributes: dict[str, Any]) -> Iterator[Any]:
    """Notes."""
    flow.before = (step_name, inputs, attributes)
    yield
    flow.after = True


@user_step_decorator
def forgiving(step_name: str, flow: Any, inputs: Any) -> Iterator[Any]:
    try:
        yield
    except ValueError as error:
        flow.forgiven = str(error)


class Counting(UserStepDecorator):
    def init(self, start: int = 0) -> None:
        self.count = start


class Silent(UserStepDecorator):
    """Takes no options."""


class Extra(StepMutator):
    def init(self, *names: str) -> None:
        self.names = names


class OfFlows(FlowMutator):
    def init(self, size: int = 1) -> None:
        self.size = size


class Twin:
    class Counting(UserStepDecorator):
        """Another one of the name."""


def a_step() -> Any:
    @step
    def start(self: Any) -> None:
        pass

    return start


# ------------------------------------------------------------ on steps


@pytest.mark.parametrize("put", [jotted, Counting, Silent, Extra])
def test_a_decorator_stands_bare_or_with_brackets(put: Any) -> None:
    bare, called = a_step(), a_step()

    assert (bare, called) == (put(bare), put()(called))
    assert [put, put] == [type(decorators_of(each)[0]) for each in (bare, called)]


def test_decorators_stand_outermost_first_among_ours() -> None:
    start = jotted(word="x")(retry(times=1)(Counting(2)(a_step())))

    assert ["jotted", "retry", "Counting"] == [
        each.decorator_name.rpartition(".")[2] for each in decorators_of(start)
    ]
    assert f"@{HERE}.jotted" == repr(decorators_of(start)[0])
    assert ([], {"word": "x"}) == decorators_of(start)[0].get_args_kwargs()  # type: ignore[attr-defined]


def test_a_decorator_keeps_the_name_and_the_words_of_its_function() -> None:
    assert ("jotted", "Notes.", f"{HERE}.jotted") == (
        jotted.__name__,
        jotted.__doc__,
        jotted.decorator_name,
    )


@pytest.mark.parametrize("wrong", [5, "start", len, lambda self: None, SimpleNamespace()])
def test_a_decorator_on_what_is_not_a_step_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidDecorator) as caught:
        Counting()(wrong)
    assert str(caught.value).startswith(f"@{HERE}.Counting was put on ")
    assert str(caught.value).endswith(", which is not a step: write it above @step.")


def test_a_decorator_below_step_is_refused() -> None:
    with pytest.raises(InvalidDecorator) as caught:

        @step
        @jotted
        def start(self: Any) -> None:
            pass

    assert str(caught.value).startswith(f"@step was put on @{HERE}.jotted, which is not a function")


def test_a_decorator_on_a_method_that_is_not_a_step_is_a_problem_of_the_flow() -> None:
    class Forgotten(FlowSpec):
        @jotted
        def helper(self) -> None:
            pass

        @step
        def only(self) -> None:
            pass

    assert [f"The method 'helper' has @{HERE}.jotted but is not a step: put @step below it."] == [
        each.message for each in check(define(Forgotten))
    ]


def test_a_decorator_may_have_attributes_of_its_own_that_decorators_of_aflow_have_too() -> None:
    class Labelled(UserStepDecorator):
        def init(self, *args: Any, **options: Any) -> None:
            self.name, self.kind = args

    made = Labelled("retry", "x").begun({})

    assert ("retry", "x") == (made.name, made.kind)
    assert Labelled.decorator_name == made.decorator_name


def test_its_options_shape_the_result_of_a_step_and_those_of_a_mutator_do_not() -> None:
    assert {"options": ((4,), [])} == Counting(4).shapes_result()
    assert {"options": ((), [("a", 1), ("b", 2)])} == jotted(b=2, a=1).shapes_result()
    mutator: Any = Extra("x")
    assert mutator.shapes_result() is None


# ------------------------------------------------------------ options


def test_options_go_to_init_when_the_configs_are_known() -> None:
    made = Counting(config_expr("config.size + 1"))
    begun = made.begun({"config": SimpleNamespace(size=3)})

    assert 4 == begun.count
    assert ([4], {}) == begun.get_args_kwargs()
    assert not hasattr(made, "count"), "what stands on the step is not changed"
    assert 7 == jotted(word=config_expr("size")).begun({"size": 7}).get_args_kwargs()[1]["word"]


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (
            lambda: Silent(1),
            f"{HERE}.Silent was given options, and has no method init to take them.",
        ),
        (
            lambda: Counting(wrong=1),
            f"{HERE}.Counting failed in init: TypeError: Counting.init() got an unexpected keyword "
            "argument 'wrong'",
        ),
        (lambda: jotted(1), f"@{HERE}.jotted takes its options by name."),
        (
            lambda: forgiving(a=1),
            f"@{HERE}.forgiving was given options: its function has to take attributes as the "
            "fourth argument.",
        ),
    ],
)
def test_options_that_cannot_be_taken_are_refused(made: Any, sentence: str) -> None:
    with pytest.raises(InvalidDecorator) as caught:
        made().begun({})
    assert sentence == str(caught.value)


def test_an_init_that_fails_is_reported_with_its_line() -> None:
    class Failing(UserStepDecorator):
        def init(self) -> None:
            int("x")

    with pytest.raises(InvalidDecorator) as caught:
        Failing().begun({})
    line = Failing.init.__code__.co_firstlineno + 1
    assert f"failed in init ({__file__}, line {line}): ValueError: invalid" in str(caught.value)


# ------------------------------------------------------------ what they do


def test_a_class_does_nothing_unless_it_is_overridden() -> None:
    made, error = Silent().begun({}), ValueError("x")

    assert made.pre_step("start", None) is None
    assert made.post_step("start", None) is None
    assert error is made.post_step("start", None, error)
    assert made.skip_step is False
    for of in (Extra().begun({}), OfFlows().begun({})):
        assert (None, None, None) == (of.pre_mutate(None), of.mutate(None), of.add_to_package())


def test_a_step_is_skipped_or_called_otherwise_by_skip_step() -> None:
    made = Silent().begun({})
    made.skip_step = {"foreach": "xs"}

    assert {"foreach": "xs"} == made.skip_step


def test_a_generator_runs_before_and_after_the_step() -> None:
    flow, made = SimpleNamespace(), jotted(word="x").begun({})

    assert made.pre_step("start", flow, "inputs") is None
    assert ("start", "inputs", {"word": "x"}) == flow.before
    assert not hasattr(flow, "after")
    assert made.post_step("start", flow) is None
    assert flow.after


def test_an_exception_of_the_step_comes_out_of_the_yield() -> None:
    flow, made = SimpleNamespace(), forgiving().begun({})
    made.pre_step("start", flow)

    assert made.post_step("start", flow, ValueError("bad")) is None
    assert "bad" == flow.forgiven

    other = forgiving().begun({})
    other.pre_step("start", flow)
    error = KeyError("not forgiven")
    assert error is other.post_step("start", flow, error)


def decorated(*yielded: Any, result: Any = None) -> Any:
    """Return the started generator of a decorator that yields these."""

    @user_step_decorator
    def made(step_name: str, flow: Any, inputs: Any) -> Any:
        yield from yielded
        return result

    return made().begun({})


@pytest.mark.parametrize(
    ("yielded", "skips"), [(USER_SKIP_STEP, True), ({"num_parallel": 2}, {"num_parallel": 2})]
)
def test_a_dict_that_is_yielded_skips_the_step(yielded: Any, skips: Any) -> None:
    made = decorated(yielded)

    assert (None, skips) == (made.pre_step("start", None), made.skip_step)


def test_a_function_that_is_yielded_is_run_instead_of_the_step() -> None:
    assert len is decorated(len).pre_step("start", None)


def test_a_generator_that_does_not_yield_skips_the_step() -> None:
    made, error = decorated(), ValueError("of another decorator")

    assert (None, True) == (made.pre_step("start", None), made.skip_step)
    assert (None, error) == (
        made.post_step("start", None),
        made.post_step("start", None, error),
    )


def test_what_a_generator_returns_is_how_the_step_goes_on() -> None:
    made = decorated(None, result=(None, {"foreach": "xs"}))
    made.pre_step("start", None)

    assert (None, {"foreach": "xs"}) == made.post_step("start", None)


def test_a_generator_that_yields_twice_is_an_error_of_the_step() -> None:
    made = decorated(None, None)
    made.pre_step("start", None)

    assert f"@{HERE}.made has yielded twice: a step runs once." == str(
        made.post_step("start", None)
    )


def test_a_generator_that_yields_what_nobody_can_use_is_an_error_of_the_step() -> None:
    with pytest.raises(InvalidDecorator) as caught:
        decorated(5).pre_step("start", None)
    assert (
        f"@{HERE}.made has yielded 5: yield nothing, a function to run instead of the step, or a "
        "dict to skip it." == str(caught.value)
    )


# ------------------------------------------------------------ declarations


def plain(step_name: str, flow: Any, inputs: Any) -> None:
    """Not a generator."""


def two(step_name: str, flow: Any) -> Iterator[Any]:
    yield


def three(step_name: str, flow: Any, inputs: Any) -> Iterator[Any]:
    yield


@pytest.mark.parametrize(
    ("function", "options", "sentence"),
    [
        (plain, {}, "@user_step_decorator decorates only generator functions."),
        (5, {}, "@user_step_decorator decorates only generator functions."),
        *[
            (
                function,
                options,
                f"@user_step_decorator: {function.__name__} has to take (step_name, flow, inputs), "
                "and attributes as the fourth if there are options.",
            )
            for function, options in ((two, {}), (three, {"a": 1}))
        ],
    ],
)
def test_what_is_not_such_a_generator_is_refused(
    function: Any, options: Any, sentence: str
) -> None:
    with pytest.raises(InvalidDecorator) as caught:
        user_step_decorator(**options)(function)
    assert sentence == str(caught.value)


@pytest.mark.parametrize("wrong", [5, "F", a_step()])
def test_a_mutator_of_flows_on_what_is_not_a_class_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidDecorator) as caught:
        OfFlows(size=2)(wrong)
    assert str(caught.value).endswith(": a mutator of flows decorates the class of a flow.")


# ------------------------------------------------------------ by name


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("jotted", jotted),
        (f"{HERE}.jotted", jotted),
        ("test_custom.jotted", jotted),
        (f"{HERE}.Counting", Counting),
        ("Twin.Counting", Twin.Counting),
        ("Extra", Extra),
        ("nowhere", None),
        ("oted", None),
        ("", None),
    ],
)
def test_a_decorator_is_found_by_the_end_of_its_path(name: str, found: Any) -> None:
    assert found is custom_named(name, OnStep)


def test_a_mutator_of_flows_is_found_apart_from_those_of_steps() -> None:
    assert OfFlows is custom_named("OfFlows", FlowMutator)
    assert (None, None) == (custom_named("OfFlows", OnStep), custom_named("Extra", FlowMutator))


def test_a_decorator_is_imported_where_it_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "more_decorators.py").write_text(
        "from aflow import UserStepDecorator\nclass Slow(UserStepDecorator): pass\nx = 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    found = custom_named("more_decorators.Slow", OnStep)
    assert found is not None
    assert "more_decorators.Slow" == found.decorator_name
    with pytest.raises(InvalidDecorator) as caught:
        custom_named("more_decorators.x", OnStep)
    assert str(caught.value).startswith("'more_decorators.x' is not a step decorator.")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "Counting",
            f"'Counting' may be any of {HERE}.Counting, {HERE}.Twin.Counting: write its whole "
            "path.",
        ),
        ("nowhere.it", "There is no step decorator 'nowhere.it': No module named 'nowhere'."),
        ("json.it", "There is no step decorator 'json.it': module 'json' has no attribute 'it'."),
        (".it", "There is no step decorator '.it': Empty module name."),
        ("..it", "There is no step decorator '..it': the 'package' argument is required to "
         "perform a relative import for '.'."),
        (f"{HERE}.OfFlows", f"'{HERE}.OfFlows' is not a step decorator."),
        (f"{HERE}.Countin", f"There is no step decorator '{HERE}.Countin': "),
    ],
)  # fmt: skip
def test_a_name_that_leads_nowhere_is_reported(name: str, sentence: str) -> None:
    with pytest.raises(InvalidDecorator) as caught:
        custom_named(name, OnStep)
    assert str(caught.value).startswith(sentence)


def test_a_module_that_fails_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "failing_decorators.py").write_text("raise RuntimeError\n")
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(InvalidDecorator) as caught:
        parse_spec("failing_decorators.jotted:word=x")
    assert (
        "--with failing_decorators.jotted:word=x: There is no step decorator "
        "'failing_decorators.jotted': RuntimeError." == str(caught.value)
    )


def test_a_spec_gives_a_decorator_with_its_options() -> None:
    made = parse_spec("jotted:word=x")

    assert (f"{HERE}.jotted", {"word": "x"}) == (made.decorator_name, made.get_args_kwargs()[1])
