"""Decorators from outside of the source: `--with name:option=value`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from aflow.errors import InvalidDecorator
from aflow.flow.decorators.registry import make
from aflow.flow.options import read_options

if TYPE_CHECKING:
    from aflow.flow.decorators.base import StepDecorator
    from aflow.flow.definition import FlowDefinition, StepDefinition


def parse_spec(spec: str) -> StepDecorator:
    """The decorator that `name` or `name:option=value,...` describes; see `flow/options.py`.

    Raises InvalidDecorator for all that cannot be understood.
    """
    name, _, text = spec.partition(":")
    try:
        return make(name.strip(), read_options(text))
    except InvalidDecorator as error:
        raise InvalidDecorator(f"--with {spec}: {error}") from None


def attach(definition: FlowDefinition, specs: Sequence[str]) -> FlowDefinition:
    """The flow with these decorators on every step; raises InvalidDecorator.

    A step that has a decorator of the kind already keeps its own: the source wins over the
    command line, and of two specs of a kind the first wins.
    """
    decorators = [parse_spec(spec) for spec in specs]
    steps = {name: _with(step, decorators) for name, step in definition.steps.items()}
    return replace(definition, steps=steps)


def _with(step: StepDefinition, decorators: Sequence[StepDecorator]) -> StepDefinition:
    for decorator in decorators:
        if step.decorator(decorator.name) is None:
            step = replace(step, decorators=(*step.decorators, decorator))
    return step
