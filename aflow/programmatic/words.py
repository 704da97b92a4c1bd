"""From keyword arguments to the words of a command line, checked against the command's options."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from aflow.cli import loading
from aflow.cli.flow_commands import FlowGroup
from aflow.cli.options import Option, ParameterType
from aflow.errors import InvalidInput
from aflow.flow.names import did_you_mean, shown

if TYPE_CHECKING:
    from aflow.flow.spec import FlowSpec

# Names of old for options that have another one here.
_ALIASES = {"decospecs": "with"}
# Linux takes no word above 128 kB, and 2 MB in all, the environment included.
_LONGEST_WORD = 100_000
_LONGEST_LINE = 1_000_000


class Words(NamedTuple):
    """A command line, and values of parameters that it cannot hold, which go into a file."""

    words: list[str]
    values: dict[str, Any]


class CommandLine:
    """The command line of a flow file. The file is looked into when there is something to check."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._flows: Sequence[type[FlowSpec]] | None = None

    def words(
        self,
        command: str,
        arguments: Sequence[str],
        top: Mapping[str, Any],
        given: Mapping[str, Any],
    ) -> Words:
        """`[TOP] COMMAND [GIVEN] ARGUMENTS`; a command may have two words. Raises FlowFileError for
        a file that holds no flow, InvalidInput for an option that is not there, or a value that
        cannot be written."""
        ahead = self._options("", _without_none(top))
        behind = self._options(command, _without_none(given))
        words = [*ahead.words, *command.split(), *behind.words, *arguments]
        for each in words:
            if len(os.fsencode(each)) > _LONGEST_WORD:
                name = each.partition("=")[0]
                raise InvalidInput(f"The value of {name[:80]} is too long for a command line.")
        return Words(words, behind.values)

    def _options(self, command: str, given: Mapping[str, Any]) -> Words:
        known = self._known(command) if given else {}
        words: list[str] = []
        values: dict[str, Any] = {}
        length = 0
        for name, value in given.items():
            plain = _plain(name)
            if plain not in known:
                where = f"The command {command}" if command else "The command line"
                raise InvalidInput(
                    f"{where} of {self._file.name} has no option {name!r}."
                    f"{did_you_mean(plain, known)} It has: {', '.join(sorted(known))}."
                )
            option = known[plain]
            of_flow = None
            if isinstance(option, Option) and option.parameter is not None:
                of_flow = option.parameter
                if option.count or (option.is_flag and value is False):
                    values[of_flow.name] = value  # --flag has no form for False
                    continue
            written = _written(option, name, value)
            size = sum(len(os.fsencode(each)) for each in written)
            length += size
            no_words = size > _LONGEST_WORD or length > _LONGEST_LINE or "\0" in "".join(written)
            if of_flow is not None and no_words:
                values[of_flow.name] = of_flow.plain(of_flow.convert(value))
            else:
                words += written
        return Words(words, values)

    def _known(self, command: str) -> dict[str, click.Parameter]:
        """The options and arguments of a command, by all the names that they go by."""
        known: dict[str, click.Parameter] = {}
        for flow in self._candidates():
            group = FlowGroup(flow, self._file.name)
            found: click.Command | None = group
            for word in command.split():  # `step-functions create`, say
                assert isinstance(found, click.Group), "only commands that there are, are asked for"
                found = found.get_command(click.Context(found), word)
            assert found is not None, "only commands that there are, are asked for"
            for each in found.params:
                known |= dict.fromkeys(_names(each), each)
        return known

    def _candidates(self) -> Sequence[type[FlowSpec]]:
        if self._flows is None:
            self._flows = loading.look_into(self._file)
        return self._flows


def _without_none(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}


def _names(parameter: click.Parameter) -> Iterator[str]:
    long = [_plain(each) for each in parameter.opts]
    yield from long
    if parameter.multiple:  # `tags` is the name that programs know for --tag
        yield from (f"{each}s" for each in long)
    yield from (old for old, new in _ALIASES.items() if new in long)


def _plain(name: str) -> str:
    return name.lstrip("-").replace("-", "_").lower().strip("_")


# ------------------------------------------------------------ values


def _written(parameter: click.Parameter, name: str, value: Any) -> list[str]:
    """The words that give the option this value."""
    if isinstance(parameter, click.Argument):
        return [_text(name, value)]
    if isinstance(parameter, click.Option) and parameter.is_flag:
        return _flag(parameter, name, value)
    option = parameter.opts[0]
    several = parameter.multiple and isinstance(value, list | tuple)
    values = value if several else [value]
    if parameter.nargs > 1:
        return [word for each in values for word in (option, *(_text(name, one) for one in each))]
    return [f"{option}={_text(name, _joined(parameter, each))}" for each in values]


def _flag(option: click.Option, name: str, value: Any) -> list[str]:
    if isinstance(option, Option) and option.parameter is not None and value == option.flag_value:
        return option.opts[:1]
    if not isinstance(value, bool):
        raise InvalidInput(f"The option {name!r} is True or False, not {shown(value)}.")
    return option.opts[:1] if value else option.secondary_opts[:1]


def _joined(parameter: click.Parameter, value: Any) -> Any:
    """A list as the text that a parameter with a separator takes."""
    if not isinstance(parameter.type, ParameterType) or not isinstance(value, list | tuple):
        return value
    separator = parameter.type.parameter.separator
    if separator is None:
        return value
    return separator.join(_text(parameter.type.parameter.name, each) for each in value)


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    if isinstance(value, int | float):
        return str(value)
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(
            f"{name}={shown(value)} cannot be given on a command line: {error}."
        ) from error
