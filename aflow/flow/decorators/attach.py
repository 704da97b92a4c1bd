"""Decorators from outside of the source: `--with name:option=value`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from aflow._core.records import replace
from aflow.errors import InvalidDecorator
from aflow.flow.decorators.registry import KINDS, make

if TYPE_CHECKING:
    from aflow.flow.decorators.base import StepDecorator
    from aflow.flow.definition import FlowDefinition, StepDefinition

# How `--with name:option=value,option=value` is read.


_OPTION = re.compile(r"\s*([A-Za-z_]\w*)\s*=\s*")
_END = re.compile(r"\s*(,|\Z)")
_BEGINS_JSON = ("{", "[", '"')
_JSON = json.JSONDecoder()


def read_options(text: str) -> dict[str, Any]:
    """Return the options in `option=value,option=value`, in order.

    A value is read as JSON where it is JSON, else as text; commas inside JSON lists, objects and
    strings belong to the value.

    Args:
        text: What follows the colon in `--with NAME:...`; "" means no options.

    Raises:
        InvalidDecorator: A part has no `=`, or an option is given twice.
    """
    options: dict[str, Any] = {}
    for option, value in _pairs(text):
        if option in options:
            raise InvalidDecorator(f"Option {option!r} is given twice.")
        options[option] = value
    return options


def _pairs(text: str) -> Iterator[tuple[str, Any]]:
    at = 0
    while text[at:].strip():
        found = _OPTION.match(text, at)
        if found is None:
            raise InvalidDecorator(
                f"{text[at:]!r} is not an option: write name:option=value,option=value."
            )
        value, at = _value(text, found.end())
        yield found[1], value


def _value(text: str, at: int) -> tuple[Any, int]:
    """The value that begins at `at`, and where the next option begins."""
    if text.startswith(_BEGINS_JSON, at):
        try:
            value, end = _JSON.raw_decode(text, at)
        except (ValueError, RecursionError):
            pass  # it only looks like JSON: it is read as a text below
        else:
            rest = _END.match(text, end)
            if rest is not None:
                return value, rest.end()
    end = text.find(",", at)
    end = len(text) if end < 0 else end
    raw = text[at:end].strip()
    try:
        return json.loads(raw), end + 1
    except (ValueError, RecursionError):
        return raw, end + 1


def parse_spec(spec: str) -> Any:
    """Return the decorator that `name` or `name:option=value,...` describes.

    Args:
        spec: The decorator, as `--with` has it.

    Raises:
        InvalidDecorator: The decorator is unknown, or an option cannot be read or used; the error
            quotes the text.
    """
    name, _, text = spec.partition(":")
    name = name.strip()
    try:
        if name not in KINDS and ("." in name or "aflow.flow.custom" in sys.modules):
            from aflow.flow.mutators import decorator_of  # only for decorators of the user's

            return decorator_of(name, [], read_options(text), {})
        return make(name, read_options(text))
    except InvalidDecorator as error:
        raise InvalidDecorator(f"--with {spec}: {error}") from None


def attach(definition: FlowDefinition, specs: Sequence[str]) -> FlowDefinition:
    """Return the flow with these decorators around every step, the last outermost.

    A step that has a decorator of the kind already keeps its own: the source wins over the command
    line, and of two specs of a kind the first wins. Mutators of the flow begin again, so that they
    see what is attached.

    Args:
        definition: The flow; it is not changed.
        specs: The texts of `--with`, `name` or `name:option=value,...` each.

    Raises:
        InvalidDecorator: A text cannot be understood, or a mutator refuses.
    """
    decorators = [parse_spec(spec) for spec in specs]
    if not decorators:
        return definition
    before = definition.unmutated
    if before is not None or any(getattr(each, "pre_mutate", None) for each in decorators):
        from aflow.flow.mutators import mutated  # only for flows with mutators

        return mutated(before or definition, decorators)
    steps = {name: _with(step, decorators) for name, step in definition.steps.items()}
    return replace(definition, steps=steps)


def _with(step: StepDefinition, decorators: Sequence[StepDecorator]) -> StepDefinition:
    for decorator in decorators:
        if step.decorator(decorator.decorator_name) is None:
            step = replace(step, decorators=(decorator, *step.decorators))
    return step
