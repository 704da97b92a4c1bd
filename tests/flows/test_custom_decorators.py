"""Custom step decorators and mutators."""

from __future__ import annotations

import pytest

from aflow import client
from aflow.client import Run
from tests.flows.conftest import Ran, Workspace

CUSTOM = """
from aflow import (
    USER_SKIP_STEP, FlowMutator, MutableFlow, Parameter, StepMutator, UserStepDecorator,
    environment, retry, user_step_decorator,
)

@user_step_decorator
def noted(step_name, flow, inputs, attributes):
    flow.before = f"{attributes.get('word', 'plain')} before {step_name}"
    yield
    flow.after = f"after {step_name} {getattr(flow, 'own', None)}"

@user_step_decorator
def forgiving(step_name, flow, inputs):
    try:
        yield
    except ValueError as error:
        flow.forgiven = str(error)

@user_step_decorator
def skipped(step_name, flow, inputs):
    flow.skipped = True
    yield USER_SKIP_STEP

@user_step_decorator
def never(step_name, flow, inputs):
    if False:
        yield

@user_step_decorator
def replaced(step_name, flow, inputs):
    def instead(self):
        self.own = "instead"
        return True
    yield instead

@user_step_decorator
def twice(step_name, flow, inputs):
    yield
    yield

class Counting(UserStepDecorator):
    def init(self, start=0):
        self.count = start

    def pre_step(self, step_name, flow, inputs=None):
        self.count += 1

    def post_step(self, step_name, flow, exception=None):
        flow.count = self.count
        return exception

class WithVariable(StepMutator):
    def init(self, name, value="x"):
        self.name_, self.value = name, value

    def mutate(self, mutable_step):
        variables = {"vars": {self.name_: self.value}}
        mutable_step.add_decorator(environment, deco_kwargs=variables)

class Grown(FlowMutator):
    def pre_mutate(self, mutable_flow):
        mutable_flow.add_parameter("extra", Parameter("extra", default=5))
        assert [n for n, _ in mutable_flow.parameters] == ["extra"]

    def mutate(self, mutable_flow):
        for name, each in mutable_flow.steps:
            if not each.has_decorator("retry"):
                each.add_decorator("retry:times=1,seconds=0")
        mutable_flow.end.remove_decorator("retry")
        mutable_flow.start.add_decorator(
            retry, deco_kwargs={"times": 2, "seconds": 0}, duplicates=MutableFlow.OVERRIDE
        )

class Marked(StepMutator):
    def init(self, name):
        self.mark = name

    def mutate(self, mutable_step):
        known = [spec[0] for spec in mutable_step.decorator_specs]
        print("mutate", self.mark, ",".join(known))
        mutable_step.add_decorator(noted, deco_kwargs={"word": self.mark})

class Broken(FlowMutator):
    def mutate(self, mutable_flow):
        raise KeyError("oops")
"""


@pytest.fixture
def write(workspace: Workspace) -> Workspace:
    """A workspace with the module of custom decorators."""
    (workspace.path / "custom.py").write_text(CUSTOM)
    return workspace


def flow_with(decorators: str, body: str = "self.own = 'step'", head: str = "") -> str:
    """Return a flow whose start step has these decorators."""
    return f"""
import custom
from custom import *

{head}
class Flow_(FlowSpec):
    {decorators}
    @step
    def start(self):
        print("start runs")
        {body}
        self.next(self.end)

    @step
    def end(self):
        self.tries = current.retry_count
"""


def command(workspace: Workspace, *args: str) -> Ran:
    """Run `python flow.py ARGS`."""
    return workspace.finish(workspace.start("--no-pylint", *args))


def latest(workspace: Workspace) -> Run:
    """The latest run."""
    client.metadata(f"local@{workspace.path}")
    client.namespace(None)
    run = client.Flow("Flow_").latest_run
    assert run is not None
    return run


AROUND: dict[str, tuple[str, str, dict[str, object]]] = {
    "at_noted": (
        "@noted",
        "self.own = 1",
        {"before": "plain before at_noted", "after": "after at_noted 1"},
    ),
    "at_loud": ("@noted(word='loud')", "self.own = 1", {"before": "loud before at_loud"}),
    "at_forgiving": ("@forgiving", "raise ValueError('bad')", {"forgiven": "bad"}),
    "at_skipped": ("@skipped", "raise ValueError('bad')", {"skipped": True}),
    "at_replaced": ("@replaced", "raise ValueError('bad')", {"own": "instead"}),
    "at_counting": ("@Counting(start=4)", "pass", {"count": 5}),
    "at_bare": ("@Counting", "pass", {"count": 1}),
    "at_two": ("@forgiving\n    @noted", "raise ValueError('bad')", {"forgiven": "bad"}),
    "at_around": ("@noted\n    @replaced", "pass", {"after": "after at_around instead"}),
    "at_mutated": ("@WithVariable('A', value='b')", "self.a = os.environ['A']", {"a": "b"}),
    "at_never": ("@never", "raise ValueError('bad')", {}),
}


def test_a_custom_decorator_acts_around_the_step(write: Workspace) -> None:
    names = [*AROUND, "end"]
    steps = [
        f"    {decorators}\n    @step\n    def {name}(self):\n        {body}\n"
        f"        self.next(self.{after})\n"
        for (name, (decorators, body, _)), after in zip(AROUND.items(), names[1:], strict=True)
    ]
    write.write(
        "from custom import *\nclass Flow_(FlowSpec):\n    @step\n    def start(self):\n"
        f"        self.next(self.{names[0]})\n{''.join(steps)}"
        "    @step\n    def end(self):\n        pass\n"
    )
    ran = command(write, "run")
    assert 0 == ran.code, ran.out + ran.err
    run = latest(write)
    for name, (_, _, expected) in AROUND.items():
        data = run[name].task.data
        assert expected == {each: getattr(data, each) for each in expected}, name
    write.check()


@pytest.mark.parametrize("spec", ["custom.noted:word=cli", "noted:word=cli"])
def test_a_custom_decorator_comes_from_the_command_line(write: Workspace, spec: str) -> None:
    write.write(flow_with(""))
    assert 0 == command(write, "run", "--with", spec).code
    run = latest(write)
    assert "cli before start" == run["start"].task.data.before
    assert "cli before end" == run["end"].task.data.before


def test_a_mutator_comes_from_the_command_line(write: Workspace) -> None:
    write.write(flow_with("", "self.a = os.environ['A']"))
    ran = command(write, "run", "--with", "custom.WithVariable:name=A,value=b")
    assert 0 == ran.code, ran.err
    assert "b" == latest(write).data.a


def test_a_flow_mutator_adds_parameters_and_changes_decorators(write: Workspace) -> None:
    body = "self.own = self.extra\n        assert current.retry_count == 2"
    write.write(flow_with("@retry(times=0)", body, head="@Grown"))
    ran = command(write, "run", "--extra", "7")
    assert 0 == ran.code, ran.err
    assert (7, 0) == (latest(write).data.own, latest(write).data.tries)
    assert "--extra" in command(write, "run", "--help").out


def test_what_mutators_and_the_command_line_add_is_outermost(write: Workspace) -> None:
    write.write(flow_with("@Marked('x')\n    @replaced\n    @Marked('y')\n    @retry(times=0)"))
    ran = command(write, "run", "--with", "custom.forgiving")
    assert 0 == ran.code, ran.out + ran.err
    reported = [line for line in ran.out.splitlines() if line.startswith("mutate")]
    assert [
        "mutate y retry,replaced,forgiving,Marked,Marked",
        "mutate x retry,replaced,forgiving,noted,Marked,Marked",
    ] == reported[-2:]
    data = latest(write)["start"].task.data
    assert ("y before start", "after start instead") == (data.before, data.after)


def test_mutators_see_what_the_command_line_adds(write: Workspace) -> None:
    body = "assert current.retry_count == 2"
    write.write(flow_with("@Marked('x')", body, head="@Grown"))
    ran = command(write, "run", "--with", "retry:times=9,seconds=0", "--with", "custom.forgiving")
    assert 0 == ran.code, ran.out + ran.err
    assert any("mutate x retry,forgiving,Marked" in line for line in ran.out.splitlines())


RAISES = CUSTOM[: CUSTOM.index('raise KeyError("oops")')].count("\n") + 1


@pytest.mark.parametrize(
    ("decorators", "head", "args", "reported"),
    [
        ("", "@Broken", [], f"custom.py, line {RAISES}): KeyError: 'oops'"),
        ("", "", ["--with", "custom.nothing"], "There is no step decorator 'custom.nothing'"),
    ],
)
def test_what_cannot_be_used_is_reported_in_a_sentence(
    write: Workspace, decorators: str, head: str, args: list[str], reported: str
) -> None:
    write.write(flow_with(decorators, head=head))
    ran = command(write, "run", *args)
    assert 2 == ran.code
    assert reported in ran.err
    assert "Traceback" not in ran.err


def test_a_generator_that_yields_twice_fails_the_step(write: Workspace) -> None:
    write.write(flow_with("@twice"))
    ran = command(write, "run")
    assert 1 == ran.code
    assert "@custom.twice has yielded twice: a step runs once." in ran.err
