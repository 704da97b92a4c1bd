"""Which step decorators there are, by name. Each is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from aflow.errors import InvalidDecorator
from aflow.flow.decorators.base import StepDecorator, build
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


def kind_of(name: str) -> type[StepDecorator]:
    """Return the class of the decorator of this name.

    Args:
        name: The name as it is written behind the @; the module of its class is imported here.

    Raises:
        InvalidDecorator: There is none; the error suggests the nearest name.
    """
    if name not in KINDS:
        raise InvalidDecorator(
            f"There is no step decorator {name!r}.{did_you_mean(name, KINDS)} "
            f"Known are: {', '.join(sorted(KINDS))}."
        )
    module, cls = KINDS[name]
    kind: type[StepDecorator] = getattr(import_module(f"{__package__}.{module}"), cls)
    return kind


def make(name: str, options: Mapping[str, Any]) -> StepDecorator:
    """Return the decorator of this name.

    Args:
        name: The name as it is written behind the @.
        options: The options, by name.

    Raises:
        InvalidDecorator: For an unknown name, an unknown option or a value that cannot be used.
    """
    return build(kind_of(name), options)
