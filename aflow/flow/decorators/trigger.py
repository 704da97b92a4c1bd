"""@trigger and @trigger_on_finish: the events and flows that start a deployed flow."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from aflow._core.records import dataclass, field
from aflow.errors import InvalidDecorator
from aflow.flow.current import current
from aflow.flow.decorators.base import FlowDecorator, written
from aflow.flow.names import shown

_EXAMPLE = "'name', {'name': 'name', 'parameters': {'parameter': 'field'}} or a function"


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggeredBy(FlowDecorator):
    """Set the event, or all the events, that start the deployed flow.

    A function can replace a value that is only known when the flow is deployed.
    """

    decorator_name: ClassVar[str] = "trigger"
    event: Any = None
    events: Any = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_given(self, "event", "events", "the event that starts the flow")
        names = [each["name"] for each in self.triggers if isinstance(each, dict)]
        twice = {name for name in names if isinstance(name, str) and names.count(name) > 1}
        if twice:
            raise InvalidDecorator(f"@trigger: the event {min(twice)!r} is given twice.")

    @property
    def triggers(self) -> tuple[Any, ...]:
        """The events: {"name": ..., "parameters": {parameter: field of the event}} for each.

        Values that are only known at deployment are functions.
        """
        if callable(self.events):
            return (self.events,)
        return tuple(_event(each) for each in ([self.event] if self.event else self.events))


def _check_given(decorator: FlowDecorator, one: str, many: str, what: str) -> None:
    """Check that exactly one of the options `one` and `many` is given."""
    name, several = decorator.decorator_name, getattr(decorator, many)
    if getattr(decorator, one) and several:
        raise InvalidDecorator(f"@{name}: give one of {one} and {many}, not both.")
    if not getattr(decorator, one) and not several:
        raise InvalidDecorator(f"@{name}: give {what}, or {many}.")
    if not callable(several) and not isinstance(several, list | tuple):
        raise decorator._fault(many, f"a list of {many}")


def _event(event: Any) -> Any:
    if isinstance(event, str):
        return {"name": event, "parameters": {}}
    if callable(event):
        return event
    if not isinstance(event, Mapping) or not event.keys() <= {"name", "parameters"}:
        raise InvalidDecorator(f"@trigger: an event is {_EXAMPLE}, not {shown(event)}.")
    name = event.get("name")
    if not callable(name) and not (isinstance(name, str) and name):
        raise InvalidDecorator(f"@trigger: an event must have a name, which {shown(event)} lacks.")
    return {"name": name, "parameters": _mapping(event.get("parameters", {}), name)}


def _mapping(parameters: Any, event: object) -> Any:
    """Return the parameters of an event as {parameter: field of the event}."""
    if callable(parameters):
        return parameters
    pairs: list[Any] = [None]
    if isinstance(parameters, Mapping):
        pairs = list(parameters.items())
    elif isinstance(parameters, list | tuple):
        pairs = [(each, each) if isinstance(each, str) else each for each in parameters]
    if not all(map(_is_pair, pairs)):
        raise InvalidDecorator(
            f"@trigger: the parameters of the event {shown(event)} must be names, pairs "
            f"(parameter, field) or a dict of them, not {shown(parameters)}."
        )
    return dict(pairs)


def _is_pair(value: object) -> bool:
    """Return whether the value is a list or tuple of two texts."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return False
    return all(isinstance(each, str) for each in value)


trigger = written(TriggeredBy)
"""Set the events that start the deployed flow; see TriggeredBy."""


def namespaced_event_name(name: str) -> Callable[..., str]:
    """Return a function for @trigger that returns the full name of an event at deployment.

    The full name is `mfns.<project>.<branch>.<name>`, or `mfns.<name>` without a project.

    Args:
        name: The name of the event within the project, without a prefix.

    Raises:
        InvalidDecorator: If the name is not a text.
    """
    if not isinstance(name, str):
        raise InvalidDecorator(f"The name of an event is a text, not {shown(name)}.")

    def full(context: object = None) -> str:
        there = [current.get("project_name"), current.get("branch_name")]
        return ".".join(["mfns", *(there if all(there) else []), name])

    return full


# @trigger_on_finish: the flows whose end starts a deployed flow. `--trigger` simulates it locally.


_FLOW = re.compile(r"[A-Za-z0-9_]+\Z")
_KEYS = {"name", "project", "project_branch"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggeredOnFinish(FlowDecorator):
    """Set the flow, or all the flows, whose successful end starts the deployed flow.

    A flow is given by its name, by `project.branch.Flow`, by a dict with name, project and
    project_branch, or by a function if it is only known when the flow is deployed.
    """

    decorator_name: ClassVar[str] = "trigger_on_finish"
    flow: Any = None
    flows: Any = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_given(self, "flow", "flows", "the flow to wait for")
        assert self.triggers, "every flow that was given is checked by reading it"

    @property
    def triggers(self) -> tuple[Any, ...]:
        """The flows: {"flow": ...} for each, with "project" and "branch" if they were given.

        Values that are only known at deployment are functions.
        """
        if callable(self.flows):
            return (self.flows,)
        return tuple(_upstream(each) for each in ([self.flow] if self.flow else self.flows))


def _upstream(flow: Any) -> Any:
    if callable(flow):
        return flow
    if isinstance(flow, str):
        return _from_name(flow)
    if not isinstance(flow, Mapping) or not flow.keys() <= _KEYS or "name" not in flow:
        raise InvalidDecorator(
            "@trigger_on_finish: a flow is its name or a dict of name, project and "
            f"project_branch, not {shown(flow)}."
        )
    if not all(isinstance(each, str) for each in flow.values()):
        raise InvalidDecorator(f"@trigger_on_finish: {shown(flow)} must hold texts alone.")
    there = {"project": flow.get("project"), "branch": flow.get("project_branch")}
    return {"flow": _checked(flow["name"]), **{key: each for key, each in there.items() if each}}


def _from_name(name: str) -> dict[str, str]:
    if "." not in name:
        return {"flow": _checked(name)}
    project, _, rest = name.partition(".")
    branch, _, flow = rest.rpartition(".")
    if not (project and branch):
        raise InvalidDecorator(
            f"@trigger_on_finish: {name!r} is not a flow: give its name, or project.branch.name."
        )
    return {"flow": _checked(flow), "project": project, "branch": branch}


def _checked(flow: str) -> str:
    if not _FLOW.match(flow):
        raise InvalidDecorator(f"@trigger_on_finish: {flow!r} cannot be the name of a flow.")
    return flow


trigger_on_finish = written(TriggeredOnFinish)
"""Set the flows whose successful end starts the deployed flow; see TriggeredOnFinish."""
