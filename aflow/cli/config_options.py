"""`--config NAME PATH` and `--config-value NAME JSON`: parsed before all other arguments, because
commands and their options depend on the configs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aflow._core.settings import configs_in_environment
from aflow.task.config_binding import GivenConfigs

CONFIG_OPTIONS = ("--config", "--config-value")


def given_configs(argv: Sequence[str]) -> tuple[GivenConfigs, list[str]]:
    """Return the configs that are given, and the other arguments in their order. The command line
    takes precedence over the environment. Raises a usage error for an incomplete option.

    Args:
        argv: The arguments of the command line.
    """
    given: dict[str, dict[str, Any]] = {option: {} for option in CONFIG_OPTIONS}
    rest: list[str] = []
    position = 0
    while position < len(argv):
        argument = argv[position]
        if argument not in given:
            rest.append(argument)
            position += 1
            continue
        pair = argv[position + 1 : position + 3]
        if len(pair) < 2:
            from click import UsageError  # see plain.py

            raise UsageError(f"{argument} takes two arguments: a config's name, and its value.")
        given[argument][pair[0]] = pair[1]
        position += 3
    files, values = given.values()
    named = {*files, *values}
    of_files, of_values = configs_in_environment()
    return GivenConfigs(
        {**{name: each for name, each in of_files.items() if name not in named}, **files},
        {**{name: each for name, each in of_values.items() if name not in named}, **values},
    ), rest
