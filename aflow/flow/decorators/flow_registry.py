"""Which flow decorators there are, by name. Each is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from aflow.errors import InvalidDecorator
from aflow.flow.decorators.flow_base import FlowDecorator, build
from aflow.flow.names import did_you_mean

# Name -> module and class.
FLOW_KINDS = {
    "conda_base": ("packages", "CondaBase"),
    "exit_hook": ("exit_hook", "ExitHook"),
    "project": ("project", "Project"),
    "pypi_base": ("packages", "PypiBase"),
    "schedule": ("schedule", "ScheduleDecorator"),
    "trigger": ("trigger", "TriggeredBy"),
    "trigger_on_finish": ("trigger", "TriggeredOnFinish"),
}


def make_flow_decorator(name: str, options: Mapping[str, Any]) -> FlowDecorator:
    """Return the flow decorator of this name.

    Args:
        name: The name as it is written behind the @; the module of its class is imported here.
        options: The options, by name.

    Raises:
        InvalidDecorator: For an unknown name, an unknown option or a value that cannot be used.
    """
    if name not in FLOW_KINDS:
        raise InvalidDecorator(
            f"There is no flow decorator {name!r}.{did_you_mean(name, FLOW_KINDS)} "
            f"Known are: {', '.join(sorted(FLOW_KINDS))}."
        )
    module, kind = FLOW_KINDS[name]
    found: type[FlowDecorator] = getattr(import_module(f"{__package__}.{module}"), kind)
    return build(found, options)
