"""Decorators that are not in the source: `--with name:option=value`."""

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
    from aflow.flow.definition import FlowDefinition

# The parser of `--with name:option=value,option=value`.


_OPTION = re.compile(r"\s*([A-Za-z_]\w*)\s*=\s*")
_END = re.compile(r"\s*(,|\Z)")
_BEGINS_JSON = ("{", "[", '"')
_JSON = json.JSONDecoder()


def read_options(text: str) -> dict[str, Any]:
    """Return the options in `option=value,option=value`, in order.

    A value that is valid JSON is parsed as JSON, any other value is text. Commas inside JSON lists,
    objects and strings do not separate options.

    Args:
        text: The text after the colon in `--with NAME:...`; "" means no options.

    Raises:
        InvalidDecorator: If a part has no `=`, or an option is given twice.
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
    """Return the value that starts at `at`, and the position of the next option."""
    if text.startswith(_BEGINS_JSON, at):
        try:
            value, end = _JSON.raw_decode(text, at)
        except (ValueError, RecursionError):
            pass  # not JSON: it is read as text below
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
    """Return the decorator for `name` or `name:option=value,...`.

    Args:
        spec: The value of `--with`.

    Raises:
        InvalidDecorator: If the decorator is unknown, or an option is invalid; the error quotes the
            text.
    """
    name, _, text = spec.partition(":")
    name = name.strip()
    try:
        if name not in KINDS and ("." in name or "aflow.flow.custom" in sys.modules):
            from aflow.flow.mutators import decorator_of  # only needed for custom decorators

            return decorator_of(name, [], read_options(text), {})
        return make(name, read_options(text))
    except InvalidDecorator as error:
        raise InvalidDecorator(f"--with {spec}: {error}") from None


def attach(definition: FlowDefinition, specs: Sequence[str]) -> FlowDefinition:
    """Return the flow with these decorators added to every step, the last one outermost.

    A step keeps a decorator of the same kind: the source takes precedence over the command line,
    and the first of two specs of a kind over the second. The mutators of the flow run again, so
    that they see the added decorators.

    Args:
        definition: The flow; it is not changed.
        specs: The values of `--with`: `name` or `name:option=value,...`.

    Raises:
        InvalidDecorator: If a spec is invalid, or a mutator fails.
    """
    decorators = [parse_spec(spec) for spec in specs]
    if not decorators:
        return definition
    before = definition.unmutated
    if before is not None or any(getattr(each, "pre_mutate", None) for each in decorators):
        from aflow.flow.mutators import mutated  # only needed for flows with mutators

        return mutated(before or definition, decorators)
    steps = {
        name: replace(step, decorators=added(step.decorators, decorators))
        for name, step in definition.steps.items()
    }
    return replace(definition, steps=steps)


def added(
    there: Sequence[StepDecorator], decorators: Sequence[StepDecorator]
) -> tuple[StepDecorator, ...]:
    """Return the decorators of a step after adding others, the last one outermost.

    Args:
        there: The decorators of the step, outermost first.
        decorators: Decorators to add; those of a kind that the step has are left out.
    """
    for decorator in decorators:
        if all(each.decorator_name != decorator.decorator_name for each in there):
            there = (decorator, *there)
    return tuple(there)
