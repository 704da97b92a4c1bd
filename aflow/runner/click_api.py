"""The options of the command line as objects: Metaflow's `click_api`, which tests inspect."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import click

from aflow.cli.options import run_options, top_options


class _PythonTypes(dict[type[Any], type[Any]]):
    """Maps types of click to types of Python; unknown types map to str."""

    def __missing__(self, key: type[Any]) -> type[Any]:
        known = (found for kind, found in self.items() if issubclass(key, kind))
        return next(known, str)


click_to_python_types: Mapping[type[Any], type[Any]] = _PythonTypes(
    {
        type(click.STRING): str,
        type(click.INT): int,
        click.IntRange: int,
        type(click.FLOAT): float,
        click.FloatRange: float,
        type(click.BOOL): bool,
        click.Tuple: tuple,
    }
)

# The options before a command, and those of `run`.
start = click.Group("start", params=[*top_options()])
run = click.Command("run", params=[*run_options()])


def extract_all_params(
    cmd_obj: click.Command,
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the parameters of a command: their signatures, its arguments, its options, the types
    and the defaults, each by name.

    Args:
        cmd_obj: The click command.
    """
    named = {each.name or "": each for each in cmd_obj.params}
    arguments = {name: each for name, each in named.items() if isinstance(each, click.Argument)}
    options = {name: each for name, each in named.items() if name not in arguments}
    types = {name: click_to_python_types[type(each.type)] for name, each in named.items()}
    defaults = {name: each.default for name, each in named.items()}
    signatures = {  # arguments come first
        name: inspect.Parameter(name, kind, default=each.default)
        for kind, some in (
            (inspect.Parameter.POSITIONAL_ONLY, arguments),
            (inspect.Parameter.KEYWORD_ONLY, options),
        )
        for name, each in some.items()
    }
    return signatures, arguments, options, types, defaults
