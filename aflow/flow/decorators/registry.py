"""All decorators of aflow, by name. The module of a decorator is imported when it is first used."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from aflow.errors import InvalidDecorator
from aflow.flow.decorators.base import build
from aflow.flow.names import did_you_mean

# Name -> module and class.
KINDS = {
    "batch": ("compute", "BatchDecorator"),
    "cache": ("cache", "Cache"),
    "card": ("card", "CardDecorator"),
    "catch": ("catch", "Catch"),
    "concurrency": ("concurrency", "Concurrency"),
    "conda": ("packages", "Conda"),
    "environment": ("environment", "Environment"),
    "kubernetes": ("compute", "Kubernetes"),
    "parallel": ("parallel", "Parallel"),
    "pytorch_parallel": ("parallel", "PytorchParallel"),
    "pypi": ("packages", "Pypi"),
    "process": ("process", "Process"),
    "queue": ("queue", "QueueDecorator"),
    "resources": ("resources", "Resources"),
    "retry": ("retry", "Retry"),
    "secrets": ("secrets", "Secrets"),
    "slurm": ("compute", "Slurm"),
    "timeout": ("timeout", "Timeout"),
}

FLOW_KINDS = {
    "conda_base": ("packages", "CondaBase"),
    "exit_hook": ("exit_hook", "ExitHook"),
    "project": ("project", "Project"),
    "pypi_base": ("packages", "PypiBase"),
    "schedule": ("schedule", "ScheduleDecorator"),
    "trigger": ("trigger", "TriggeredBy"),
    "trigger_on_finish": ("trigger", "TriggeredOnFinish"),
}


def make(
    name: str, options: Mapping[str, Any], kinds: Mapping[str, tuple[str, str]] = KINDS
) -> Any:
    """Return the decorator of this name.

    Args:
        name: The name after the @; the module of its class is imported here.
        options: The options, by name.
        kinds: KINDS for a decorator of a step, FLOW_KINDS for one of a flow.

    Raises:
        InvalidDecorator: If the name or an option is unknown, or a value is invalid.
    """
    if name not in kinds:
        raise InvalidDecorator(
            f"There is no {'step' if kinds is KINDS else 'flow'} decorator {name!r}."
            f"{did_you_mean(name, kinds)} Known are: {', '.join(sorted(kinds))}."
        )
    module, cls = kinds[name]
    return build(getattr(import_module(f"{__package__}.{module}"), cls), options)
