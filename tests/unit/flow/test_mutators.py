"""Mutators: what they can read of a flow, what they may change, and when."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from aflow.errors import InvalidDecorator
from aflow.flow.configs import Config, config_expr
from aflow.flow.custom import (
    FlowMutator,
    StepMutator,
    UserStepDecorator,
    user_step_decorator,
)
from aflow.flow.decorators.attach import attach
from aflow.flow.decorators.card import card
from aflow.flow.decorators.catch import Catch
from aflow.flow.decorators.environment import Environment, environment
from aflow.flow.decorators.project import Project, project
from aflow.flow.decorators.retry import Retry, retry
from aflow.flow.decorators.schedule import ScheduleDecorator, schedule
from aflow.flow.decorators.timeout import Timeout
from aflow.flow.definition import FlowDefinition
from aflow.flow.mutators import MutableFlow, MutableStep
from aflow.flow.parameters import Parameter
from aflow.flow.spec import FlowSpec, step
from aflow.task.config_binding import configured

HERE = __name__
RETRY = "aflow.flow.decorators.retry.Retry"


@user_step_decorator
def noted(step_name: str, flow: Any, inputs: Any, attributes: Any) -> Iterator[Any]:
    yield


class Around(UserStepDecorator):
    def init(self, word: str = "") -> None:
        self.word = word


class OfStep(StepMutator):
    """Does to the step what it is given."""

    def init(self, mutate: Any = None, pre_mutate: Any = None) -> None:
        self._acts = mutate, pre_mutate

    def pre_mutate(self, mutable_step: MutableStep) -> None:
        if self._acts[1] is not None:
            self._acts[1](mutable_step)

    def mutate(self, mutable_step: MutableStep) -> None:
        if self._acts[0] is not None:
            self._acts[0](mutable_step)


class OfFlow(FlowMutator):
    """Does to the flow what it is given."""

    def init(self, pre_mutate: Any = None, mutate: Any = None) -> None:
        self._acts = pre_mutate, mutate

    def pre_mutate(self, mutable_flow: MutableFlow) -> None:
        if self._acts[0] is not None:
            self._acts[0](mutable_flow)

    def mutate(self, mutable_flow: MutableFlow) -> None:
        if self._acts[1] is not None:
            self._acts[1](mutable_flow)


class Another(FlowMutator):
    turns: list[str] = []

    def init(self, word: str = "plain") -> None:
        self.word = word

    def pre_mutate(self, mutable_flow: MutableFlow) -> None:
        self.turns.append(self.word)


def new_flow() -> Any:
    class F(FlowSpec):
        """A flow."""

        config = Config("my-config", default_value={"times": 4, "word": "x"})
        alpha = Parameter("al-pha", default=1)
        constant = 7

        @retry(times=2)
        @step
        def start(self) -> None:
            self.next(self.end)

        @step
        def end(self) -> None:
            pass

        def helper(self) -> int:
            return 1

    return F


def after(
    pre_mutate: Callable[[Any], Any] | None = None, mutate: Callable[[Any], Any] | None = None
) -> FlowDefinition:
    """Return the flow after a mutator of flows that does this."""
    flow = new_flow()
    OfFlow(pre_mutate, mutate)(flow)
    return configured(flow)


def start_after(mutate: Any = None, pre_mutate: Any = None) -> tuple[Any, ...]:
    """Return the decorators of the step `start` after a mutator of steps that does this, without
    the mutator."""
    flow = new_flow()
    OfStep(mutate, pre_mutate)(flow.start)
    found: tuple[Any, ...] = configured(flow).steps["start"].decorators
    return tuple(each for each in found if not isinstance(each, OfStep))


# ------------------------------------------------------------ what they see


def test_a_mutator_sees_all_of_the_flow() -> None:
    seen: dict[str, Any] = {}

    def look(flow: MutableFlow) -> None:
        seen.update(
            configs=dict(flow.configs),
            parameters=[(name, each.name) for name, each in flow.parameters],
            steps=[name for name, _ in flow.steps],
            by_name=(flow.start.name, flow.alpha.name, flow.config.times),
            back=[name for name, _ in flow.start.flow.steps],
            missing=hasattr(flow, "helper"),
        )

    after(look)
    assert {
        "configs": {"my-config": {"times": 4, "word": "x"}},
        "parameters": [("alpha", "al-pha")],
        "steps": ["start", "end"],
        "by_name": ("start", "al-pha", 4),
        "back": ["start", "end"],
        "missing": False,
    } == seen


def test_decorators_are_described_ours_first_and_those_next_to_the_step_first() -> None:
    seen: list[Any] = []
    flow = new_flow()
    OfStep(lambda step: seen.extend(step.decorator_specs))(noted(word="x")(flow.start))
    environment(vars={"A": "1"})(Around("w")(flow.start))
    configured(flow)

    assert [
        ("retry", RETRY, []),
        ("environment", "aflow.flow.decorators.environment.Environment", []),
        ("noted", f"{HERE}.noted", []),
        ("Around", f"{HERE}.Around", ["w"]),
        ("OfStep", f"{HERE}.OfStep", seen[-1][2]),
    ] == [each[:3] for each in seen]
    assert (2, {"vars": {"A": "1"}}, {"word": "x"}) == (
        seen[0][3]["times"],
        seen[1][3],
        seen[2][3],
    )


def test_decorators_of_the_flow_are_described_and_so_are_its_mutators() -> None:
    seen: list[Any] = []
    flow = schedule(weekly=True)(new_flow())
    OfFlow(lambda flow: seen.extend(flow.decorator_specs))(Another(flow))
    configured(flow)

    assert [
        ("schedule", "aflow.flow.decorators.schedule.ScheduleDecorator"),
        ("Another", f"{HERE}.Another"),
        ("OfFlow", f"{HERE}.OfFlow"),
    ] == [each[:2] for each in seen]
    assert seen[0][3]["weekly"]


@pytest.mark.parametrize(
    ("name", "there"),
    [("retry", True), (RETRY, True), ("catch", False), ("aflow.retry", False), ("Retry", False)],
)
def test_a_decorator_is_asked_for_by_its_short_name_or_its_path(name: str, there: bool) -> None:
    seen: list[bool] = []
    start_after(lambda step: seen.append(step.has_decorator(name)))

    assert [there] == seen


# ------------------------------------------------------------ decorators of steps


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((environment, None, {"vars": {"A": 1}}), Environment(vars={"A": "1"})),
        (("catch:var=error",), Catch(var="error")),
        (("timeout", None, {"seconds": 5}), Timeout(seconds=5)),
        (("timeout", None, {"seconds": config_expr("config.times")}), Timeout(seconds=4)),
        (
            (environment, None, {"vars": config_expr("config")}),
            Environment(vars={"times": "4", "word": "x"}),
        ),
    ],
)  # fmt: skip
def test_a_decorator_is_added_outermost(arguments: Any, expected: object) -> None:
    given: list[Any] = []

    assert (expected, Retry(times=2)) == start_after(
        lambda step: given.append(step.add_decorator(*arguments))
    )
    assert [expected] == given


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((noted, None, {"word": config_expr("config.word")}), ([], {"word": "x"})),
        (("noted:word=y",), ([], {"word": "y"})),
        ((f"{HERE}.noted", None, {"word": "z"}), ([], {"word": "z"})),
        ((Around, ["w"]), (["w"], {})),
        (("Around", ["w"]), (["w"], {})),
    ],
)
def test_a_custom_decorator_is_added_with_its_options(arguments: Any, options: object) -> None:
    added, _ = start_after(lambda step: step.add_decorator(*arguments))

    assert options == added.get_args_kwargs()


@pytest.mark.parametrize(
    ("duplicates", "times"),
    [({}, 2), ({"duplicates": MutableStep.IGNORE}, 2), ({"duplicates": MutableStep.OVERRIDE}, 5)],
)
def test_a_decorator_that_is_there_stays_or_is_replaced(duplicates: Any, times: int) -> None:
    given: list[Any] = []

    assert (Retry(times=times),) == start_after(
        lambda step: given.append(step.add_decorator("retry:times=5", **duplicates))
    )
    assert [Retry(times=5) if times == 5 else None] == given


def test_of_a_kind_that_may_be_repeated_all_stay() -> None:
    def twice(step: MutableStep) -> None:
        step.add_decorator(card, duplicates=MutableStep.ERROR)
        step.add_decorator("card:id=a", duplicates=MutableStep.ERROR)

    assert ["card", "card", "retry"] == [each.name for each in start_after(twice)]


def test_a_custom_decorator_that_is_there_is_the_same_whatever_its_options() -> None:
    def again(step: MutableStep) -> None:
        step.add_decorator(noted)
        step.add_decorator("noted:word=x", duplicates=MutableStep.OVERRIDE)

    added, _ = start_after(again)
    assert {"word": "x"} == added.get_args_kwargs()[1]


@pytest.mark.parametrize(
    ("arguments", "gone"),
    [
        (("retry",), True),
        ((RETRY,), True),
        (("retry", [], {"times": 2}), True),
        (("retry", None, {"times": 3}), False),
        (("retry", [1]), False),
        (("catch",), False),
    ],
)
def test_a_decorator_is_removed_by_its_name_and_options(arguments: Any, gone: bool) -> None:
    said: list[bool] = []

    left = start_after(lambda step: said.append(step.remove_decorator(*arguments)))
    assert ([gone], () if gone else (Retry(times=2),)) == (said, left)


# ------------------------------------------------------------ parameters, and what is on the flow


def test_parameters_are_added_replaced_and_removed_by_name_or_attribute() -> None:
    added = after(lambda flow: flow.add_parameter("extra", Parameter("ex-tra", default=5)))
    assert (["alpha", "extra"], "ex-tra") == (
        list(added.parameters),
        added.parameters["extra"].name,
    )
    assert "extra" == added.parameters["extra"].attribute

    replaced = after(lambda flow: flow.add_parameter("alpha", Parameter("a", default=2), True))
    assert ["a"] == [each.name for each in replaced.parameters.values()]

    said: list[bool] = []
    for name in ("al-pha", "alpha", "nothing"):
        remove = partial(MutableFlow.remove_parameter, parameter_name=name)
        after(lambda flow, remove=remove: said.append(remove(flow)))  # type: ignore[misc]
    assert [True, True, False] == said

    def again(flow: MutableFlow) -> None:
        flow.remove_parameter("alpha")
        flow.add_parameter("alpha", Parameter("beta"))

    assert ["beta"] == [each.name for each in after(again).parameters.values()]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((project, None, {"name": config_expr("config.word")}), Project(name="x")),
        (("project:name=y",), Project(name="y")),
        (("schedule", None, {"weekly": True}), ScheduleDecorator(weekly=True)),
        ((schedule,), ScheduleDecorator()),
    ],
)
def test_a_decorator_is_added_to_the_flow_itself(arguments: Any, expected: object) -> None:
    for when in ("pre_mutate", "mutate"):
        definition = after(**{when: lambda flow: flow.add_decorator(*arguments)})
        assert (expected,) == definition.decorators


def test_a_decorator_that_the_flow_has_stays_or_is_replaced_or_removed() -> None:
    def change(flow: MutableFlow) -> None:
        first = flow.add_decorator("schedule:weekly=true")
        assert flow.add_decorator("schedule:hourly=true") is None
        assert [first] == flow._draft.decorators
        flow.add_decorator("schedule:hourly=true", duplicates=MutableFlow.OVERRIDE)
        flow.add_decorator("project:name=p")
        assert (True, False) == (flow.remove_decorator("project"), flow.has_decorator("project"))
        assert not flow.remove_decorator("project")

    assert (ScheduleDecorator(hourly=True),) == after(change).decorators


@pytest.mark.parametrize(
    ("again", "turns"),
    [
        ({}, ["first"]),
        ({"duplicates": MutableFlow.OVERRIDE}, ["second"]),
    ],
)
@pytest.mark.parametrize("another", [Another, "Another", f"{HERE}.Another"])
def test_a_mutator_that_a_mutator_adds_has_its_turn(
    another: Any, again: Any, turns: list[str]
) -> None:
    def add(flow: MutableFlow) -> None:
        flow.add_decorator(another, ["first"])
        flow.add_decorator(another, None, {"word": "second"}, **again)

    Another.turns.clear()
    definition = after(add)

    assert turns == Another.turns
    assert ["OfFlow", "Another"] == [type(each).__name__ for each in definition.mutators]


# ------------------------------------------------------------ in which order


def test_mutators_of_flows_come_first_then_those_of_steps_the_one_next_to_the_step_first() -> None:
    turns: list[str] = []

    def note(word: str) -> Callable[[Any], None]:
        return lambda subject: turns.append(word)

    flow = new_flow()
    OfStep(note("outer mutate"), note("outer pre"))(OfStep(note("inner mutate"))(flow.start))
    OfFlow(note("flow pre"), note("flow mutate"))(flow)

    class Derived(flow):  # type: ignore[misc, valid-type]
        pass

    OfFlow(note("derived pre"))(OfFlow(note("next to the class"))(Derived))
    configured(Derived)

    assert [
        "flow pre",
        "next to the class",
        "derived pre",
        "outer pre",
        "flow mutate",
        "inner mutate",
        "outer mutate",
    ] == turns


def test_mutators_see_what_is_attached_from_outside_and_begin_again() -> None:
    seen: list[list[str]] = []

    def look(flow: MutableFlow) -> None:
        seen.append([spec[0] for spec in flow.end.decorator_specs])
        flow.end.add_decorator("catch")

    before = after(mutate=look)
    again = attach(before, ["retry:times=1", "retry:times=9", "noted"])

    assert [[], ["retry", "noted"]] == seen
    assert ["catch", "noted", "retry"] == [
        each.decorator_name.rpartition(".")[2] for each in again.steps["end"].decorators
    ]
    assert Retry(times=1) in again.steps["end"].decorators


def test_a_mutator_that_is_attached_from_outside_has_its_turns() -> None:
    turns: list[str] = []

    class FromOutside(StepMutator):
        def pre_mutate(self, mutable_step: MutableStep) -> None:
            turns.append(f"pre {mutable_step.name}")

        def mutate(self, mutable_step: MutableStep) -> None:
            turns.append(mutable_step.name)

    attach(configured(new_flow()), [FromOutside.decorator_name])

    assert ["pre start", "pre end", "start", "end"] == turns


def test_a_mutator_removes_another_before_its_turn() -> None:
    turns: list[str] = []
    flow = new_flow()
    OfStep(lambda step: turns.append("mutate"), lambda step: turns.append("pre"))(flow.start)
    OfFlow(lambda flow: turns.append(str(flow.start.remove_decorator("OfStep"))))(flow)
    configured(flow)

    assert ["True"] == turns


# ------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (lambda step: step.add_decorator("rety"), "There is no step decorator 'rety'."),
        (lambda step: step.add_decorator(len), "<built-in function len> is not a step decorator."),
        (lambda step: step.add_decorator(Another), " is not a step decorator."),
        (
            lambda step: step.add_decorator("retry:times=1", None, {"times": 2}),
            "'retry:times=1' has options already: give no others.",
        ),
        (
            lambda step: step.add_decorator(retry, [3]),
            "@retry takes its options by name: give no deco_args.",
        ),
        (
            lambda step: step.add_decorator("retry", [3]),
            "@retry takes its options by name: give no deco_args.",
        ),
        (lambda step: step.add_decorator("retry:times=99"), "@retry: times must be a whole"),
        (
            lambda step: step.add_decorator("retry", duplicates=MutableStep.ERROR),
            "step 'start' has @retry already.",
        ),
        (
            lambda step: step.add_decorator("catch", duplicates=7),
            "duplicates cannot be 7: use IGNORE, ERROR or OVERRIDE.",
        ),
        (
            lambda step: step.add_decorator(OfStep),
            "mutators of steps are added in pre_mutate alone.",
        ),
        (
            lambda step: step.remove_decorator("OfStep"),
            "mutators of steps are removed in pre_mutate alone.",
        ),
        (lambda step: step.nothing, "AttributeError: "),
        (
            lambda step: step.add_decorator("timeout", None, {"seconds": config_expr("x.y")}),
            "The expression 'x.y' of configs cannot be evaluated: NameError: ",
        ),
    ],
)
def test_what_cannot_be_done_to_a_step_is_refused(act: Any, reason: str) -> None:
    with pytest.raises(InvalidDecorator) as caught:
        start_after(act)
    said = str(caught.value)
    assert said.startswith(f"The mutator {HERE}.OfStep failed in mutate ({__file__}, line ")
    assert reason in said


def early(act: Any) -> dict[str, Any]:
    return {"pre_mutate": act}


def late(act: Any) -> dict[str, Any]:
    return {"mutate": act}


@pytest.mark.parametrize(
    ("when", "reason"),
    [
        (
            late(lambda flow: flow.add_parameter("x", Parameter("x"))),
            "parameters are added in pre_mutate alone.",
        ),
        (
            late(lambda flow: flow.remove_parameter("alpha")),
            "parameters are removed in pre_mutate alone.",
        ),
        (
            late(lambda flow: flow.add_decorator(Another)),
            "mutators of flows are added in pre_mutate alone.",
        ),
        (early(lambda flow: flow.add_parameter("x", 5)), "'x' is 5, which is not a Parameter."),
        *[
            (
                early(
                    partial(
                        MutableFlow.add_parameter, name=name, value=Parameter("x"), overwrite=over
                    )
                ),
                f"the flow has {name!r} already.",
            )
            for name, over in (
                ("alpha", False), ("start", True), ("config", True), ("constant", True),
                ("helper", True), ("next", True), ("input", True),
            )
        ],
        (early(lambda flow: flow.add_decorator("shedule")), "There is no flow decorator 'shedule'"),
        (early(lambda flow: flow.add_decorator("no.such")), "There is no flow decorator 'no.such'"),
        (early(lambda flow: flow.add_decorator(len)), "is not a flow decorator."),
        (early(lambda flow: flow.add_decorator(retry)), "is not a flow decorator."),
        (
            early(lambda flow: flow.add_decorator("project:name=p", None, {"name": "q"})),
            "'project:name=p' has options already: give no others.",
        ),
        (
            early(lambda flow: flow.add_decorator(project, ["p"])),
            "@project takes its options by name: give no deco_args.",
        ),
        (
            early(lambda flow: flow.add_decorator(OfFlow, duplicates=MutableFlow.ERROR)),
            "the flow has @OfFlow already.",
        ),
        (
            early(lambda flow: flow.add_decorator("schedule", duplicates="no")),
            "duplicates cannot be 'no': use IGNORE, ERROR or OVERRIDE.",
        ),
        (
            early(lambda flow: flow.remove_decorator("OfFlow")),
            "'OfFlow' is a mutator of the flow, which stays.",
        ),
        (
            early(lambda flow: flow.stert),
            "AttributeError: The flow has no step, parameter or config 'stert'.",
        ),
        (early(lambda flow: Parameter("a b")), "'a b' cannot be the name of a parameter"),
        (late(lambda flow: dict[str, int]()["oops"]), "KeyError: 'oops'"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_to_a_flow_is_refused(when: Any, reason: str) -> None:
    with pytest.raises(InvalidDecorator) as caught:
        after(**when)
    said = str(caught.value)
    assert said.startswith(f"The mutator {HERE}.OfFlow failed in {next(iter(when))} ({__file__}, ")
    assert reason in said


def test_a_mutator_with_options_that_it_cannot_take_is_refused() -> None:
    flow = new_flow()
    Another(wrong=1)(flow)

    with pytest.raises(InvalidDecorator) as caught:
        configured(flow)
    assert str(caught.value).startswith(f"{HERE}.Another failed in init: TypeError: ")
