"""Decorators of flows, through the command line."""

from __future__ import annotations

import json

import pytest

from tests.flows.conftest import Workspace

PROJECT = """
from aflow import project, schedule, trigger_on_finish

@schedule(cron="0 12 ? * MON-FRI *")
@trigger_on_finish(flow="Flow_")
@project(name="demo")
class Flow_(FlowSpec):
    @step
    def start(self):
        self.x = 5
        print(current.project_name, current.branch_name, current.is_user_branch)
        print(current.is_production, current.project_flow_name)
        trigger = current.trigger
        if trigger:
            print(trigger.event.name, trigger.event.type, trigger.run.data.x, len(trigger.events))
            print("Flow_" in trigger, trigger["Flow_"].pathspec == trigger.runs[0].pathspec)
        self.next(self.end)

    @step
    def end(self):
        pass
"""


@pytest.fixture
def demo(workspace: Workspace) -> Workspace:
    """A flow with all decorators that describe a run."""
    workspace.write(PROJECT)
    return workspace


@pytest.mark.parametrize(
    ("options", "branch"),
    [
        ((), "user.ann"),
        (("--branch", "x"), "test.x"),
        (("--production",), "prod"),
        (("--production", "--branch", "x"), "prod.x"),
    ],
)
def test_a_run_knows_its_place_in_the_project(
    demo: Workspace, options: tuple[str, ...], branch: str
) -> None:
    for words in ((*options, "run"), ("run", *options)):
        ran = demo.finish(demo.start("--no-pylint", *words, AFLOW_USER="ann"))
        assert 0 == ran.code
        user, production = branch == "user.ann", "prod" in branch
        assert f"demo {branch} {user}" in ran.lines
        assert f"{production} demo.{branch}.Flow_" in ran.lines
        assert f"Project: demo, Branch: {branch}\n" in ran.err
    run = demo.metadata.runs("Flow_")[0]
    assert {"project:demo", f"project_branch:{branch}"} <= set(run.system_tags)


def test_a_branch_that_cannot_be_ends_in_a_sentence(demo: Workspace) -> None:
    ran = demo.run("--branch", "No!")

    assert 2 == ran.code
    assert "--branch must be 1 to 128 lowercase letters, digits or _, not 'No!'." in ran.err


def test_a_finished_run_can_be_said_to_be_the_trigger(demo: Workspace) -> None:
    assert 0 == demo.run("--run-id-file", "id").code
    first = (demo.path / "id").read_text()

    ran = demo.run("--trigger", f"Flow_/{first}")

    assert 0 == ran.code
    assert "metaflow.Flow_.end run 5 1" in ran.lines
    assert "True True" in ran.lines
    trigger = demo.metadata.runs("Flow_")[0].settings["trigger"]
    assert [f"Flow_/{first}/end/2"] == [each["id"] for each in trigger]


@pytest.mark.parametrize(
    ("pathspec", "said"),
    [
        ("Flow_", "takes the pathspec of a run, Flow/run, not 'Flow_'"),
        ("Flow_/77", "There is no run Flow_/77 to be the trigger"),
    ],
)
def test_a_trigger_that_cannot_be_ends_in_a_sentence(
    demo: Workspace, pathspec: str, said: str
) -> None:
    ran = demo.run("--trigger", pathspec)

    assert ran.code in (1, 2)
    assert said in ran.err


def test_flow_decorators_are_shown_to_people_and_programs(demo: Workspace) -> None:
    shown = demo.finish(demo.start("show"))
    raw = demo.finish(demo.start("output-raw", "--json"))

    assert "@project(name='demo')" in shown.out
    assert "@schedule(cron='0 12 ? * MON-FRI *', daily=True)" in shown.out
    kinds = [each["type"] for each in json.loads(raw.out)["decorators"]]
    assert ["schedule", "trigger_on_finish", "project"] == kinds
