"""The entry points of the command line: the command `aflow`, and `MyFlow()` in a script.

aflow COMMAND flow.py[:Name] [options at any position]
aflow flow.py[:Name] [options] COMMAND [options]     the same
python flow.py [options] COMMAND [options]           the same
aflow dump|explain|logs Flow/run/step                      needs no file
aflow runs [Flow] [options]
aflow status | version | help
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

from aflow._core.process import fill_descriptors
from aflow._core.records import NamedTuple
from aflow._core.settings import conceal_secrets, environment_value
from aflow._core.version import __version__
from aflow.cli import loading, plain
from aflow.cli.commands import COMMANDS, EARLIER, NEED_NO_FILE, OTHERS, imported
from aflow.cli.config_options import CONFIG_OPTIONS, given_configs
from aflow.cli.errors import guarded, leave
from aflow.cli.session import Defined
from aflow.executors.local import zygote_start

if TYPE_CHECKING:
    import click

    from aflow.flow.spec import FlowSpec

# Modules that need click are imported inside functions: a plain run does not need it (plain.py).

_HELP = f"""\
aflow {__version__}: run flows of steps, and keep all of their artifacts.

Usage: aflow COMMAND flow.py[:Name] [OPTIONS]

Commands for a flow (aflow COMMAND flow.py --help shows the options):
{{commands}}

Other commands:
{{others}}

Examples:
  aflow run flow.py --alpha 0.5 --max-workers 4
  aflow run flow.py --help              all options, and the parameters of the flow
  aflow run flow.py --with retry        retry every step
  aflow run --compat flow.py            let `import metaflow` import aflow
  aflow logs MyFlow/1234/start          the output of a step
  python flow.py run                    the same as: aflow run flow.py
"""

# Subcommands, which may be between a command and the flow file. `logs show` is the same as `logs`.
_DEPLOY = ("create", "trigger", "list-runs", "terminate", "resume", "delete", "diff")
_SUBCOMMANDS = {
    "batch": ("list", "kill"),
    "card": ("view", "get", "list", "create", "server"),
    "deploy": _DEPLOY,
    "kubernetes": ("list", "kill"),
    "logs": ("show", "scrub"),
    "package": ("info", "list", "save"),
    "step-functions": _DEPLOY,
    "tag": ("add", "remove", "replace", "list"),
}


_OTHER_FLAGS = ("--help", "-h", "--version", "--production")  # in addition to those of `run`
_ARGV_FILE = "--aflow-argv="


class Line(NamedTuple):
    """A parsed command line. Arguments that are neither the command nor the file keep their order;
    `ahead` are those before the command's name."""

    ahead: list[str]
    command: str | None
    target: str | None
    rest: list[str]


def run_program(argv: Sequence[str]) -> NoReturn:
    """Run the command `aflow` with these arguments, and exit.

    Args:
        argv: The arguments of the command line.
    """
    fill_descriptors()
    conceal_secrets()

    def body() -> object:
        # Set by a shell that completes a command line (click's protocol).
        if (asked := environment_value("_AFLOW_COMPLETE")) is not None:
            return import_module("aflow.cli.completion").complete(asked)
        try:
            return _program(argv)
        finally:
            zygote_start.drop_zygote()

    leave(guarded(body))


def run_script(flow: FlowSpec) -> None:
    """Run the command line of a script (see loading.begins), and exit.

    Args:
        flow: The instance that the script has created by calling its flow class.
    """
    fill_descriptors()
    conceal_secrets()
    script = sys.argv[0]
    leave(guarded(lambda: flow_group(type(flow), script, sys.argv[1:])))


def flow_group(flow: type[FlowSpec] | None, script: str, argv: Sequence[str]) -> object:
    """Run a command of a flow, and return its result.

    Args:
        flow: The class of the flow; None for a command without a flow file.
        script: The path of the flow's file.
        argv: The arguments after the flow's file.
    """
    configs, rest = given_configs(argv)
    try:
        defined = Defined(flow, configs)
        call = None if flow is None else plain.understood(flow, script, defined, argv, rest)
        if call is not None:
            return plain.run(*call)
        from aflow.cli.flow_commands import FlowGroup

        group = FlowGroup(flow, script, defined, tuple(argv))
        return group.main(rest, prog_name=os.path.basename(script), standalone_mode=False)
    finally:
        zygote_start.drop_zygote()


def _program(argv: Sequence[str]) -> object:
    argv = _with_given(argv)
    if argv and argv[0] in EARLIER:
        argv = [EARLIER[argv[0]], *argv[1:]]
    if argv and argv[0] in OTHERS:
        rest = ["--help" if argument == "-h" else argument for argument in argv[1:]]
        return other_command(argv[0]).main(
            rest, prog_name=f"aflow {argv[0]}", standalone_mode=False
        )
    if "--compat" in argv:
        from aflow.compat.metaflow import install

        install()
        argv = [argument for argument in argv if argument != "--compat"]
    line = take_apart(argv)
    if line.target is not None:
        command = [] if line.command is None else [line.command]
        rest = [*line.ahead, *command, *line.rest]
        target = line.target
        if zygote_start.STARTING & {*rest}:
            zygote_start.have_zygote(fork=True)  # before any code of the user is loaded
        gc.freeze()  # objects of aflow need not be traversed when the program exits (ending.py)
        flow = loading.run_file(target, rest)
        return flow_group(flow, target, rest)
    if line.command in NEED_NO_FILE:
        return flow_group(None, "aflow", [*line.ahead, line.command, *line.rest])
    if line.command == "version" or "--version" in argv:
        print(f"aflow {__version__}")
        return 0
    wants_help = bool({"--help", "-h"} & set(argv))
    if line.command in (None, "help") or (wants_help and line.command not in COMMANDS):
        print(_help())
        return 0
    if wants_help:
        return flow_group(None, "aflow", [line.command, *line.rest])
    if line.command in COMMANDS:
        words, rest = [line.command], line.rest
        if rest and rest[0] in _SUBCOMMANDS.get(line.command, ()):
            words, rest = [line.command, rest[0]], rest[1:]
        named = rest[0] if rest and not rest[0].startswith("-") else None
        missing = "No flow is given" if named is None else f"There is no flow file {named!r}"
        raise _usage_error(f"{missing}. Write: aflow {' '.join(words)} flow.py")
    raise _usage_error(f"There is no command {line.command!r}. See: aflow help")


def _usage_error(text: str) -> click.UsageError:
    import click

    return click.UsageError(text)


def other_command(name: str) -> click.Command:
    """Return the command of OTHERS with this name. Its module is imported by this call.

    Args:
        name: The name of the command; raises KeyError for any other.
    """
    made: click.Command = imported(OTHERS[name][1])()
    return made


def _with_given(argv: Sequence[str]) -> Sequence[str]:
    """Return the arguments, with those of a file (a JSON list) in place of `--aflow-argv=FILE`. A
    server starts runs in this way, because all users of a machine can read command lines in the
    list of processes."""
    at = next((n for n, argument in enumerate(argv) if argument.startswith(_ARGV_FILE)), None)
    if at is None:
        return argv
    import json

    try:
        with open(argv[at].removeprefix(_ARGV_FILE), "rb") as file:
            given = json.load(file)
    except (OSError, ValueError) as error:
        raise _usage_error(f"{argv[at]}: arguments cannot be read there ({error}).") from error
    if not isinstance(given, list) or not all(isinstance(each, str) for each in given):
        raise _usage_error(f"{argv[at]}: there is no list of arguments.")
    return [*argv[:at], *given, *argv[at + 1 :]]


def _help() -> str:
    others = {name: text for name, (text, _) in OTHERS.items()}
    of_none = {each: COMMANDS[each] for each in ("version", "help")}
    of_flows = {name: text for name, text in COMMANDS.items() if name not in of_none}
    width = max(map(len, (*of_flows, *others)))

    def listed(commands: Mapping[str, str]) -> str:
        return "\n".join(f"  {name:<{width}}  {text}" for name, text in commands.items())

    return _HELP.format(commands=listed(of_flows), others=listed(others | of_none))


def take_apart(argv: Sequence[str]) -> Line:
    """Return the parts of a command line: the command, the flow file, and all other arguments.

    Args:
        argv: The arguments of the command line.
    """
    ahead: list[str] = []
    rest: list[str] = []
    command = target = None
    position = 0
    while position < len(argv):
        argument = argv[position]
        if argument.startswith("-"):
            taken = 3 if argument in CONFIG_OPTIONS else 1 + _takes_next(argv, position)
            (rest if command else ahead).extend(argv[position : position + taken])
            position += taken
            continue
        position += 1
        if argument in _SUBCOMMANDS.get(command or "", ()):
            rest.append(argument)
            continue
        if loading.is_target(argument) or _is_file(command, argument):
            target = argument
            break
        if command is not None:
            rest.append(argument)  # an argument of a command that needs no file
            break
        command = argument
    tail = list(argv[position:])
    if command is None and target is not None:
        return Line([], None, target, [*ahead, *tail])
    return Line(ahead, command, target, [*rest, *tail])


def _is_file(command: str | None, argument: str) -> bool:
    """Return whether an argument is a flow file without the suffix `.py`, as in `aflow run
    flow`."""
    if command is None:
        return argument not in COMMANDS and loading.is_file(argument)
    may_be_pathspec = "/" in argument and not argument.startswith((".", "/"))
    if may_be_pathspec and command in NEED_NO_FILE:
        return False
    return command in COMMANDS and loading.is_file(argument)


def _takes_next(argv: Sequence[str], position: int) -> bool:
    """Return whether the option at this position takes the next argument as its value. An unknown
    option is assumed to be a parameter of the flow, which has a value."""
    option = argv[position]
    if "=" in option or option in _OTHER_FLAGS or position + 1 == len(argv):
        return False
    from aflow.cli.options import run_options, top_options

    for each in (*top_options(), *run_options()):
        if option in (*each.opts, *each.secondary_opts):
            return not each.is_flag
    return not loading.is_target(argv[position + 1])
