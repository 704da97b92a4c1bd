"""What starts the executions of a deployed flow, as EventBridge takes it: pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from aflow import cron
from aflow.deploy.names import machine_name
from aflow.errors import InvalidInput

if TYPE_CHECKING:
    from aflow.flow.definition import FlowDefinition

ENDED = "Step Functions Execution Status Change"


class Ticks(NamedTuple):
    """A schedule. One without a zone is a rule, in UTC; one with a zone is for EventBridge
    Scheduler, which alone knows zones."""

    expression: str
    zone: str | None


class Events(NamedTuple):
    """The events that start the flow: the pattern of a rule, the parameters that they give by the
    event's name ({parameter: field}), and the flows of the machines that are waited for."""

    pattern: dict[str, Any]
    parameters: dict[str, dict[str, str]]
    flows: dict[str, str]


def ticks_of(definition: FlowDefinition) -> Ticks | None:
    """The flow's schedule, None if it has none. Raises InvalidInput for one that AWS has not."""
    found: Any = _one(definition, "schedule")
    if found is None or found.schedule is None:
        return None
    if found.timezone is not None:
        cron.zone_of(found.timezone)
    return Ticks(f"cron({aws_cron(found.schedule)})", found.timezone)


def aws_cron(text: str) -> str:
    """Six fields, one of the two of days `?`, as AWS demands. Raises InvalidInput where both of
    them say something, and for what is no schedule."""
    cron.parse(text)
    fields = text.split()
    fields = [*fields, "*"] if len(fields) == 5 else fields
    days, weekdays = fields[2], fields[4]
    if "?" not in (days, weekdays):
        if weekdays == "*":
            fields[4] = "?"
        elif days == "*":
            fields[2] = "?"
        else:
            raise InvalidInput(
                f"@schedule: cron={text!r} names days of the month and days of the week, which AWS "
                "cannot do: put a ? for one of them."
            )
    elif days == weekdays:
        raise InvalidInput(f"@schedule: cron={text!r} names no days: only one of them may be ?.")
    return " ".join(fields)


def events_of(
    definition: FlowDefinition, machine_arn: Callable[[str], str], prefix: str | None
) -> Events | None:
    """The events that the flow waits for, None if it waits for none. `machine_arn` gives the ARN of
    a state machine by its name. Raises InvalidInput for what EventBridge cannot do."""
    event: Any = _one(definition, "trigger")
    ended: Any = _one(definition, "trigger_on_finish")
    if event is not None and ended is not None:
        raise InvalidInput(
            f"Flow {definition.name} has @trigger and @trigger_on_finish: EventBridge starts a "
            "flow on one event, and cannot wait for both."
        )
    if event is not None:
        return _by_name(definition.name, event.triggers)
    if ended is not None:
        return _by_end(definition.name, ended.triggers, machine_arn, prefix)
    return None


def _one(definition: FlowDefinition, kind: str) -> Any:
    return next((each for each in definition.decorators if each.kind == kind), None)


def _single(flow: str, decorator: str, triggers: tuple[Any, ...]) -> Mapping[str, Any]:
    if len(triggers) > 1:
        raise InvalidInput(
            f"Flow {flow}: {decorator} names {len(triggers)} events, all of which are to be waited "
            "for: EventBridge starts a flow on one event. Name one."
        )
    trigger = triggers[0]
    trigger = trigger() if callable(trigger) else trigger
    if isinstance(trigger, str):
        trigger = {"name": trigger}
    if not isinstance(trigger, Mapping):
        raise InvalidInput(f"Flow {flow}: {decorator} gave {trigger!r}, which is no event.")
    return trigger


def _by_name(flow: str, triggers: tuple[Any, ...]) -> Events:
    trigger = _single(flow, "@trigger", triggers)
    name, parameters = (_called(trigger.get(each)) for each in ("name", "parameters"))
    if not isinstance(name, str):
        raise InvalidInput(f"Flow {flow}: the name of the event of @trigger is {name!r}.")
    return Events({"detail-type": [name]}, {name: dict(parameters or {})}, {})


def _called(value: Any) -> Any:
    return value() if callable(value) else value


def _by_end(
    flow: str, triggers: tuple[Any, ...], machine_arn: Callable[[str], str], prefix: str | None
) -> Events:
    trigger = _single(flow, "@trigger_on_finish", triggers)
    name = trigger.get("flow") or trigger["name"]
    project = None
    if "project" in trigger:
        project = ".".join(filter(None, [trigger["project"], trigger.get("branch"), name]))
    machine = machine_name(name, project, prefix, None)
    detail = {"status": ["SUCCEEDED"], "stateMachineArn": [machine_arn(machine)]}
    pattern = {"source": ["aws.states"], "detail-type": [ENDED], "detail": detail}
    return Events(pattern, {}, {machine: name})
