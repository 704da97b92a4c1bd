"""The uses of self in a step: artifacts, transitions, and errors."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from aflow.errors import (
    ArtifactNotFound,
    InvalidDecorator,
    InvalidInput,
    InvalidTransition,
    TaskError,
)
from aflow.flow import spec
from aflow.flow.lint import check
from aflow.flow.spec import (
    FlowSpec,
    NextCall,
    define,
    left_artifacts,
    new_instance,
    only_defined,
    step,
)
from tests.unit.flow.flows import MakeFlow, running

FLOW = """
    class TestFlow(FlowSpec):
        alpha = Parameter("alpha", default=1)
        limit = 10
        n = 2
        @step
        def start(self):
            self.next(self.a, self.b)
        @step
        def a(self):
            self.next(self.item, foreach="xs")
        @step
        def item(self):
            self.next(self.items)
        @step
        def items(self, inputs):
            self.next(self.join)
        @step
        def b(self):
            self.next({"x": self.c, 2: self.b, True: self.d}, condition="v")
        @step
        def c(self):
            self.next(self.join)
        @step
        def d(self):
            self.next(self.join)
        @step
        def join(self, inputs):
            self.next(self.gang, num_parallel=self.n)
        @step
        def gang(self):
            self.next(self.end)
        @step
        def end(self, inputs):
            pass
        def helper(self):
            return 1
        @property
        def twice(self):
            return 2 * self.x
        @property
        def broken(self):
            return self.limit.nothing
    """


@pytest.fixture
def flow_class(make_flow: MakeFlow) -> type[FlowSpec]:
    flow = make_flow(FLOW)
    assert [] == check(define(flow))
    return flow


# ------------------------------------------------------------ artifacts


def test_an_artifact_is_loaded_once_when_it_is_first_touched(flow_class: type[FlowSpec]) -> None:
    flow, context = running(flow_class, "c", x=[1])

    assert [] == context.loaded
    assert flow.x is flow.x
    assert ["x"] == context.loaded
    assert {"x": [1]} == left_artifacts(flow)


def test_what_a_step_sets_is_what_it_leaves(flow_class: type[FlowSpec]) -> None:
    flow, context = running(flow_class, "c", x=1)
    flow.x = 2
    flow._y = 3

    assert {"x": 2, "_y": 3} == left_artifacts(flow)
    assert [] == context.loaded


def test_a_property_of_the_flow_reads_artifacts(flow_class: type[FlowSpec]) -> None:
    flow, _ = running(flow_class, "c", x=4)

    assert 8 == flow.twice


def test_parameters_are_read_from_the_context_and_never_left(flow_class: type[FlowSpec]) -> None:
    flow, context = running(flow_class, "c", alpha=7)

    assert (7, 7) == (flow.alpha, flow.alpha)
    assert ["alpha"] == context.loaded
    assert {} == left_artifacts(flow)


def test_a_property_that_fails_says_why_itself(flow_class: type[FlowSpec]) -> None:
    within, _ = running(flow_class, "c")
    outside: Any = flow_class(use_cli=False)

    for flow in (within, outside):
        with pytest.raises(AttributeError, match="'int' object has no attribute 'nothing'"):
            flow.broken  # noqa: B018
    with pytest.raises(ArtifactNotFound, match="has no artifact 'x'"):
        within.twice  # noqa: B018


def test_constants_are_read_from_the_class(flow_class: type[FlowSpec]) -> None:
    flow, context = running(flow_class, "c")

    assert 10 == flow.limit
    assert [] == context.loaded


def test_a_missing_artifact_is_reported_with_flow_step_and_a_near_name(
    flow_class: type[FlowSpec],
) -> None:
    flow, _ = running(flow_class, "c", model=1)

    with pytest.raises(ArtifactNotFound) as caught:
        flow.modle  # noqa: B018
    assert (
        "Flow TestFlow has no artifact 'modle' in step 'c': neither it nor a step before it has "
        "set self.modle. Did you mean 'model'?" == str(caught.value)
    )


def test_a_missing_artifact_in_a_join_tells_about_inputs(flow_class: type[FlowSpec]) -> None:
    flow, _ = running(flow_class, "join")

    with pytest.raises(ArtifactNotFound, match=r"read inputs\.<step>\.x, or call"):
        flow.x  # noqa: B018


def test_hasattr_and_getattr_work_as_on_any_object(flow_class: type[FlowSpec]) -> None:
    flow, context = running(flow_class, "c", x=1)

    assert (True, False, 5) == (hasattr(flow, "x"), hasattr(flow, "y"), getattr(flow, "z", 5))
    assert not hasattr(flow, "__array__")
    assert "__array__" not in context.loaded


OWN = """
    class Own(FlowSpec):
        def __getattr__(self, name):
            if name == "computed":
                return "by the flow"
            return super().__getattr__(name)
        @step
        def only(self): pass
    """


def test_a_getattr_of_the_flows_own_is_asked_for_what_is_no_artifact(make_flow: MakeFlow) -> None:
    flow, context = running(make_flow(OWN), "only", x=1)
    outside: Any = make_flow(OWN)(use_cli=False)

    assert (1, "by the flow", "only") == (flow.x, flow.computed, flow._current_step)
    assert 1 == flow.x
    assert 1 == context.loaded.count("x")
    assert {"x": 1} == left_artifacts(flow)
    assert "by the flow" == outside.computed
    for each in (flow, outside):
        assert not hasattr(each, "__array__")
        assert not hasattr(each, "nothing")


def test_a_flow_inherits_a_getattr_of_its_bases_own(make_flow: MakeFlow) -> None:
    base = make_flow(OWN)
    define(base)

    class Derived(base):  # type: ignore[misc, valid-type]
        pass

    flow, _ = running(Derived, "only", x=1)

    assert (1, "by the flow") == (flow.x, flow.computed)


def test_outside_of_a_task_there_are_no_artifacts(flow_class: type[FlowSpec]) -> None:
    flow: Any = flow_class(use_cli=False)

    with pytest.raises(AttributeError, match=r"has no attribute 'x'\. Artifacts can be read in"):
        flow.x  # noqa: B018
    with pytest.raises(AttributeError, match="has no attribute 'alpha'"):
        flow.alpha  # noqa: B018


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("alpha", "a parameter"),
        ("limit", "a constant"),
        ("name", "a reserved name"),
        ("next", "a reserved name"),
        ("input", "a reserved name"),
        ("index", "a reserved name"),
        ("cmd", "a reserved name"),
        ("start", "a method"),
        ("helper", "a method"),
    ],
)
def test_what_may_not_be_set_is_refused_by_name(
    flow_class: type[FlowSpec], name: str, what: str
) -> None:
    flow, _ = running(flow_class, "c")

    with pytest.raises(AttributeError, match=f"self.{name} cannot be set: it is {what}"):
        setattr(flow, name, 1)


@pytest.mark.parametrize("copier", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_flow_cannot_be_stored(flow_class: type[FlowSpec], copier: Any) -> None:
    flow, _ = running(flow_class, "c")

    with pytest.raises(TaskError, match=r"TestFlow itself \(self\) cannot be stored"):
        copier(flow)


def test_foreach_values_come_from_the_context(flow_class: type[FlowSpec]) -> None:
    flow, context = running(flow_class, "item")
    context.index, context.input = 1, "b"

    assert (1, "b", [(1, 2, "b")]) == (flow.index, flow.input, flow.foreach_stack())


def test_merge_artifacts_hands_over_to_the_context(flow_class: type[FlowSpec]) -> None:
    flow, context = running(flow_class, "join")
    flow.merge_artifacts(["a", "b"], exclude=["x"])

    assert [(["a", "b"], ["x"], None)] == context.merged


@pytest.mark.parametrize("what", ["index", "input"])
def test_foreach_values_outside_of_a_task_are_refused(
    flow_class: type[FlowSpec], what: str
) -> None:
    with pytest.raises(TaskError, match=f"self.{what} is there only while a step runs"):
        getattr(flow_class(use_cli=False), what)


@pytest.mark.parametrize(
    ("index", "item", "text"),
    [
        (None, None, "<flow TestFlow step item>"),
        (1, None, "<flow TestFlow step item[1]>"),
        (1, "b", "<flow TestFlow step item[1] (input: b)>"),
        (0, "x" * 21, f"<flow TestFlow step item[0] (input: {'x' * 20}...)>"),
    ],
)
def test_a_flow_is_printed_with_its_place(
    flow_class: type[FlowSpec], index: int | None, item: object, text: str
) -> None:
    flow, context = running(flow_class, "item")
    context.index, context.input = index, item

    assert text == str(flow)
    assert "<flow TestFlow>" == str(flow_class(use_cli=False))


# ------------------------------------------------------------ transitions


@pytest.mark.parametrize(
    ("step_name", "expected"),
    [
        ("start", NextCall(("a", "b"))),
        ("a", NextCall(("item",), foreach="xs")),
        ("item", NextCall(("items",))),
        ("gang", NextCall(("end",))),
    ],
)
def test_a_step_says_where_it_goes(
    flow_class: type[FlowSpec], step_name: str, expected: NextCall
) -> None:
    flow, _ = running(flow_class, step_name)
    getattr(flow, step_name)()

    assert expected == flow.__dict__["_aflow_next"]


def test_a_gang_says_how_many(flow_class: type[FlowSpec]) -> None:
    flow, _ = running(flow_class, "join")
    flow.join(None)

    assert NextCall(("gang",), num_parallel=2) == flow.__dict__["_aflow_next"]


@pytest.mark.parametrize(("value", "chosen"), [("x", "c"), (2, "b"), (True, "d"), (2.0, "b")])
def test_a_switch_goes_where_its_value_says(
    flow_class: type[FlowSpec], value: object, chosen: str
) -> None:
    flow, _ = running(flow_class, "b", v=value)
    flow.b()

    assert NextCall((chosen,), condition="v") == flow.__dict__["_aflow_next"]


@pytest.mark.parametrize("value", ["y", "True", None, 3, [1], {"x": 1}])
def test_a_value_that_is_no_case_of_a_switch_is_refused(
    flow_class: type[FlowSpec], value: object
) -> None:
    flow, _ = running(flow_class, "b", v=value)

    with pytest.raises(InvalidTransition) as caught:
        flow.b()
    assert (
        f"Step 'b' is a switch over self.v, whose value {value!r} is not one of its cases: "
        "'x', 2, True." == str(caught.value)
    )


def test_a_second_next_is_refused(flow_class: type[FlowSpec]) -> None:
    flow, _ = running(flow_class, "gang")
    flow.gang()

    with pytest.raises(InvalidTransition, match=r"Step 'gang' called self.next\(\) twice"):
        flow.gang()


def test_next_outside_of_a_task_is_refused(flow_class: type[FlowSpec]) -> None:
    flow = flow_class(use_cli=False)

    with pytest.raises(TaskError, match=r"self.next\(\) is there only while a step runs"):
        flow.next()


@pytest.mark.parametrize(
    ("step_name", "call"),
    [
        ("start", lambda flow: flow.next(flow.b, flow.a)),
        ("start", lambda flow: flow.next(flow.a)),
        ("start", lambda flow: flow.next()),
        ("item", lambda flow: flow.next(flow.items, foreach="xs")),
        ("item", lambda flow: flow.next(flow.items, condition="v")),
        ("item", lambda flow: flow.next(flow.items, num_parallel=2)),
        ("a", lambda flow: flow.next(flow.item)),
        ("a", lambda flow: flow.next(flow.item, foreach="ys")),
        ("join", lambda flow: flow.next(flow.gang)),
        ("b", lambda flow: flow.next(flow.c)),
        ("b", lambda flow: flow.next({"x": flow.c}, condition="v")),
        ("b", lambda flow: flow.next({"x": flow.c, 2: flow.b, True: flow.c}, condition="v")),
        ("b", lambda flow: flow.next({"x": flow.c, 2: flow.b, True: flow.d}, condition="w")),
        ("b", lambda flow: flow.next({"x": flow.c, 2: flow.b, True: flow.d})),
    ],
)
def test_a_next_that_is_not_that_of_the_source_is_refused(
    flow_class: type[FlowSpec], step_name: str, call: Any
) -> None:
    flow, _ = running(flow_class, step_name, v="x", w="x")

    with pytest.raises(InvalidTransition, match=f"Step '{step_name}' called .* in another way"):
        call(flow)


def test_next_in_the_end_is_refused(flow_class: type[FlowSpec]) -> None:
    flow, _ = running(flow_class, "end")

    with pytest.raises(InvalidTransition, match="Step 'end' is the end of the flow"):
        flow.next(flow.start)


def test_a_value_in_place_of_a_step_is_refused(flow_class: type[FlowSpec]) -> None:
    flow, _ = running(flow_class, "gang")

    with pytest.raises(InvalidTransition, match=r"gives 5 to self.next\(\), which is not a step"):
        flow.next(5)


@pytest.mark.parametrize("size", [0, -1, 1.5, "2", True])
def test_a_gang_of_another_size_than_a_whole_number_is_refused(
    flow_class: type[FlowSpec], size: object
) -> None:
    flow, _ = running(flow_class, "join")

    with pytest.raises(InvalidTransition, match=f"has num_parallel={size!r}"):
        flow.next(flow.gang, num_parallel=size)


# ------------------------------------------------------------ the class


def test_iterating_gives_the_steps_with_their_names(flow_class: type[FlowSpec]) -> None:
    flow = flow_class(use_cli=False)

    assert list(define(flow_class).steps) == [each.name for each in flow]  # type: ignore[attr-defined]


def test_a_flow_knows_its_name_and_script(flow_class: type[FlowSpec]) -> None:
    flow = flow_class(use_cli=False)

    assert ("TestFlow", "flow_1.py", "<flow TestFlow>") == (
        flow.name,
        flow.script_name,
        repr(flow),
    )


def test_calling_the_class_starts_the_launcher(
    flow_class: type[FlowSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[FlowSpec] = []
    monkeypatch.setattr(spec, "_launcher", None)
    spec.set_launcher(launched.append)
    flow = flow_class()

    assert [flow] == launched


def test_a_class_that_is_called_while_its_file_is_read_only_makes_an_object(
    flow_class: type[FlowSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[FlowSpec] = []
    monkeypatch.setattr(spec, "_launcher", launched.append)
    with only_defined():
        with only_defined():
            flow_class()
        flow_class()
    assert [] == launched
    flow = flow_class()

    assert [flow] == launched


def test_without_a_command_line_calling_the_class_says_so(
    flow_class: type[FlowSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spec, "_launcher", None)

    with pytest.raises(InvalidInput, match=r"TestFlow\(use_cli=False\)"):
        flow_class()


def test_a_new_instance_calls_no_init(make_flow: MakeFlow) -> None:
    flow = make_flow(
        """
        class F(FlowSpec):
            def __init__(self):
                raise RuntimeError
            @step
            def only(self): pass
        """
    )

    assert flow is type(new_instance(define(flow)))


@pytest.mark.parametrize("wrong", [5, "start", staticmethod(len), len])
def test_step_on_what_is_no_function_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidDecorator, match="which is not a function"):
        step(wrong)
