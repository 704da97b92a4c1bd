"""What an execution was started with: by `trigger`, by a schedule, by an event, or by the end of
another run. A pure function of its input."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from aflow.deploy.starting import ENDED
from aflow.errors import InvalidInput


class Given(NamedTuple):
    """Values of parameters by name, the run to resume, and the pathspecs of the runs whose end
    started this one."""

    parameters: dict[str, Any]
    origin: str | None = None
    runs: tuple[str, ...] = ()


def given_by(
    text: str | None, events: Mapping[str, Mapping[str, str]], flows: Mapping[str, str]
) -> Given:
    """What the input of an execution says.

    `{"Parameters": "{...}"}` is what Metaflow gives, too (the values as a text of JSON); `resume`
    adds `"Origin"`. Else it is an event of EventBridge: the end of an execution of one of the
    machines of `flows` (their flows by their names), or one whose detail holds the fields that
    `events` ({name of the event: {parameter: field}}) name. Raises InvalidInput.
    """
    whole = _object(text or "{}", "The input of the execution")
    if "detail-type" in whole:
        return _by_end(whole, flows) if whole["detail-type"] == ENDED else _by_event(whole, events)
    parameters = whole.get("Parameters", {})
    if isinstance(parameters, str):
        parameters = _object(parameters, "Parameters in the input of the execution")
    if not isinstance(parameters, dict):
        raise InvalidInput("Parameters in the input of the execution have to be values by name.")
    origin = whole.get("Origin")
    if origin is not None and not isinstance(origin, str):
        raise InvalidInput("Origin in the input of the execution has to be the id of a run.")
    return Given(parameters, origin)


def _by_end(event: Mapping[str, Any], flows: Mapping[str, str]) -> Given:
    detail = event.get("detail")
    detail = detail if isinstance(detail, dict) else {}
    machine = str(detail.get("stateMachineArn", "")).rpartition(":")[2]
    if machine not in flows or "name" not in detail:
        raise InvalidInput(f"The end of an execution of {machine!r} is not what is waited for.")
    return Given({}, None, (f"{flows[machine]}/sfn-{detail['name']}",))


def _by_event(event: Mapping[str, Any], events: Mapping[str, Mapping[str, str]]) -> Given:
    detail = event.get("detail")
    detail = detail if isinstance(detail, dict) else {}
    mapping = events.get(str(event["detail-type"]), {})
    missing = [each for each in mapping.values() if each not in detail]
    if missing:
        raise InvalidInput(
            f"The event {event['detail-type']!r} has no field {missing[0]!r}, which a parameter is "
            "to be taken from."
        )
    return Given({name: detail[each] for name, each in mapping.items()})


def _object(text: str, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidInput(f"{what} is no JSON: {error}.") from error
    if not isinstance(value, dict):
        raise InvalidInput(f"{what} has to be an object of JSON.")
    return value
