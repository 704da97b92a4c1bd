"""@trigger_on_finish: the flows whose end starts a deployed flow. `--trigger` tries it out here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from aflow.errors import InvalidDecorator
from aflow.flow.flow_decorators.base import FlowDecorator, decorate
from aflow.flow.names import shown

_FLOW = re.compile(r"[A-Za-z0-9_]+\Z")
_KEYS = {"name", "project", "project_branch"}


@dataclass(frozen=True, slots=True)
class TriggeredOnFinish(FlowDecorator):
    """The flow, or all the flows, whose successful end starts this one once it is deployed.

    A flow is its name, `project.branch.Flow`, a dict of name, project and project_branch, or a
    function where it is only known when the flow is deployed.
    """

    kind: ClassVar[str] = "trigger_on_finish"
    flow: Any = None
    flows: Any = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.flow and self.flows:
            raise InvalidDecorator("@trigger_on_finish: give one of flow and flows, not both.")
        if not self.flow and not self.flows:
            raise InvalidDecorator("@trigger_on_finish: give the flow to wait for, or flows.")
        if not callable(self.flows) and not isinstance(self.flows, list | tuple):
            raise self._fault("flows", "a list of flows")
        assert self.triggers, "every flow that was given is checked by reading it"

    @property
    def triggers(self) -> tuple[Any, ...]:
        """The flows, each {"flow": ..., and "project", "branch" where given}; what is only known
        later is a function."""
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
            f"@trigger_on_finish: {name!r} is no flow: give its name, or project.branch.name."
        )
    return {"flow": _checked(flow), "project": project, "branch": branch}


def _checked(flow: str) -> str:
    if not _FLOW.match(flow):
        raise InvalidDecorator(f"@trigger_on_finish: {flow!r} cannot be the name of a flow.")
    return flow


def trigger_on_finish(flow_class: object = None, /, **options: Any) -> Any:
    """Say whose end starts the deployed flow; see TriggeredOnFinish."""
    return decorate(TriggeredOnFinish, flow_class, options)
