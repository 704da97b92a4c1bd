"""`run_step`: a step as a function, with everything that a real run does around it."""

from __future__ import annotations

import abc
import asyncio
import functools
from typing import Any, Generic, TypeVar

import pytest

from aflow import FlowSpec, Parameter, catch, current, environment, project, retry, step, timeout
from aflow.errors import (
    ArtifactNotFound,
    ArtifactNotPicklable,
    InvalidInput,
    InvalidParameter,
    InvalidTransition,
    MergeArtifactsError,
    TaskTimedOut,
)
from aflow.task.inputs import PAGE
from aflow.testing import run_step

T = TypeVar("T")


class Doubled:
    def __set_name__(self, owner: type, name: str) -> None:
        self._name = f"_of_{name}"

    def __get__(self, flow: Any, owner: type | None = None) -> Any:
        return self if flow is None else flow.__dict__.get(self._name)

    def __set__(self, flow: Any, value: int) -> None:
        flow.__dict__[self._name] = 2 * value


class Kind(abc.ABC):
    @property
    @abc.abstractmethod
    def kind(self) -> str: ...


class Odd(Generic[T], Kind, FlowSpec):
    """A class with much that classes may have."""

    __slots__ = ("slot",)
    rate = Parameter("rate", default=3)
    descriptor = Doubled()

    def __init__(self, *args: Any) -> None:
        self.made = "made"
        super().__init__(*args)

    @property
    def kind(self) -> str:
        return "odd"

    @functools.cached_property
    def cached(self) -> list[int]:
        return [1]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("dynamic_"):
            return name.upper()
        raise AttributeError(name)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value * 2 if name == "twice" else value)

    def __len__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        raise ValueError("not now")

    @step
    def start(self) -> None:
        self.descriptor, self.twice, self.slot = 2, 2, "slot"
        self.seen = [self.rate, self.descriptor, self.twice, self.slot, self.kind, self.cached]
        self.next(self.end)

    @step
    def end(self) -> None:
        self.later = [self.rate, self.seen, self.twice, self.dynamic_name, hasattr(self, "none")]


def test_a_class_with_much_that_classes_may_have_finds_its_artifacts() -> None:
    seen = [3, 4, 4, "slot", "odd", [1]]
    start = run_step(Odd.start)
    end = run_step(Odd.end, inputs={name: start.artifacts[name] for name in ("seen", "twice")})

    assert seen == start.artifacts["seen"]
    assert [3, seen, 4, "DYNAMIC_NAME", False] == end.artifacts["later"]


class Training(FlowSpec):
    lr = Parameter("learning-rate", default=0.1)
    sizes = (1, 2)

    @step
    def start(self) -> None:
        self.letters = list("abc")
        self.next(self.each, foreach="letters")

    @retry(times=3)
    @catch(var="failed")
    @step
    def each(self) -> None:
        self.seen = (self.input, self.index, self.lr, self.sizes)
        if self.input == "bad":
            raise KeyError("bad")
        self.next(self.gather)

    @step
    def gather(self, inputs: Any) -> None:
        self.all = [each.seen for each in inputs]
        self.next(self.left, self.right)

    @step
    async def left(self) -> None:
        await asyncio.sleep(0)
        self.common = current.step_name
        self.next(self.meet)

    @environment(vars={"GREETING": "hello"})
    @step
    def right(self) -> None:
        import os

        self.greeting = os.environ["GREETING"]
        self.next(self.meet)

    @step
    def meet(self, inputs: Any) -> None:
        self.merge_artifacts(inputs)
        self.from_left = inputs.left.common
        self.next(self.choose)

    @step
    def choose(self) -> None:
        self.next({"a": self.end, "b": self.choose}, condition="from_left")

    @timeout(seconds=1)
    @step
    def end(self) -> None:
        if self.mode == "endless":
            while True:
                pass
        if self.mode == "unpicklable":
            self.generator = (each for each in "unpicklable")
        if self.mode == "goes on":
            self.next(self.start)


def test_the_first_step_opens_its_foreach() -> None:
    done = run_step(Training.start)
    assert ("each",) == done.next
    assert ["a", "b", "c"] == done.items
    assert {"letters": ["a", "b", "c"], "lr": 0.1, "sizes": (1, 2)} == done.artifacts


def test_a_task_of_a_foreach_has_its_item_index_and_parameters() -> None:
    done = run_step(Training.each, input="b", index=1, parameters={"lr": 0.5})
    assert ("b", 1, 0.5, (1, 2)) == done.artifacts["seen"]
    assert (("gather",), None) == (done.next, done.items)


def test_what_the_step_raises_is_raised_though_it_would_be_caught() -> None:
    with pytest.raises(KeyError, match="bad"):
        run_step(Training.each, input="bad")


def test_the_inputs_of_a_foreach_join_are_a_list() -> None:
    assert [3, 1, 2] == run_step(
        Training.gather, inputs=[{"seen": n} for n in (3, 1, 2)]
    ).artifacts["all"]


def test_each_of_many_inputs_of_a_join_is_read_once() -> None:
    inputs = [{"seen": n} for n in range(2 * PAGE + 1)]
    assert [*range(2 * PAGE + 1)] == run_step(Training.gather, inputs=inputs).artifacts["all"]


def test_the_inputs_of_a_join_of_branches_are_named_and_merged() -> None:
    inputs = {"left": {"common": 1, "x": 5}, "right": {"x": 5}}
    done = run_step(Training.meet, inputs=inputs)
    assert (1, 5) == (done.artifacts["from_left"], done.artifacts["x"])
    with pytest.raises(MergeArtifactsError):
        run_step(Training.meet, inputs={"left": {"common": 1, "x": 5}, "right": {"x": 6}})


async def test_coroutines_and_environments_are_as_in_a_run() -> None:
    # Also in an event loop, such as that of this test or of a notebook.
    assert "left" == run_step(Training.left).artifacts["common"]
    assert asyncio.get_running_loop().is_running()
    assert "hello" == run_step(Training.right).artifacts["greeting"]


@pytest.mark.parametrize(("value", "expected"), [("a", "end"), ("b", "choose")])
def test_a_switch_goes_where_its_condition_says(value: str, expected: str) -> None:
    assert (expected,) == run_step(Training.choose, inputs={"from_left": value}).next


def test_artifacts_of_before_are_passed_on_and_copied() -> None:
    given = [1]
    done = run_step(Training.end, inputs={"mode": "plain", "values": given})
    assert given == done.artifacts["values"]
    assert given is not done.artifacts["values"]
    assert () == done.next


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("endless", TaskTimedOut),
        ("unpicklable", ArtifactNotPicklable),
        ("goes on", InvalidTransition),
    ],
)
def test_what_would_fail_the_task_is_raised(mode: str, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        run_step(Training.end, inputs={"mode": mode})


def test_an_artifact_that_is_not_there_is_reported() -> None:
    with pytest.raises(ArtifactNotFound, match="mode"):
        run_step(Training.end)


def test_a_step_of_a_local_class_and_of_a_base_is_found() -> None:
    class Base(FlowSpec):
        @step
        def start(self) -> None:
            self.kind = type(self).__name__
            self.next(self.end)

        @step
        def end(self) -> None:
            pass

    class Derived(Base):
        pass

    assert "Base" == run_step(Base.start).artifacts["kind"]
    assert "Derived" == run_step(Derived.start, flow=Derived).artifacts["kind"]


@pytest.mark.parametrize(
    ("call", "reported"),
    [
        (lambda: run_step(len), "is not a step of a flow"),
        (lambda: run_step(Training.start, input=1), "is in no foreach: it has no self.input"),
        (lambda: run_step(Training.each, input=1, index=-1), "is 0 or more, not -1"),
        (lambda: run_step(Training.each, inputs=[{}]), "is not a join: its inputs are a mapping"),
        (lambda: run_step(Training.meet, inputs={"start": {}}), "'start' does not lead to step"),
    ],
)
def test_inputs_that_a_step_cannot_have_are_refused(call: Any, reported: str) -> None:
    with pytest.raises(InvalidInput, match=reported):
        call()


def test_a_parameter_that_is_wrong_is_refused() -> None:
    with pytest.raises(InvalidParameter):
        run_step(Training.start, parameters={"lr": "much"})


def test_a_step_of_a_project_knows_its_branch() -> None:
    @project(name="demo", branch="b")
    class ProjectFlow(FlowSpec):
        @step
        def start(self) -> None:
            self.place = (current.project_name, current.branch_name, current.trigger)
            self.next(self.end)

        @step
        def end(self) -> None:
            pass

    left = run_step(ProjectFlow.start, flow=ProjectFlow).artifacts

    assert ("demo", "test.b", None) == left["place"]
