"""Where the command line begins: the command `aflow`, and `MyFlow()` in a script.

aflow COMMAND flow.py[:Name] [options in any place]
aflow flow.py[:Name] [options] COMMAND [options]     the same
python flow.py [options] COMMAND [options]           the same
aflow dump|explain|logs Flow/run/step                      no file is needed
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
from aflow._core.settings import conceal_secrets, shell_asks
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

# What needs click is imported inside of functions: a plain run does without it (plain.py).

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

# What may stand between a command and the flow file. `logs show` is what `logs` does anyway.
_DEPLOY = ("create", "trigger", "list-runs", "terminate", "resume", "delete", "diff")
_SECOND_WORDS = {
    "batch": ("list", "kill"),
    "card": ("view", "get", "list", "create", "server"),
    "deploy": _DEPLOY,
    "kubernetes": ("list", "kill"),
    "logs": ("show", "scrub"),
    "package": ("info", "list", "save"),
    "step-functions": _DEPLOY,
    "tag": ("add", "remove", "replace", "list"),
}


_WORDS_OF = "--aflow-words="


class Line(NamedTuple):
    """A command line taken apart: the words that are neither command nor file keep their order,
    those ahead of the command's name apart."""

    ahead: list[str]
    command: str | None
    target: str | None
    rest: list[str]


def run_program(words: Sequence[str]) -> NoReturn:
    """Run the command `aflow` with these words, and end the program.

    Args:
        words: The words of the command line.
    """
    fill_descriptors()
    conceal_secrets()

    def body() -> object:
        if (asked := shell_asks()) is not None:
            return import_module("aflow.cli.completion").complete(asked)
        try:
            return _program(words)
        finally:
            zygote_start.drop_zygote()

    leave(guarded(body))


def run_script(flow: FlowSpec) -> None:
    """Run the command line of a script that begins one (loading.begins), and end the program.

    Args:
        flow: The instance that the script has made by calling its flow.
    """
    fill_descriptors()
    conceal_secrets()
    script = sys.argv[0]
    leave(guarded(lambda: flow_group(type(flow), script, sys.argv[1:])))


def flow_group(flow: type[FlowSpec] | None, script: str, words: Sequence[str]) -> object:
    """Run a command of a flow: `words` are those behind its file.

    Args:
        flow: The class of the flow; None where the file does not define one.
        script: The path of the flow's file.
        words: The words behind the flow's file.
    """
    configs, rest = given_configs(words)
    try:
        defined = Defined(flow, configs)
        call = None if flow is None else plain.understood(flow, script, defined, words, rest)
        if call is not None:
            return plain.run(*call)
        from aflow.cli.flow_commands import FlowGroup

        group = FlowGroup(flow, script, defined, tuple(words))
        return group.main(rest, prog_name=os.path.basename(script), standalone_mode=False)
    finally:
        zygote_start.drop_zygote()


def _program(words: Sequence[str]) -> object:
    words = _with_given(words)
    if words and words[0] in EARLIER:
        words = [EARLIER[words[0]], *words[1:]]
    if words and words[0] in OTHERS:
        rest = ["--help" if word == "-h" else word for word in words[1:]]
        return other_command(words[0]).main(
            rest, prog_name=f"aflow {words[0]}", standalone_mode=False
        )
    if "--compat" in words:
        from aflow.compat.metaflow import install

        install()
        words = [word for word in words if word != "--compat"]
    line = take_apart(words)
    if line.target is not None:
        command = [] if line.command is None else [line.command]
        rest = [*line.ahead, *command, *line.rest]
        target = line.target
        if zygote_start.STARTING & {*rest}:
            zygote_start.have_zygote(fork=True)  # while there is nothing of the user's here yet
        gc.freeze()  # what is ours so far need not be looked at when the program ends (ending.py)
        flow = loading.run_file(target, rest)
        return flow_group(flow, target, rest)
    if line.command in NEED_NO_FILE:
        return flow_group(None, "aflow", [*line.ahead, line.command, *line.rest])
    if line.command == "version" or "--version" in words:
        print(f"aflow {__version__}")
        return 0
    wants_help = bool({"--help", "-h"} & set(words))
    if line.command in (None, "help") or (wants_help and line.command not in COMMANDS):
        print(_help())
        return 0
    if wants_help:
        return flow_group(None, "aflow", [line.command, *line.rest])
    if line.command in COMMANDS:
        raise _usage_error(f"No flow is given. Write: aflow {line.command} flow.py")
    raise _usage_error(f"There is no command {line.command!r}. See: aflow help")


def _usage_error(text: str) -> click.UsageError:
    import click

    return click.UsageError(text)


def other_command(name: str) -> click.Command:
    """Return the command of OTHERS with this name, made when it is asked for.

    Args:
        name: The name of the command; KeyError for any other.
    """
    made: click.Command = imported(OTHERS[name][1])()
    return made


def _with_given(words: Sequence[str]) -> Sequence[str]:
    """The words, with those of a file (a JSON list) in the place of `--aflow-words=FILE`: so a
    server starts runs, since every user of a machine reads command lines in its list of
    processes."""
    at = next((n for n, word in enumerate(words) if word.startswith(_WORDS_OF)), None)
    if at is None:
        return words
    import json

    try:
        with open(words[at].removeprefix(_WORDS_OF), "rb") as file:
            given = json.load(file)
    except (OSError, ValueError) as error:
        raise _usage_error(f"{words[at]}: words cannot be read there ({error}).") from error
    if not isinstance(given, list) or not all(isinstance(each, str) for each in given):
        raise _usage_error(f"{words[at]}: there is no list of words.")
    return [*words[:at], *given, *words[at + 1 :]]


def _help() -> str:
    others = {name: text for name, (text, _) in OTHERS.items()}
    of_none = {each: COMMANDS[each] for each in ("version", "help")}
    of_flows = {name: text for name, text in COMMANDS.items() if name not in of_none}
    width = max(map(len, (*of_flows, *others)))

    def listed(commands: Mapping[str, str]) -> str:
        return "\n".join(f"  {name:<{width}}  {text}" for name, text in commands.items())

    return _HELP.format(commands=listed(of_flows), others=listed(others | of_none))


def take_apart(words: Sequence[str]) -> Line:
    """Find the command and the flow file among the arguments.

    Args:
        words: The words of the command line.

    Returns:
        The words before the command, the command, the flow file, and all other words.
    """
    ahead: list[str] = []
    rest: list[str] = []
    command = target = None
    position = 0
    while position < len(words):
        word = words[position]
        if word.startswith("-"):
            taken = 3 if word in CONFIG_OPTIONS else 1 + _takes_next(words, position)
            (rest if command else ahead).extend(words[position : position + taken])
            position += taken
            continue
        position += 1
        if loading.is_target(word):
            target = word
            break
        if word in _SECOND_WORDS.get(command or "", ()):
            rest.append(word)
            continue
        if command is not None:
            rest.append(word)  # the argument of a command that needs no file
            break
        command = word
    tail = list(words[position:])
    if command is None and target is not None:
        return Line([], None, target, [*ahead, *tail])
    return Line(ahead, command, target, [*rest, *tail])


def _takes_next(words: Sequence[str], position: int) -> bool:
    """Whether the option here has the next word as its value. One that is not known is a
    parameter of the flow, which has a value."""
    option = words[position]
    if "=" in option or option in _flags() or position + 1 == len(words):
        return False
    return option in _valued() or not loading.is_target(words[position + 1])


def _flags() -> set[str]:
    from aflow.cli.options import run_options, top_options

    known = [each for each in (*top_options(), *run_options()) if each.is_flag]
    names = {name for each in known for name in (*each.opts, *each.secondary_opts)}
    return names | {"--help", "-h", "--version", "--production"}


def _valued() -> set[str]:
    from aflow.cli.options import run_options, top_options

    known = [each for each in (*top_options(), *run_options()) if not each.is_flag]
    return {name for each in known for name in each.opts}
