"""Plain runs: those whose arguments can be parsed without click, whose import takes as long as that
of the state machine, the driver and the executor together.

A run is plain if the arguments are `run`, some flags and the flow's own parameters, and no
environment variable sets an option. All other command lines, including all invalid ones, are left
to click (flow_commands.py), which knows every option, every error and the help.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aflow._core.deferred import import_asyncio
from aflow._core.settings import has_variables
from aflow.cli.session import TOP_NAMES, Defined, Session, environment_names
from aflow.errors import InvalidParameter
from aflow.flow.decorators.base import flow_decorators_of
from aflow.flow.parameters import ConvertedValue

if TYPE_CHECKING:
    from aflow.flow.parameters import Parameter
    from aflow.flow.spec import FlowSpec

_FLAGS = {
    "--pylint": ("pylint", True),
    "--no-pylint": ("pylint", False),
    "--quiet": ("quiet", True),
    "--not-quiet": ("quiet", False),
}
_ADDING_OPTIONS = frozenset({"project", "trigger_on_finish"})  # decorators that add options
_VARIABLES = frozenset(
    variable for name in (*TOP_NAMES, "mode") for variable in environment_names(name.rstrip("_"))
)
_OF_RUNS = tuple(environment_names("", "run_"))  # prefixes of variables of the options of `run`


def understood(
    flow: type[FlowSpec],
    script: str,
    defined: Defined,
    argv: Sequence[str],
    rest: Sequence[str],
) -> tuple[Session, dict[str, Any]] | None:
    """Return the arguments of `run` if the arguments are those of a plain run; None otherwise.

    Raises all errors of the definition of the flow.

    Args:
        flow: The class of the flow.
        script: The path of the flow's file.
        defined: The definition of the flow.
        argv: The arguments of the command line.
        rest: The arguments without those for configs.
    """
    found = _sorted(rest)
    asks = f"_{os.path.basename(script)}_COMPLETE".replace("-", "_").replace(".", "_").upper()
    if found is None or has_variables(_VARIABLES | {asks}, _OF_RUNS):
        return None
    if _ADDING_OPTIONS & {each.decorator_name for each in flow_decorators_of(flow)}:
        return None
    flags, given = found
    values = _converted(defined().parameters, given)
    if values is None:
        return None
    top = {**dict.fromkeys(TOP_NAMES), "with_": (), "trigger": (), **flags}
    return Session(flow, script, top, defined, tuple(argv)), values


def run(session: Session, given: Mapping[str, Any]) -> int:
    """Run the flow, and return the exit code."""
    import_asyncio()
    from aflow.cli import run as command

    try:
        return command.run(session, given)
    except (EOFError, KeyboardInterrupt) as error:  # as click does
        print(file=sys.stderr)
        raise KeyboardInterrupt from error


def _sorted(argv: Sequence[str]) -> tuple[dict[str, bool], dict[str, str]] | None:
    """Return flags, and options with their values; None if there are other arguments."""
    flags: dict[str, bool] = {}
    given: dict[str, str] = {}
    is_run = False
    rest = iter(argv)
    for argument in rest:
        if argument in _FLAGS:
            name, value = _FLAGS[argument]
            if name in flags:
                return None
            flags[name] = value
        elif not is_run and argument == "run":
            is_run = True
        elif is_run and argument.startswith("--"):
            option, separator, text = argument[2:].partition("=")
            if not separator:
                text = next(rest, "-")
            # A text that starts with - may be an option, so that the value is missing: click
            # decides.
            if option in given or text.startswith("-"):
                return None
            given[option] = text
        else:
            return None
    return (flags, given) if is_run else None


def _converted(
    declared: Mapping[str, Parameter], given: Mapping[str, str]
) -> dict[str, Any] | None:
    """Return the values of the parameters, by attribute, None for those that were not given; None
    in place of the dict if click is needed to convert them."""
    values: dict[str, Any] = {}
    left = dict(given)
    names: set[str] = set()
    for attribute, parameter in declared.items():
        name = parameter.name.replace("_", "-")
        is_like_another = f"--{name}" in _FLAGS or name in names
        if parameter.click_options or parameter.nargs > 1 or is_like_another:
            return None
        names.add(name)
        text = left.pop(parameter.name, None)
        try:
            values[attribute] = (
                None if text is None else ConvertedValue(parameter.convert(text), text)
            )
        except InvalidParameter:
            return None
    return None if left else values
