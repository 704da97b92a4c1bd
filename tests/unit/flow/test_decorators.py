"""Step decorators validate their options, and are applied in the source or from outside."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aflow.errors import OUT_OF_MEMORY, InvalidDecorator, OutOfMemory
from aflow.flow.decorators.attach import attach, parse_spec, read_options
from aflow.flow.decorators.base import decorators_of
from aflow.flow.decorators.cache import Cache, cache
from aflow.flow.decorators.card import card
from aflow.flow.decorators.catch import Catch, catch
from aflow.flow.decorators.compute import Slurm, batch, kubernetes, slurm
from aflow.flow.decorators.concurrency import Concurrency, concurrency
from aflow.flow.decorators.environment import Environment, environment
from aflow.flow.decorators.packages import Pypi, conda, pypi
from aflow.flow.decorators.parallel import parallel, pytorch_parallel
from aflow.flow.decorators.process import Process, process
from aflow.flow.decorators.queue import QueueDecorator, queue
from aflow.flow.decorators.registry import KINDS, make
from aflow.flow.decorators.resources import Resources, resources
from aflow.flow.decorators.retry import Retry, retry
from aflow.flow.decorators.secrets import secrets
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
    assert {"A": "1", "B": "x", "C": "True"} == Environment(vars={"A": 1, "B": "x", "C": True}).vars


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
        Catch(var="error", print_exception=False),
        Timeout(minutes=1),
        Environment(vars={"A": "x"}),
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


@pytest.mark.parametrize("put", [retry, retry(times=2), catch(var="error")])
def test_a_decorator_of_steps_on_a_class_is_refused(put: Any) -> None:
    with pytest.raises(InvalidDecorator, match=r"and stands on a step; it was given <class"):

        @put
        class Flow:
            pass


def test_a_decorator_on_two_things_at_once_is_refused() -> None:
    with pytest.raises(InvalidDecorator, match=r"@retry takes its options by name.*given 3, 'x'"):
        retry(3, "x")  # type: ignore[call-overload]


def test_a_decorator_has_the_name_and_the_text_of_what_it_makes() -> None:
    assert ("retry", Retry.__doc__) == (retry.__name__, retry.__doc__)  # type: ignore[attr-defined]
    assert "retry" == Retry().name


# ------------------------------------------------------------ from the command line


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("retry", Retry()),
        ("retry:", Retry()),
        (" retry : times = 2 , seconds = 1.5 ", Retry(times=2, seconds=1.5)),
        ("retry:seconds=null", Retry()),
        ("queue", QueueDecorator()),
        ("queue:pool=gpu", QueueDecorator(pool="gpu")),
        ("catch:var=error,print_exception=false", Catch(var="error", print_exception=False)),
        ('catch:var="error"', Catch(var="error")),
        ("timeout:minutes=0.5", Timeout(minutes=0.5)),
        ('environment:vars={"A": "x,y", "B": 2}', Environment(vars={"A": "x,y", "B": "2"})),
        ("resources:cpu=2,memory=16000", Resources(cpu=2, memory=16000)),
        ('cache:version="a"b', Cache(version='"a"b')),
        ("cache:version=[1,enabled=false", Cache(version="[1", enabled=False)),
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


# ------------------------------------------------------------ each kind

# A decorator with options, and those of them that a cached result depends on.
KINDS_OF_STEPS: dict[str, tuple[Any, dict[str, Any], dict[str, object] | None]] = {
    "batch": (batch, {"cpu": 2, "image": "x"}, None),
    "cache": (cache, {"version": 3}, {"version": "3"}),
    "card": (card, {"id": 5, "options": {"a": 1}}, None),
    "catch": (catch, {"var": "error"}, {"var": "error", "print_exception": True}),
    "concurrency": (concurrency, {"limit": "2"}, None),
    "conda": (conda, {"packages": {"x": 1}, "python": 3.11}, {"packages": {"x": "1"}}),
    "environment": (environment, {"vars": {"A": 1}}, {"A": "1"}),
    "kubernetes": (kubernetes, {"memory": 100}, None),
    "parallel": (parallel, {}, {}),
    "pytorch_parallel": (pytorch_parallel, {"master_port": 29500}, None),
    "pypi": (pypi, {"packages": {"x": 1}}, {"packages": {"x": "1"}, "python": None}),
    "process": (process, {"start": "fresh"}, None),
    "queue": (queue, {"pool": "gpu.a-1"}, None),
    "resources": (resources, {"cpu": 2, "licences": 1}, None),
    "retry": (retry, {"times": 1, "on": [ValueError]}, None),
    "secrets": (secrets, {"sources": ["a.b", {"type": "inline"}]}, None),
    "slurm": (slurm, {"cpu": 2, "partition": "p"}, None),
    "timeout": (timeout, {"seconds": 5}, None),
}


def test_every_kind_has_a_row_here() -> None:
    assert KINDS.keys() == KINDS_OF_STEPS.keys()


@pytest.mark.parametrize("name", sorted(KINDS))
def test_a_decorator_is_put_on_a_step_with_its_options(name: str) -> None:
    put, options, shapes = KINDS_OF_STEPS[name]

    def function() -> None:
        pass

    assert function is put(**options)(function)
    (made,) = decorators_of(function)
    assert (name, make(name, options)) == (made.name, made)
    found = made.shapes_result()
    assert (found is None) is (shapes is None)
    assert (shapes or {}).items() <= (found or {}).items()


def test_without_a_version_a_cache_is_the_cache_of_a_step_without_one() -> None:
    assert Cache().shapes_result() is None


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("cache", {"enabled": "yes"}, "@cache: enabled must be True or False, not 'yes'."),
        ("card", {"id": "a b"}, "@card: id must be letters, digits and _, not 'a b'."),
        ("card", {"options": [1]}, "@card: options must be a mapping, not [1]."),
        ("card", {"timeout": 0}, "@card: timeout must be a number above 0, not 0."),
        (
            "pypi",
            {"packages": ["x"]},
            '@pypi: packages must be a mapping such as {"numpy": "1.26"}, not [\'x\'].',
        ),
        *[
            (
                "pytorch_parallel",
                {"master_port": port},
                f"@pytorch_parallel: master_port must be a port from 1 to 65535, not {port}.",
            )
            for port in (0, 65536)
        ],
        ("process", {"start": "slow"}, '@process: start must be "fresh" or "fork", not \'slow\'.'),
        (
            "secrets",
            {"sources": [1, "token"]},
            "@secrets: sources must be a list of texts and mappings, not '<list>'.",
        ),
        (
            "secrets",
            {"sources": "token"},
            "@secrets: sources must be a list of texts and mappings, not '<str>'.",
        ),
        *[
            (
                "queue",
                {"pool": pool},
                f"@queue: pool={pool!r} is not a name of a pool: use letters, digits and _ . -, 40 "
                "of them at most.",
            )
            for pool in ("", "a b", "x" * 41, 3)
        ],
        ("slurm", {"cpu": "two"}, "@slurm: cpu must be a number of 0 or more, not 'two'."),
        (
            "resources",
            {"licences": -1},
            "@resources: licences must be a number of 0 or more, not -1.",
        ),
        (
            "resources",
            {"licences": "many"},
            "@resources: licences must be a number of 0 or more, not 'many'.",
        ),
    ],
)
def test_an_option_that_cannot_be_used_is_reported(
    name: str, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InvalidDecorator) as caught:
        make(name, options)
    assert sentence == str(caught.value)


@pytest.mark.parametrize("option", ["memry", "_own", "a-b"])
def test_a_name_that_is_nearly_one_of_ours_is_not_a_resource_of_the_users(option: str) -> None:
    with pytest.raises(InvalidDecorator, match=f"@resources has no option '{option}'"):
        resources(**{option: 1})


@pytest.mark.parametrize(
    ("options", "start"), [(["fork"], "fork"), (["fresh"], "fresh"), ([], "fork")]
)
def test_process_takes_its_option_by_its_place(options: list[str], start: str) -> None:
    @process(*options)
    def function() -> None:
        pass

    assert (Process(start=start),) == decorators_of(function)
    assert (Process(start="fork"),) == decorators_of(process(lambda: None))


@pytest.mark.parametrize(
    ("disabled", "expected"),
    [(None, None), (True, True), ("true", True), ("False", False), ("none", None)],
)
def test_a_package_is_disabled_by_words_too(disabled: Any, expected: object) -> None:
    assert expected is Pypi(disabled=disabled).disabled


def test_slurm_keeps_the_amounts_that_it_asks_for_as_numbers() -> None:
    made = Slurm(cpu="2", memory=100)

    assert (2, 100, None) == (made.cpu, made.memory, made.gpu)


def test_resources_may_grow_with_the_attempt() -> None:
    made = Resources(cpu=2, memory=lambda attempt: 100 * (attempt + 1), custom={"seats": 1})
    fixed = Resources(cpu=2)
    seats = Resources(custom={"seats": lambda attempt: attempt})

    assert (True, False, True) == (made.grows, fixed.grows, seats.grows)
    assert {"cpu": 2, "memory": 300.0, "seats": 1} == made.amounts(2)
    assert {"cpu": 2} == fixed.amounts()
    assert {"seats": 4.0} == seats.custom_amounts(4)
    assert made.amount("gpu") is None


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (
            lambda attempt: 1 // attempt,
            "@resources: the function of memory raised ZeroDivisionError for attempt 0: integer "
            "division or modulo by zero",
        ),
        *[
            (
                lambda attempt, given=given: given,
                "@resources: the function of memory must give a number for each attempt, and gave "
                f"{given!r} for attempt 0.",
            )
            for given in ("much", None, -1, 0, float("nan"), True)
        ],
    ],
)
def test_a_function_that_gives_no_amount_is_reported(function: Any, sentence: str) -> None:
    with pytest.raises(InvalidDecorator) as caught:
        Resources(memory=function).amount("memory")
    assert sentence == str(caught.value)


@pytest.mark.parametrize(
    ("on", "error", "taken"),
    [
        (None, ValueError(), True),
        (ValueError, ValueError(), True),
        ([KeyError, OSError], FileNotFoundError(), True),
        ([KeyError], ValueError(), False),
        (OutOfMemory, MemoryError(), True),
        (OutOfMemory, OutOfMemory("x"), True),
        (OutOfMemory, ValueError(), False),
    ],
)
def test_a_retry_takes_the_exceptions_that_it_names(on: Any, error: Any, taken: bool) -> None:
    assert taken is Retry(on=on).takes(error)


@pytest.mark.parametrize(
    ("on", "reason", "taken"),
    [
        (None, "killed", True),
        (ValueError, "killed", True),
        (OutOfMemory, "killed", False),
        (OutOfMemory, f"{OUT_OF_MEMORY}it had 5 MB", True),
    ],
)
def test_a_retry_takes_the_ends_of_processes(on: Any, reason: str, taken: bool) -> None:
    assert taken is Retry(on=on).takes_end(reason)
