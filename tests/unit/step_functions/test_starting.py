"""The triggers of a deployed flow, and the input that they give to an execution."""

from __future__ import annotations

import json

import pytest

from aflow import FlowSpec, namespaced_event_name, schedule, step, trigger, trigger_on_finish
from aflow.errors import InvalidInput
from aflow.flow.spec import define
from aflow.step_functions.plan import Ticks, aws_cron, events_of, ticks_of
from aflow.step_functions.spec import ENDED, TriggerPayload, payload_of


class Plain(FlowSpec):
    @step
    def start(self):
        self.next(self.end)

    @step
    def end(self):
        pass


def decorated(decorator):
    return define(decorator(type("Decorated", (Plain,), {"__module__": __name__})))


def arn(name):
    return f"arn:aws:states:r:1:stateMachine:{name}"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"hourly": True}, Ticks("cron(0 * * * ? *)", None)),
        ({"weekly": True}, Ticks("cron(0 0 ? * SUN *)", None)),
        ({}, Ticks("cron(0 0 * * ? *)", None)),
        (
            {"cron": "0 12 * * MON-FRI", "timezone": "Europe/Berlin"},
            Ticks("cron(0 12 ? * MON-FRI *)", "Europe/Berlin"),
        ),
        ({"daily": False}, None),
    ],
)
def test_each_form_of_a_schedule_is_a_cron_expression_of_aws(given, expected):
    assert expected == ticks_of(decorated(schedule(**given)))


def test_days_of_month_and_week_together_are_refused_and_so_is_an_unknown_zone():
    with pytest.raises(InvalidInput, match="put a \\? for one of them"):
        aws_cron("0 12 1 * MON *")
    assert "0 12 1 * ? *" == aws_cron("0 12 1 * *")
    assert "0 12 ? * 1,2,3 *" == aws_cron("0 12 * * 0-2")  # days as Unix counts them
    with pytest.raises(InvalidInput, match="names no days"):
        aws_cron("0 12 ? * ? *")
    with pytest.raises(InvalidInput, match="There is no time zone 'Europe/Atlantis'"):
        ticks_of(decorated(schedule(cron="0 12 * * ? *", timezone="Europe/Atlantis")))


def test_an_event_starts_a_flow_and_gives_it_parameters():
    event = {"name": "data", "parameters": {"alpha": "level"}}
    events = events_of(decorated(trigger(event=event)), arn, None)
    assert {"detail-type": ["data"]} == events.pattern
    said = json.dumps({"detail-type": "data", "detail": {"level": 7, "other": 1}})
    assert TriggerPayload({"alpha": 7}) == payload_of(said, events.parameters, events.flows)
    with pytest.raises(InvalidInput, match="has no field 'level'"):
        payload_of('{"detail-type": "data", "detail": {}}', events.parameters, {})


def test_the_end_of_a_flow_in_a_project_starts_another_that_knows_the_run():
    events = events_of(decorated(trigger_on_finish(flow="p.user.me.Other")), arn, "pre")
    assert [arn("pre_p.user.me.Other")] == events.pattern["detail"]["stateMachineArn"]
    detail = {"stateMachineArn": arn("pre_p.user.me.Other"), "name": "x", "status": "SUCCEEDED"}
    said = json.dumps({"detail-type": ENDED, "detail": detail})
    assert TriggerPayload({}, None, ("Other/sfn-x",)) == payload_of(said, {}, events.flows)
    with pytest.raises(InvalidInput, match="is not what is waited for"):
        payload_of(said, {}, {"else": "Else"})


def test_several_events_are_refused_and_a_function_gives_a_name():
    with pytest.raises(InvalidInput, match="names 2 events"):
        events_of(decorated(trigger(events=["a", "b"])), arn, None)
    events = events_of(decorated(trigger(event=namespaced_event_name("a"))), arn, None)
    assert {"detail-type": ["mfns.a"]} == events.pattern


def test_a_trigger_that_gives_no_event_is_refused():
    for gives, said in [
        (lambda: 7, "gave 7, which is not"),
        (lambda: {"name": 7}, "event of @trigger is 7"),
    ]:
        with pytest.raises(InvalidInput, match=f"Flow Decorated: .*{said}"):
            events_of(decorated(trigger(event=gives)), arn, None)


def test_an_event_and_the_end_of_a_flow_together_are_refused():
    both = trigger(event="a")(
        trigger_on_finish(flow="Other")(type("Both", (Plain,), {"__module__": __name__}))
    )
    with pytest.raises(InvalidInput, match="Flow Both has @trigger and @trigger_on_finish"):
        events_of(define(both), arn, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, TriggerPayload({})),
        ('{"Parameters": "{\\"alpha\\": 1}"}', TriggerPayload({"alpha": 1})),
        ('{"Parameters": {"alpha": 1}, "Origin": "sfn-1"}', TriggerPayload({"alpha": 1}, "sfn-1")),
    ],
)
def test_the_input_of_an_execution_gives_parameters_and_the_run_to_resume(text, expected):
    assert expected == payload_of(text, {}, {})


@pytest.mark.parametrize(
    "text", ["[", "[]", '{"Parameters": "["}', '{"Parameters": 1}', '{"Origin": 1}']
)
def test_an_input_that_cannot_be_meant_is_refused(text):
    with pytest.raises(InvalidInput, match="execution"):
        payload_of(text, {}, {})
