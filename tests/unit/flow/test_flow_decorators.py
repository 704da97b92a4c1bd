"""Flow decorators validate their options, apply to classes, and are inherited."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aflow.errors import InvalidDecorator, InvalidInput
from aflow.flow.current import current
from aflow.flow.decorators.base import flow_decorators_of
from aflow.flow.decorators.exit_hook import ExitHook, exit_hook
from aflow.flow.decorators.packages import conda_base, pypi_base
from aflow.flow.decorators.project import Project, project
from aflow.flow.decorators.registry import FLOW_KINDS, make
from aflow.flow.decorators.schedule import ScheduleDecorator, schedule
from aflow.flow.decorators.trigger import (
    TriggeredBy,
    TriggeredOnFinish,
    namespaced_event_name,
    trigger,
    trigger_on_finish,
)
from aflow.flow.spec import FlowSpec, define, step

# ------------------------------------------------------------ @project


@pytest.mark.parametrize(
    ("branch", "production", "expected"),
    [
        (None, None, "user.ann"),
        ("x", None, "test.x"),
        ("x", True, "prod.x"),
        (None, True, "prod"),
        (None, False, "user.ann"),
    ],
)
def test_branch_and_production_make_the_name_of_the_branch(
    branch: str | None, production: bool | None, expected: str
) -> None:
    outside = Project(name="p").place("F", "ann", branch, production)
    inside = Project(name="p", branch=branch, production=production).place("F", "ann")

    assert expected == outside["branch_name"]
    assert f"p.{expected}.F" == outside["project_flow_name"]
    assert outside == inside


@pytest.mark.parametrize("name", ["", "Demo", "a-b", "x" * 129, "a\n", None, 3])
def test_a_project_has_a_plain_name(name: Any) -> None:
    with pytest.raises(InvalidDecorator, match="@project: name must be 1 to 128 lowercase"):
        Project(name=name)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"branch": "No!"},
            "@project: branch must be 1 to 128 lowercase letters, digits or _, not 'No!'.",
        ),
        ({"production": "yes"}, "@project: production must be True or False, not 'yes'."),
    ],
)
def test_a_project_whose_branch_cannot_be_is_refused(
    options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InvalidDecorator) as caught:
        Project(name="p", **options)
    assert sentence == str(caught.value)


@pytest.mark.parametrize(
    ("options", "given", "said"),
    [
        ({"branch": "a"}, {"branch": "b"}, "branch of this flow is set in its source"),
        ({"production": False}, {"production": True}, "production of this flow is set"),
        ({}, {"branch": "No!"}, "--branch must be"),
    ],
)
def test_the_command_line_cannot_contradict_the_source(
    options: dict[str, Any], given: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidInput, match=said):
        Project(name="p", **options).place("F", "ann", **given)


# ------------------------------------------------------------ @schedule


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "0 0 * * ? *"),
        ({"weekly": True}, "0 0 ? * SUN *"),
        ({"hourly": True}, "0 * * * ? *"),
        ({"daily": False}, None),
        ({"cron": "*/5 0,12 LW JAN-MAR,12 MON-FRI *", "timezone": "Europe/Berlin"}, ""),
        ({"cron": "0 10 ? * 6L 2024-2030"}, ""),
        ({"cron": "0 10 * * *"}, ""),
    ],
)
def test_a_schedule_is_a_cron_expression(options: dict[str, Any], expected: str | None) -> None:
    assert (options["cron"] if expected == "" else expected) == ScheduleDecorator(
        **options
    ).schedule


@pytest.mark.parametrize(
    ("cron", "field"),
    [
        ("60 * * * ? *", "the minutes"),
        ("0 24 * * ? *", "the hours"),
        ("0 0 0 * ? *", "the days of the month"),
        ("0 0 L-W * ? *", "the days of the month"),
        ("0 0 * FOO ? *", "the months"),
        ("0 0 ? * 8 *", "the days of the week"),
        ("0 0 * * ? 1066", "the years"),
        ("1-2-3 * * * ? *", "the minutes"),
        ("*/0 * * * ? *", "the minutes"),
        ("? * * * ? *", "the minutes"),
        ("1, * * * ? *", "the minutes"),
    ],
)
def test_a_wrong_field_of_a_schedule_is_named(cron: str, field: str) -> None:
    with pytest.raises(InvalidDecorator, match=f"^@schedule: .* in {field} of "):
        ScheduleDecorator(cron=cron)


@pytest.mark.parametrize(
    "options", [{"cron": "* *"}, {"cron": 5}, {"weekly": "yes"}, {"timezone": "a b"}]
)
def test_a_schedule_that_cannot_be_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidDecorator, match=f"@schedule: {next(iter(options))} must be"):
        ScheduleDecorator(**options)


# ------------------------------------------------------------ @trigger, @trigger_on_finish


def test_events_are_brought_into_one_form() -> None:
    given = ["a", {"name": "b", "parameters": ["x", ("y", "z")]}]

    assert (
        {"name": "a", "parameters": {}},
        {"name": "b", "parameters": {"x": "x", "y": "z"}},
    ) == TriggeredBy(events=given).triggers
    assert ({"name": "c", "parameters": {"p": "q"}},) == TriggeredBy(
        event={"name": "c", "parameters": {"p": "q"}}
    ).triggers


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "give the event"),
        ({"event": "a", "events": ["b"]}, "not both"),
        ({"events": ["a", "a"]}, "'a' is given twice"),
        ({"events": "a"}, "events must be a list"),
        ({"event": 5}, "an event is"),
        ({"event": {"parameters": {}}}, "must have a name"),
        ({"event": {"name": "a", "other": 1}}, "an event is"),
        ({"event": {"name": "a", "parameters": [1]}}, "must be names, pairs"),
        ({"event": {"name": "a", "parameters": 7}}, "must be names, pairs"),
        ({"event": {"name": "a", "parameters": {"x": 1}}}, "must be names, pairs"),
    ],
)
def test_events_that_cannot_be_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidDecorator, match=said):
        TriggeredBy(**options)


def test_flows_to_wait_for_are_brought_into_one_form() -> None:
    given = ["A", "p.test.x.B", {"name": "C", "project": "q", "project_branch": "prod"}]

    assert (
        {"flow": "A"},
        {"flow": "B", "project": "p", "branch": "test.x"},
        {"flow": "C", "project": "q", "branch": "prod"},
    ) == TriggeredOnFinish(flows=given).triggers


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "give the flow"),
        ({"flow": "A", "flows": ["B"]}, "not both"),
        ({"flow": "p.F"}, "project.branch.name"),
        ({"flow": "no flow"}, "cannot be the name of a flow"),
        ({"flow": {"project": "p"}}, "a flow is its name or a dict"),
        ({"flow": {"name": "A", "project": 1}}, "must hold texts"),
        ({"flows": 3}, "flows must be a list"),
    ],
)
def test_flows_that_cannot_be_waited_for_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidDecorator, match=said):
        TriggeredOnFinish(**options)


def test_what_is_known_later_is_kept_as_a_function() -> None:
    later = namespaced_event_name("data")

    assert (later,) == TriggeredBy(event=later).triggers
    assert (later,) == TriggeredBy(events=later).triggers
    assert (later,) == TriggeredOnFinish(flow=later).triggers
    assert (later,) == TriggeredOnFinish(flows=later).triggers
    assert ({"name": later, "parameters": later},) == TriggeredBy(
        event={"name": later, "parameters": later}
    ).triggers


def test_the_name_of_an_event_is_within_the_project_and_branch() -> None:
    later = namespaced_event_name("data")
    alone = later()
    with current._deploying({"project_name": "demo", "branch_name": "test.x"}):
        within = later()

    assert ("mfns.data", "mfns.demo.test.x.data") == (alone, within)
    with pytest.raises(InvalidDecorator) as caught:
        namespaced_event_name(5)  # type: ignore[arg-type]
    assert "The name of an event is a text, not 5." == str(caught.value)


# ------------------------------------------------------------ on classes


def _done(run: object) -> None:
    """A hook."""


def test_decorators_stand_on_the_class_outermost_first_and_are_inherited() -> None:
    @exit_hook(on_success=[_done])
    @trigger(event="data")
    @trigger_on_finish(flow="A")
    @schedule
    @project(name="base")
    class BaseFlow(FlowSpec):
        @step
        def start(self) -> None:
            pass

    @exit_hook(on_error=["_done"])
    @project(name="near")
    class NearFlow(BaseFlow):
        pass

    assert ["exit_hook", "trigger", "trigger_on_finish", "schedule", "project"] == [
        each.decorator_name for each in define(BaseFlow).decorators
    ]
    assert ["exit_hook", "project", "exit_hook", "trigger", "trigger_on_finish", "schedule"] == [
        each.decorator_name for each in define(NearFlow).decorators
    ]
    found = define(NearFlow).project
    assert found is not None
    assert "near" == found.name


def test_a_second_decorator_of_a_kind_is_refused() -> None:
    with pytest.raises(InvalidDecorator, match="Flow Twice has @schedule twice"):

        @schedule
        @schedule(weekly=True)
        class Twice(FlowSpec):
            pass


def test_a_flow_decorator_on_a_step_is_refused() -> None:
    with pytest.raises(InvalidDecorator, match="and stands on the class of a flow"):

        @schedule
        def start(self: Any) -> None:
            pass


@pytest.mark.parametrize("options", [{}, {"on_success": _done}, {"on_error": [5]}, {"options": 1}])
def test_hooks_that_cannot_be_called_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidDecorator, match="@exit_hook"):
        ExitHook(**{"on_error": ["f"], **options} if "options" in options else options)


# ------------------------------------------------------------ from outside


OPTIONS: dict[str, dict[str, Any]] = {
    "conda_base": {"libraries": {"numpy": ">=1.26"}},
    "exit_hook": {"on_error": ["alarm", _done]},
    "project": {"name": "p"},
    "pypi_base": {"packages": {"numpy": ">=1.26"}},
    "schedule": {"weekly": True},
    "trigger": {"event": "e"},
    "trigger_on_finish": {"flows": ["F"]},
}


@pytest.mark.parametrize("name", sorted(FLOW_KINDS))
def test_every_flow_decorator_can_be_made_by_name_and_shown_as_json(name: str) -> None:
    made = make(name, OPTIONS[name], FLOW_KINDS)

    shown = json.loads(json.dumps(made.as_dict()))

    assert name == shown["type"]
    assert OPTIONS[name].keys() <= shown["options"].keys()


def test_an_unknown_flow_decorator_and_an_unknown_option_are_named() -> None:
    with pytest.raises(InvalidDecorator, match=r"no flow decorator 'shedule'\. Did you mean"):
        make("shedule", {}, FLOW_KINDS)
    with pytest.raises(InvalidDecorator, match=r"@schedule has no option 'wekly'\. Did you mean"):
        make("schedule", {"wekly": True}, FLOW_KINDS)


@pytest.mark.parametrize("name", ["conda_base", "pypi_base"])
def test_packages_of_all_steps_are_asked_for_on_the_class(name: str) -> None:
    put = {"conda_base": conda_base, "pypi_base": pypi_base}[name]

    @put(packages={"numpy": 2})
    class Asking(FlowSpec):
        pass

    assert (make(name, {"packages": {"numpy": "2"}}, FLOW_KINDS),) == flow_decorators_of(Asking)


def test_a_plain_class_has_no_flow_decorators() -> None:
    assert () == flow_decorators_of(FlowSpec)
