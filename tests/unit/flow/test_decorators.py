"""The step decorators check their options, and can be put on from the source and from outside."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aflow.errors import InvalidDecorator
from aflow.flow.decorators.attach import attach, parse_spec, read_options
from aflow.flow.decorators.base import decorators_of
from aflow.flow.decorators.catch import Catch, catch
from aflow.flow.decorators.concurrency import Concurrency
from aflow.flow.decorators.environment import Environment, environment
from aflow.flow.decorators.packages import Pypi
from aflow.flow.decorators.registry import KINDS
from aflow.flow.decorators.resources import Resources, resources
from aflow.flow.decorators.retry import Retry, retry
from aflow.flow.decorators.timeout import Timeout, timeout
from aflow.flow.spec import define
from tests.unit.flow.flows import MakeFlow

# ------------------------------------------------------------ values


def test_a_retry_waits_two_minutes_unless_set_otherwise() -> None:
    assert (3, 120.0) == (Retry().times, Retry().wait_seconds)
    assert 30.0 == Retry(minutes_between_retries=0.5).wait_seconds
    assert 0.0 == Retry(minutes_between_retries=0.5, seconds=0).wait_seconds


def test_the_times_of_a_timeout_add_up() -> None:
    assert 3690.5 == Timeout(seconds=30.5, minutes=1, hours=1).total_seconds


def test_environment_variables_become_texts() -> None:
    assert {"A": "1", "B": "x", "C": "True"} == Environment(vars={"A": 1, "B": "x", "C": True}).vars  # type: ignore[dict-item]


def test_numbers_may_be_written_as_texts() -> None:
    assert Resources(cpu=2, memory=1.5e3, gpu=0) == Resources(cpu="2", memory="1.5e3", gpu="0")


def test_the_values_of_environment_variables_are_not_shown() -> None:
    assert "secret" not in repr(Environment(vars={"TOKEN": "secret"}))


@pytest.mark.parametrize(
    ("kind", "options", "sentence"),
    [
        (Retry, {"times": -1}, "@retry: times must be a whole number from 0 to 50, not -1."),
        (Retry, {"backoff": 0.5}, "@retry: backoff must be a number of 1 or more, not 0.5."),
        (Retry, {"on": [3]}, "@retry: on must be classes of exceptions, not [3]."),
        (
            Concurrency,
            {"limit": 0},
            "@concurrency: limit must be a whole number of 1 or more, not 0.",
        ),
        (Retry, {"times": 51}, "@retry: times must be a whole number from 0 to 50, not 51."),
        (Retry, {"times": 1.5}, "@retry: times must be a whole number from 0 to 50, not 1.5."),
        (Retry, {"times": True}, "@retry: times must be a whole number from 0 to 50, not True."),
        (Retry, {"times": "x"}, "@retry: times must be a whole number from 0 to 50, not 'x'."),
        (
            Retry,
            {"minutes_between_retries": -1},
            "@retry: minutes_between_retries must be a number of 0 or more, not -1.",
        ),
        (
            Retry,
            {"seconds": float("nan")},
            "@retry: seconds must be a number of 0 or more, not nan.",
        ),
        (
            Catch,
            {"var": "a b"},
            "@catch: var must be the name of an artifact, which is not a reserved name, not 'a b'.",
        ),
        (
            Catch,
            {"var": "input"},
            "@catch: var must be the name of an artifact, which is not a reserved name, "
            "not 'input'.",
        ),
        (
            Catch,
            {"print_exception": 1},
            "@catch: print_exception must be True or False, not 1.",
        ),
        (Timeout, {}, "@timeout needs a time above 0: give it seconds=, minutes= or hours=."),
        (
            Timeout,
            {"seconds": -5, "minutes": 1},
            "@timeout: seconds must be a number of 0 or more, not -5.",
        ),
        (
            Timeout,
            {"hours": float("inf")},
            "@timeout: hours must be a number of 0 or more, not inf.",
        ),
        (Pypi, {"disabled": "yes"}, "@pypi: disabled must be True or False, not 'yes'."),
        (
            Environment,
            {"vars": ["A"]},
            '@environment: vars must be a mapping such as {"NAME": "value"}, not of type list.',
        ),
        (
            Environment,
            {"vars": {"A=B": "x"}},
            "@environment: 'A=B' cannot be the name of an environment variable.",
        ),
        (
            Environment,
            {"vars": {1: "x"}},
            "@environment: 1 cannot be the name of an environment variable.",
        ),
        (
            Environment,
            {"vars": {"TOKEN": "secret\0"}},
            "@environment: the value of TOKEN has a NUL character.",
        ),
        (Resources, {"cpu": 0}, "@resources: cpu must be a number above 0, not 0."),
        (Resources, {"memory": "4GB"}, "@resources: memory must be a number above 0, not '4GB'."),
        (Resources, {"gpu": -1}, "@resources: gpu must be a number of 0 or more, not -1."),
        (
            Resources,
            {"disk": 10**400},
            f"@resources: disk must be a number of 0 or more, not 1{'0' * 76}....",
        ),
    ],
)
def test_a_value_that_cannot_be_used_is_reported(
    kind: Any, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InvalidDecorator) as caught:
        kind(**options)
    assert sentence == str(caught.value)


# ------------------------------------------------------------ in the source


def test_decorators_stand_bare_and_with_options() -> None:
    @retry
    @catch(var="error", print_exception=False)
    @timeout(minutes=1)
    @environment(vars={"A": "x"})
    @resources(cpu=2)
    def function() -> None:
        pass

    assert (
        Retry(),
        Catch("error", False),
        Timeout(minutes=1),
        Environment({"A": "x"}),
        Resources(cpu=2),
    ) == decorators_of(function)


def test_the_same_decorator_twice_is_refused() -> None:
    with pytest.raises(InvalidDecorator, match="Step 'train' has @retry twice"):

        @retry(times=1)
        @retry
        def train() -> None:
            pass


def test_an_unknown_option_is_reported_with_those_there_are() -> None:
    with pytest.raises(InvalidDecorator) as caught:
        retry(time=3)  # type: ignore[call-overload]
    assert (
        "@retry has no option 'time'. Did you mean 'times'? Its options are: times, "
        "minutes_between_retries, seconds, backoff, max_seconds, on." == str(caught.value)
    )


def test_an_option_without_its_name_is_reported() -> None:
    with pytest.raises(InvalidDecorator, match="@retry takes its options by name"):
        retry(3)  # type: ignore[call-overload]


# ------------------------------------------------------------ from the command line


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("retry", Retry()),
        ("retry:", Retry()),
        (" retry : times = 2 , seconds = 1.5 ", Retry(times=2, seconds=1.5)),
        ("retry:seconds=null", Retry()),
        ("catch:var=error,print_exception=false", Catch("error", False)),
        ('catch:var="error"', Catch("error")),
        ("timeout:minutes=0.5", Timeout(minutes=0.5)),
        ('environment:vars={"A": "x,y", "B": 2}', Environment({"A": "x,y", "B": "2"})),
        ("resources:cpu=2,memory=16000", Resources(cpu=2, memory=16000)),
    ],
)
def test_a_spec_is_read(spec: str, expected: object) -> None:
    assert expected == parse_spec(spec)


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        ("rety", "There is no step decorator 'rety'. Did you mean 'retry'? Known are: batch, "),
        ("", "There is no step decorator ''."),
        ("retry:time=2", "has no option 'time'. Did you mean 'times'?"),
        ("retry:2", "'2' is not an option"),
        ("retry:times=2,,seconds=1", "',seconds=1' is not an option"),
        ("retry:times=2,times=3", "Option 'times' is given twice"),
        ("retry:times=", "times must be a whole number from 0 to 50, not ''"),
        ("timeout", "@timeout needs a time above 0"),
        ('environment:vars={"A": 1', "vars must be a mapping"),
    ],
)
def test_a_spec_that_cannot_be_read_is_reported(spec: str, part: str) -> None:
    with pytest.raises(InvalidDecorator) as caught:
        parse_spec(spec)
    assert str(caught.value).startswith(f"--with {spec}: ")
    assert part in str(caught.value)


OPTION_NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(OPTION_NAMES, JSON_VALUES, max_size=4))
def test_options_written_as_json_are_read_back(options: dict[str, Any]) -> None:
    text = ",".join(f"{name}={json.dumps(value)}" for name, value in options.items())

    assert options == read_options(text)


@given(st.dictionaries(OPTION_NAMES, st.from_regex(r"[a-z{\"\[/:.]{1,9}", fullmatch=True)))
def test_options_that_are_no_json_are_texts(options: dict[str, str]) -> None:
    texts = {name: f"x{value}" for name, value in options.items()}

    assert texts == read_options(",".join(f"{name}={value}" for name, value in texts.items()))


@given(st.sampled_from([*KINDS, "x"]), st.text())
def test_any_spec_is_read_or_refused_with_a_sentence(name: str, text: str) -> None:
    try:
        reported = parse_spec(f"{name}:{text}").name
    except InvalidDecorator as error:
        reported = str(error)

    assert reported == name or reported.startswith(f"--with {name}:{text}: ")


TWO_STEPS = """
    class F(FlowSpec):
        @retry(times=1)
        @step
        def start(self):
            self.next(self.end)
        @step
        def end(self):
            pass
    """


def test_attached_decorators_are_on_every_step_and_the_source_wins(make_flow: MakeFlow) -> None:
    flow = make_flow(TWO_STEPS)
    before = define(flow)
    after = attach(before, ["retry:times=4", "timeout:hours=1", "retry:times=5"])

    assert (Timeout(hours=1), Retry(times=1)) == after.steps["start"].decorators
    assert (Timeout(hours=1), Retry(times=4)) == after.steps["end"].decorators
    assert () == before.steps["end"].decorators
    assert (before.graph, before.cls) == (after.graph, after.cls)


def test_nothing_attached_leaves_the_flow_as_it_is(make_flow: MakeFlow) -> None:
    definition = define(make_flow(TWO_STEPS))

    assert definition == attach(definition, [])


def test_a_step_gives_its_decorator_by_name(make_flow: MakeFlow) -> None:
    step = define(make_flow(TWO_STEPS)).steps["start"]

    assert (Retry(times=1), None) == (step.decorator("retry"), step.decorator("catch"))
