"""Decorators from outside of the source: `--with name:option=value`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from aflow.errors import InvalidDecorator
from aflow.flow.decorators.registry import KINDS, make
from aflow.flow.options import read_options

if TYPE_CHECKING:
    from aflow.flow.decorators.base import StepDecorator
    from aflow.flow.definition import FlowDefinition, StepDefinition


def parse_spec(spec: str) -> Any:
    """The decorator that `name` or `name:option=value,...` describes; see `flow/options.py`.

    Raises InvalidDecorator for all that cannot be understood.
    """
    name, _, text = spec.partition(":")
    name = name.strip()
    try:
        if name not in KINDS and ("." in name or "aflow.flow.custom" in sys.modules):
            return _custom(name, read_options(text))
        return make(name, read_options(text))
    except InvalidDecorator as error:
        raise InvalidDecorator(f"--with {spec}: {error}") from None


def _custom(name: str, options: Mapping[str, Any]) -> Any:
    from aflow.flow.mutable import named  # only where --with asks for a decorator of the user's

    return named(name, [], options, {})


def attach(definition: FlowDefinition, specs: Sequence[str]) -> FlowDefinition:
    """The flow with these decorators around every step, the last outermost; raises
    InvalidDecorator.

    A step that has a decorator of the kind already keeps its own: the source wins over the
    command line, and of two specs of a kind the first wins. Mutators of the flow begin anew, so
    that they see what is attached.
    """
    decorators = [parse_spec(spec) for spec in specs]
    if not decorators:
        return definition
    before = definition.unmutated
    if before is not None or any(getattr(each, "pre_mutate", None) for each in decorators):
        from aflow.flow.mutable import mutated  # only for flows with mutators

        return mutated(before or definition, decorators)
    steps = {name: _with(step, decorators) for name, step in definition.steps.items()}
    return replace(definition, steps=steps)


def _with(step: StepDefinition, decorators: Sequence[StepDecorator]) -> StepDefinition:
    for decorator in decorators:
        if step.decorator(decorator.name) is None:
            step = replace(step, decorators=(decorator, *step.decorators))
    return step
