"""Bind configs to a flow: read from files, given or by default; then apply its mutators.

Every process that runs a flow derives the same definition from the values of the configs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any

from aflow._core.records import NamedTuple, replace
from aflow._core.settings import Settings, expanded
from aflow.errors import InvalidConfig
from aflow.flow.configs import Config, ConfigValue, Delayed, evaluated, names_of, value_of
from aflow.flow.parameters import ParameterContext
from aflow.flow.spec import define

if TYPE_CHECKING:
    from aflow.flow.definition import FlowDefinition
    from aflow.flow.graph import Node
    from aflow.flow.parameters import Parameter
    from aflow.flow.spec import FlowSpec


class GivenConfigs(NamedTuple):
    """The configs that were given, by name.

    `files` are paths. `values` are texts to be parsed, or values that already are.
    """

    files: Mapping[str, str] = {}
    values: Mapping[str, Any] = {}


def configured(flow: type[FlowSpec], given: GivenConfigs | None = None) -> FlowDefinition:
    """Return the definition of the flow with its configs, as its mutators have changed it.

    Args:
        flow: The class of the flow.
        given: The configs that the command line or the caller has given; None for none.

    Raises:
        InvalidConfig: If a config is unknown, missing, or cannot be parsed.
        InvalidDecorator: If a mutator has added an invalid decorator.
    """
    definition = define(flow)
    given = given or GivenConfigs()
    unknown = {*given.files, *given.values} - {each.name for each in definition.configs.values()}
    if unknown:
        known = ", ".join(each.name for each in definition.configs.values()) or "none"
        raise InvalidConfig(
            f"Flow {definition.name} has no config {min(unknown)!r}; its configs are: {known}."
        )
    if not definition.is_late:
        return definition
    values: dict[str, Any] = {}
    for attribute, config in definition.configs.items():
        context = partial(_context, definition, dict(values))
        values[attribute] = _value(config, given, context)
    return with_values(definition, values)


def with_values(definition: FlowDefinition, values: Mapping[str, Any]) -> FlowDefinition:
    """Return the flow with these values of its configs, as its mutators have changed it.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        values: The values, by attribute.

    Raises:
        InvalidConfig: If an expression of configs cannot be evaluated.
        InvalidDecorator: If a mutator has added an invalid decorator.
    """
    from aflow.flow.mutators import mutated  # few flows have mutators

    configs = names_of(definition.configs, values)
    graph = definition.graph
    nodes = {name: _with_cases(node, values) for name, node in graph.nodes.items()}
    declared = definition.parameters.items()
    parameters = {name: _with_default(each, configs) for name, each in declared}
    return mutated(
        replace(
            definition,
            config_values=values,
            constants={**definition.constants, **values},
            parameters=parameters,
            graph=replace(graph, nodes=nodes),
        )
    )


# ------------------------------------------------------------ values


Context = Callable[[str], ParameterContext]


def _context(definition: FlowDefinition, values: Mapping[str, Any], name: str) -> ParameterContext:
    """Return the argument of a default that is a function, with the configs declared before it."""
    settings = Settings.load()
    known = {definition.configs[each].name: value for each, value in values.items()}
    return ParameterContext(
        flow_name=definition.name,
        user_name=settings.user,
        parameter_name=name,
        logger=print,
        ds_type=settings.datastore,
        configs=ConfigValue(known),
    )


def _value(config: Config, given: GivenConfigs, context: Context) -> Any:
    name = config.name
    if name in given.values:
        if name in given.files:
            raise InvalidConfig(f"Config {name!r} was given both a file and a value.")
        return value_of(config, given.values[name], "as it was given")
    if name in given.files:
        return value_of(config, _text(config, given.files[name]), f"in {given.files[name]}")
    default = _called(config, config._default, context)
    if not isinstance(default, str | os.PathLike | None):
        raise InvalidConfig(
            f"The default of config {name!r} is {type(default).__name__}: it is the path of a "
            "file; a value is given with default_value."
        )
    if default is not None and os.path.isfile(expanded(os.fspath(default))):
        return value_of(config, _text(config, default), f"in {default}")
    value = _called(config, config._default_value, context)
    if value is None and default is not None:
        raise InvalidConfig(
            f"The file {default} of config {name!r} is not there: write it, or give another with "
            f"--config {name} PATH or --config-value {name} JSON."
        )
    if value is None and config._required:
        raise InvalidConfig(
            f"Config {name!r} is required: give it with --config {name} PATH or --config-value "
            f"{name} JSON."
        )
    return value_of(config, value, "by default")


def _text(config: Config, path: str | os.PathLike[str]) -> str:
    try:
        return expanded(os.fspath(path)).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise InvalidConfig(
            f"The file {path} of config {config.name!r} cannot be read: {reason}."
        ) from error


def _called(config: Config, default: Any, context: Context) -> Any:
    """Return the default, or the result of calling it if it is a function."""
    if not callable(default):
        return default
    try:
        return default(context(config.name))
    except Exception as error:
        raise InvalidConfig(
            f"The default of config {config.name!r} is a function, and it failed: "
            f"{type(error).__name__}: {error}"
        ) from error


# ------------------------------------------------------------ parameters and switches


def _with_default(parameter: Parameter, configs: Mapping[str, Any]) -> Parameter:
    """Return the parameter; evaluate its default if that is an expression of configs."""
    if not isinstance(parameter.default, Delayed | Config):
        return parameter
    made = copy(parameter)
    value = evaluated(parameter.default, configs)
    if parameter.infers_type:
        made.type = parameter.type_of(value)
    made.default = None if value is None else made.convert(value)
    return made


def _with_cases(node: Node, values: Mapping[str, Any]) -> Node:
    """Return the step; evaluate cases of its switch that are config values (`self.config.key`)."""

    def case(text: str) -> str:
        if not text.startswith("self.") or text[5:].split(".")[0].split("[")[0] not in values:
            return text
        expression = Delayed(text, lambda each: eval(text[5:], {}, dict(each)))  # noqa: S307 -- text of the flow's own source
        return str(evaluated(expression, values))

    if not any(text.startswith("self.") for text, _ in node.cases):
        return node
    return replace(node, cases=tuple((case(text), step) for text, step in node.cases))
