"""The options of the command line, in sections of the help, and their environment variables.

Every option can also be set by an environment variable: AFLOW_<OPTION> or METAFLOW_<OPTION>; for
`run` and the parameters AFLOW_RUN_<OPTION> or METAFLOW_RUN_<OPTION>.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from click.core import ParameterSource

from aflow._core import ids
from aflow._core.clock import timespan
from aflow._core.settings import choices_of, default_of, metadata_place, resource_amounts
from aflow.cli.errors import printable
from aflow.cli.session import TOP_NAMES, Defined, Session, environment_names
from aflow.errors import InvalidInput, InvalidParameter, StorageError
from aflow.flow.configs import Config
from aflow.flow.names import did_you_mean
from aflow.flow.parameters import ConvertedValue, Parameter, plain_name, type_name

if TYPE_CHECKING:
    from aflow.flow.spec import FlowSpec

    ParamType = click.ParamType[Any]
else:  # generic only for type checkers, before click 8.5
    ParamType = click.ParamType

_MOST = 1 << 53  # the largest number that an option accepts
GENERAL = "General options"
OPTIONS = "Options"
PARAMETERS = "Parameters of the flow"


class Option(click.Option):
    """An option with a section of the help."""

    section = OPTIONS
    parameter: Parameter | None = None  # the parameter of the flow, if the option is for one

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        """Return the value, converted by the flow's parameter if the option is for one; raises a
        usage error for an invalid value. Called with all values of an option that may be given many
        times."""
        made = super().type_cast_value(ctx, value)
        if self.parameter is None or made is None:
            return made
        try:
            return self.parameter.convert(made)
        except InvalidParameter as error:
            raise click.BadParameter(str(error), ctx=ctx, param=self) from error

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        """Return the value after the flow's own callback; a given value of a parameter of the flow
        is returned as a ConvertedValue."""
        if isinstance(value, ConvertedValue):  # click has already processed it at its prompt
            return value
        made = super().process_value(ctx, value)
        by_default = ctx.get_parameter_source(self.name or "") is ParameterSource.DEFAULT
        if self.parameter is None or by_default:
            return made
        return ConvertedValue(made, value if self.callback is None and _is_text(value) else None)


def _is_text(value: Any) -> bool:
    """Return whether this is a string, or a sequence of strings."""
    return isinstance(value, str) or (isinstance(value, list | tuple) and all(map(_is_text, value)))


class Subcommand(NamedTuple):
    """A subcommand: its help, its parameters, and its function."""

    help: str
    parameters: Sequence[click.Parameter]
    body: Callable[..., object]


def command_group(name: str, help: str, commands: Mapping[str, Subcommand]) -> click.Group:
    """Return a command with subcommands.

    Args:
        name: The name of the command.
        help: The help text of the command itself.
        commands: The subcommands, by name.
    """
    group = click.Group(name, help=help)
    for each, (text, parameters, body) in commands.items():
        group.add_command(click.Command(each, help=text, params=[*parameters], callback=body))
    return group


class SectionedCommand(click.Command):
    """A command whose help lists its options by section."""

    def get_help(self, ctx: click.Context) -> str:
        """Return the help; texts of a flow in it may have control characters, which are escaped."""
        return printable(super().get_help(ctx))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one definition list per section."""
        write_sections(self, ctx, formatter)


def write_sections(
    command: click.Command, ctx: click.Context, formatter: click.HelpFormatter
) -> None:
    """Write the command's options to its help, by section; those of the command itself come first.

    Args:
        command: The command whose help is written.
        ctx: The context of click, for its help options.
        formatter: The formatter to write to.
    """
    sections: dict[str, list[tuple[str, str]]] = {PARAMETERS: [], OPTIONS: [], GENERAL: []}
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        # Arguments are in the usage line already.
        if record is not None and not isinstance(parameter, click.Argument):
            sections[getattr(parameter, "section", GENERAL)].append(record)
    for title, records in sections.items():
        if records:
            with formatter.section(title):
                formatter.write_dl(records)


def option(*names: str, section: str = OPTIONS, scope: str | None = None, **rest: Any) -> Option:
    """Return an option; with a `scope` ("" or "run_") it has environment variables, too.

    Args:
        *names: The option's names, as click takes them: `--name`, `-n`, `--yes/--no`.
        section: The title of its section of the help.
        scope: The prefix of its environment variables, "" or `run_`; None for no variables.
        **rest: Additional arguments of click's Option.
    """
    default = rest.get("default")
    if default and not callable(default) and default is not True:
        rest.setdefault("show_default", "[default" not in rest.get("help", ""))
    made = Option(names, **rest)
    made.section = section
    if scope is not None:
        long = next(name for name in names if name.startswith("--"))
        made.envvar = environment_names(long.partition("/")[0], scope)
    return made


def of_setting(name: str, help: str, **rest: Any) -> Option:
    """Return an option that overrides a setting. It has no default: if it is not given, the setting
    applies.

    Args:
        name: The name of the setting, with underscores; the option has dashes.
        help: The help text, without the default, which is added.
        **rest: Additional arguments of click's Option.
    """
    text = f"{help}  [default: {default_of(name)}]"
    return option(f"--{name.replace('_', '-')}", help=text, **{"default": None, **rest})


def names_of(parameters: Iterable[click.Parameter]) -> set[str]:
    """Return all names of these options in normalized form: --max_workers becomes --max-workers.

    Args:
        parameters: Options or arguments of click.
    """
    names = (name for each in parameters for name in (*each.opts, *each.secondary_opts))
    return {name.replace("_", "-") for name in names}


def flag(*names: str, help: str, **rest: Any) -> Option:
    """Return an option without a value, which is False unless it is given.

    Args:
        *names: The option's names, as click takes them.
        help: The help text.
        **rest: Additional arguments of `option`.
    """
    return option(*names, is_flag=True, default=False, help=help, **rest)


# ------------------------------------------------------------ every command


_WITHOUT_EFFECT = {
    "--event-logger": ["nullSidecarLogger", "debugLogger"],
    "--monitor": ["nullSidecarMonitor", "debugMonitor"],
    "--mode": ["spin"],
}


def top_options(flow: type[FlowSpec] | None = None, *, after_command: bool = False) -> list[Option]:
    """Return the options of every command, with those that the flow's decorators and configs add.
    After the command's name they have no environment
    variables, so that a value before the name, or of a variable, is not overridden.

    Args:
        flow: The flow; None if there is no file.
        after_command: Whether the options are for the position after the command.
    """
    scope = None if after_command else ""
    rest: dict[str, Any] = {"section": GENERAL, "scope": scope, "default": None}
    return [
        option(
            "--quiet/--not-quiet",
            help="Do not print the checks before the run.  [default: not-quiet]",
            **rest,
        ),
        option(
            "--metadata",
            metavar="PLACE",
            type=ParsedType("place", metadata_place),
            help="The metadata: local, service, or a URL "
            "(postgresql://user@host/database, https://host, sqlite:////path).",
            **rest,
        ),
        _choice(
            "--environment",
            choices_of("environment"),
            "Packages of steps: installed ones (local), or an environment of each step.",
            rest,
        ),
        _choice("--datastore", choices_of("datastore"), "Where the artifacts are.", rest),
        option(
            "--datastore-root",
            metavar="PATH",
            help="Folder of the local datastore, or s3://bucket/prefix.",
            **rest,
        ),
        option(
            "--package-suffixes",
            metavar="SUFFIXES",
            help="Suffixes of files in the code package."
            f"  [default: {','.join(default_of('package_suffixes'))}]",
            **rest,
        ),
        option("--pylint/--no-pylint", help="Check the code with a linter first.", **rest),
        *(
            _choice(name, values, "Accepted for compatibility; no effect.", rest)
            for name, values in _WITHOUT_EFFECT.items()
        ),
        with_option(GENERAL, scope),
        *_flow_options(flow, rest),
    ]


def _choice(name: str, values: Sequence[str], help: str, rest: Mapping[str, Any]) -> Option:
    return option(name, type=click.Choice(values), help=help, **rest)


def with_option(section: str, scope: str | None) -> Option:
    """Return the option `--with`, which may be given several times.

    Args:
        section: The title of its section of the help.
        scope: The prefix of its environment variables, "" or `run_`; None for no variables.
    """
    return option(
        "--with",
        "with_",
        section=section,
        scope=scope,
        multiple=True,
        metavar="DECORATOR",
        help="Add a decorator to every step, such as retry:times=2.",
    )


def _flow_options(flow: type[FlowSpec] | None, rest: Mapping[str, Any]) -> list[Option]:
    """Return the options that the flow's decorators and configs add."""
    from aflow.flow.decorators.base import flow_decorators_of

    kinds = {each.decorator_name for each in flow_decorators_of(flow)} if flow else set()
    made = []
    if "project" in kinds:
        made += [
            option("--branch", metavar="NAME", help="Branch of the project to run on.", **rest),
            option("--production", is_flag=True, help="Run on the production branch.", **rest),
        ]
    if "trigger_on_finish" in kinds:
        text = "A run (Flow/run) to record as the trigger of this one; may be given many times."
        made.append(option("--trigger", metavar="RUN", multiple=True, help=text, **rest))
    return made + _config_options(flow)


def _config_options(flow: type[FlowSpec] | None) -> list[Option]:
    """Return the options for configs, only for the help. They are read, and removed from the
    arguments, before click parses these: see config_options.py."""
    # Their types are asked, since a constant of the flow may raise for its `__class__`.
    members = [] if flow is None else [each for cls in flow.__mro__ for each in vars(cls).values()]
    configs = ", ".join(each.name for each in reversed(members) if issubclass(type(each), Config))
    if not configs:
        return []
    texts = {
        "--config": ("NAME PATH", f"Read a config of the flow ({configs}) from a file."),
        "--config-value": ("NAME JSON", "Give a config of the flow this value."),
    }
    return [
        option(
            name,
            metavar=metavar,
            nargs=2,
            multiple=True,
            expose_value=False,
            help=text,
            section=GENERAL,
        )
        for name, (metavar, text) in texts.items()
    ]


# ------------------------------------------------------------ run


def run_options() -> list[Option]:
    """Return the options of `run`, without the parameters of the flow. Options that override a
    setting have no default."""
    number: dict[str, Any] = {
        "type": click.IntRange(1),
        "callback": _bounded,
        "metavar": "N",
        "default": None,
    }
    return [
        tags_option(scope="run_"),
        of_setting("max_workers", "The most tasks at a time.", **number),
        of_setting("max_num_splits", "The most items of a foreach.", **number),
        of_setting(
            "max_log_size", "The most output kept of each stream of an attempt, in MB.", **number
        ),
        with_option(OPTIONS, "run_"),
        flag("--cache", help="Reuse results of earlier runs if nothing has changed (see @cache)."),
        flag("--dry-run", help="Only show which tasks would run, and why."),
        flag(
            "--force-rebuild-environments",
            "rebuild",
            hidden=True,
            help="Solve and build the environments of steps again.",
        ),
        option("--aflow-recover", "recover", hidden=True, help="The run to recover."),
        option(
            "--aflow-forecast",
            "forecast",
            hidden=True,
            help="Write what --dry-run finds to this file, as JSON.",
        ),
        file_option("--run-id-file", "Write the id of the run to this file.", scope="run_"),
        file_option(
            "--runner-attribute-file",
            "Write run id, flow and metadata to this file as JSON.",
            scope="run_",
        ),
        option(
            "--namespace",
            scope="run_",
            default=None,
            metavar="NAME",
            help="Namespace of the client inside the run; empty: all runs.",
        ),
        of_setting(
            "isolation",
            "A new process for each task, or processes that run many tasks.",
            type=click.Choice(choices_of("isolation")),
        ),
        of_setting(
            "process",
            "Processes run the flow's file by themselves, or are forked from one that has run it "
            "(for files that work for seconds at module level).",
            type=click.Choice(choices_of("process")),
        ),
        of_setting(
            "executor",
            "Where tasks run: here, on the workers of a queue, or as jobs of AWS Batch, Slurm or "
            "Kubernetes.",
            type=click.Choice(choices_of("executor")),
        ),
        option(
            "--queue",
            default=None,
            metavar="URL",
            help="The queue of the workers (with --executor queue).",
        ),
        resources_option("resources that tasks share (@resources)"),
        option(
            "--debug",
            "debug_step",
            default=None,
            metavar="STEP",
            help="Give the terminal to the tasks of this step, one at a time: for breakpoint(), "
            "pdb and input().",
        ),
        option(
            "--priority",
            scope="run_",
            type=click.IntRange(-100, 100),
            default=0,
            show_default=True,
            metavar="N",
            help="Tasks of runs with a higher priority go first in the queue; runs of equal "
            "priority take turns.",
        ),
        flag(
            "--fail-fast",
            help="Stop all tasks when the last attempt of a task has failed.",
            scope="run_",
        ),
        option(
            "--progress/--no-progress",
            default=None,
            help="Show a progress bar for each step on a terminal.  [default: progress]",
        ),
    ]


def resources_option(what: str) -> Option:
    """Return the option `--resources` of a run or a worker.

    Args:
        what: The noun for the help.
    """
    return option(
        "--resources",
        default=None,
        type=ParsedType("amounts", resource_amounts),
        metavar="NAME=AMOUNT,...",
        help=f"The {what}: gpu=4,memory=64000 (in MB), licence=1.  [default: those of this "
        "machine]",
    )


def write_file(file: str | Path, content: str | bytes) -> None:
    """Write a file that is the value of an option or an argument.

    Args:
        file: The path of the file, which is replaced if it exists.
        content: Bytes, or a string, which is encoded as UTF-8.

    Raises:
        StorageError: If it cannot be written; the message has the reason.
    """
    data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    try:
        Path(file).write_bytes(data)
    except OSError as error:
        raise StorageError(f"{file} cannot be written: {error.strerror}.") from error


def file_option(name: str, help: str, *, scope: str | None = None) -> Option:
    """Return an option whose value is a file to write.

    Args:
        name: The long name of the option.
        help: The help text.
        scope: The prefix of its environment variables, "" or `run_`; None for no variables.
    """
    kind = click.Path(dir_okay=False, writable=True)
    return option(name, scope=scope, default=None, type=kind, metavar="FILE", help=help)


def tags_option(
    help: str = "A tag for the run; may be given several times.", *, scope: str | None = None
) -> Option:
    """Return the option `--tag`, for tags to add or to filter by.

    Args:
        help: The help text.
        scope: The prefix of its environment variables, "" or `run_`; None for no variables.
    """
    kind = ParsedType("tag", ids.tag)
    return option("--tag", "tags", scope=scope, multiple=True, type=kind, metavar="TAG", help=help)


def count_option(*names: str, help: str, least: int = 1, metavar: str = "N", **rest: Any) -> Option:
    """Return an option whose value is an integer.

    Args:
        *names: The option's names, as click takes them.
        help: The help text.
        least: The smallest value.
        metavar: The placeholder of the value in the help.
        **rest: Additional arguments of `option`.
    """
    number: dict[str, Any] = {"type": click.IntRange(least), "callback": _bounded}
    return option(*names, help=help, metavar=metavar, **number, **rest)


def _bounded(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Return the number; raises a usage error if it is too large for databases and clocks, or NaN,
    which click's ranges do not reject."""
    if value is not None and not value <= _MOST:
        raise click.BadParameter(f"{value} is too large, or not a number.")
    return value


def seconds_option(
    name: str, help: str, *, default: float | None = None, least: float = 0.0
) -> Option:
    """Return an option whose value is a duration in seconds.

    Args:
        name: The long name of the option.
        help: The help text.
        default: The default, in seconds; None for no limit.
        least: The shortest duration, in seconds.
    """
    number: dict[str, Any] = {"type": click.FloatRange(least), "callback": _bounded}
    return option(name, help=help, default=default, metavar="SECONDS", **number)


def timespan_option(name: str, help: str, **rest: Any) -> Option:
    """Return an option whose value is a duration with a unit, which becomes seconds.

    Args:
        name: The long name of the option.
        help: The help text.
        **rest: Additional arguments of `option`.
    """
    return option(name, help=help, metavar="TIME", type=ParsedType("time", _timespan), **rest)


def _timespan(text: str) -> float:
    seconds = timespan(text)
    if seconds is None:
        raise InvalidInput(f"{text!r} is not a number and a unit, as 90s, 30m, 12h, 30d, 8w.")
    return seconds


def port_option(help: str, default: int) -> Option:
    """Return the option `--port` of a command that listens.

    Args:
        help: The help text.
        default: The default port; 0 for a free one.
    """
    kind = click.IntRange(0, 65535)
    return option("--port", help=help, type=kind, default=default, metavar="PORT")


class ParsedType(ParamType):
    """The type of an option whose value is converted by a function of aflow; an InvalidInput that
    the function raises becomes a usage error."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the result of the function for the text."""
        try:
            return self._parse(value)
        except InvalidInput as error:
            self.fail(str(error), param, ctx)


# ------------------------------------------------------------ parameters of the flow


class ParameterType(ParamType):
    """The type of a flow's parameter. The conversion is done by the option, since click converts
    the values of an option that may be given many times one by one here."""

    def __init__(self, parameter: Parameter) -> None:
        self.name = type_name(parameter.type).lower()
        self.parameter = parameter


def parameter_options(parameters: Mapping[str, Parameter]) -> dict[str, Option]:
    """Return the options of the flow's parameters, by the names `parameter_<n>` under which click
    passes their values; these cannot collide with names of other options.

    Args:
        parameters: The parameters of the flow, by attribute.
    """
    keys = (f"parameter_{number}" for number in range(len(parameters)))
    pairs = zip(keys, parameters.values(), strict=True)
    return {key: _parameter_option(parameter, key) for key, parameter in pairs}


def _parameter_option(parameter: Parameter, key: str) -> Option:
    rest = dict(parameter.click_options)
    by_name = environment_names(parameter.name, "run_")
    own = rest.pop("envvar", None) or []
    # click converts flags and counters.
    if not (rest.get("is_flag") or rest.get("count")):
        rest["type"] = ParameterType(parameter)
    if rest.get("prompt") and parameter.default is not None and not callable(parameter.default):
        rest["default"] = parameter.plain(parameter.default)
    if parameter.nargs > 1:
        rest["nargs"] = parameter.nargs
    made = option(
        f"--{parameter.name}",
        key,
        section=PARAMETERS,
        help=_parameter_help(parameter),
        **{"default": None, **rest},
    )
    made.parameter = parameter
    made.envvar = [*([own] if isinstance(own, str) else own), *by_name]
    return made


def parameters_file() -> Option:
    """Return the option for a file of parameters, whose values may be many, long, or secret."""
    return option(
        "--parameters-file",
        type=click.Path(),
        metavar="FILE",
        help="Read values of parameters from this file (a JSON object).",
    )


def _add_from_file(given: dict[str, Any], declared: Mapping[str, Parameter], file: str) -> None:
    """Complete the values of the command line, by attribute, by those of a JSON object of values by
    name. Raises InvalidParameter if it cannot be read, or has unknown parameters."""
    import json

    try:
        with open(file, encoding="utf-8") as opened:
            found = json.load(opened)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else f"it is not JSON ({error})"
        raise InvalidParameter(f"--parameters-file {file} cannot be read: {why}.") from error
    if not isinstance(found, dict):
        raise InvalidParameter(f"--parameters-file {file} has to hold an object: values by name.")
    by_name = {plain_name(each.name): attribute for attribute, each in declared.items()}
    for name, value in found.items():
        attribute = by_name.get(plain_name(name))
        if attribute is None:
            raise InvalidParameter(
                f"--parameters-file {file} has a value for {name!r}, which is not a parameter of "
                f"the flow.{did_you_mean(name, [each.name for each in declared.values()])}"
            )
        if given.get(attribute) is None:
            given[attribute] = value


def taken_out(
    values: dict[str, Any], declared: Mapping[str, Parameter], options: Mapping[str, Option]
) -> dict[str, Any]:
    """Return the values of parameters, of the command line or else of the file of
    `parameters_file`, by attribute; None for those that were not given.

    Args:
        values: The values of all options that click passes, by name; those of parameters, and the
            file, are removed.
        declared: The parameters of the flow, by attribute.
        options: The options of the parameters, by name, in the same order.

    Raises:
        InvalidParameter: If the file cannot be read, is not a JSON object, or has unknown
            parameters.
    """
    found: dict[str, Any] = {}
    for (attribute, parameter), key in zip(declared.items(), options, strict=True):
        value = values.pop(key)
        # click passes an empty tuple if an option that may be given many times is not given.
        # Other defaults, and the results of a flow's callback, are converted, too.
        if value is None or (parameter.multiple and value == ()):
            found[attribute] = None
        else:
            converted = isinstance(value, ConvertedValue)
            found[attribute] = value if converted else ConvertedValue(value)
    if (file := values.pop("parameters_file", None)) is not None:
        _add_from_file(found, declared, file)
    return found


def _parameter_help(parameter: Parameter) -> str:
    facts = ["required"] if parameter.required else []
    if parameter.choices is not None:
        facts.append(f"one of: {', '.join(map(str, parameter.choices))}")
    if parameter.default is not None and parameter.show_default:
        facts.append(f"default: {_default_text(parameter)}")
    noted = f"  [{'; '.join(facts)}]" if facts else ""
    return f"{parameter.help or ''}{noted}".strip()


def _default_text(parameter: Parameter) -> str:
    """Return the default in the form in which a user would write it."""
    if callable(parameter.default):
        return "computed"
    if parameter.separator is not None and not isinstance(parameter.default, str):
        return parameter.separator.join(map(str, parameter.default or ()))
    return str(parameter.default)


# The values of the options of every command, at any position on the command line.


Body = Callable[..., object]


def bound(
    body: Body,
    flow: type[FlowSpec] | None,
    script: str,
    defined: Defined,
    argv: tuple[str, ...] = (),
) -> Callable[..., object]:
    """Return a callback for click that calls `body(session, **values of the command's options)`.

    Args:
        body: The function of the command; its first argument is a Session.
        flow: The flow; None if there is no file.
        script: The path of the flow's file.
        defined: The definition of the flow.
        argv: The arguments of the command line.
    """

    @click.pass_context
    def call(ctx: click.Context, /, **values: Any) -> object:
        top = _top_values(ctx)
        shared = {"with_", *(each.name for each in ctx.command.params if _is_general(each))}
        own = {name: value for name, value in values.items() if name not in shared}
        return body(Session(flow, script, top, defined, argv), **own)

    return call


def _is_general(parameter: click.Parameter) -> bool:
    return getattr(parameter, "section", None) == GENERAL


def _top_values(ctx: click.Context) -> dict[str, Any]:
    """Return the options of every command; those after the command's name take precedence."""
    ahead = ctx.find_root().params if ctx.parent is not None else {}
    top = {name: ahead.get(name) for name in TOP_NAMES}
    for name in (each.name for each in ctx.command.params if _is_general(each)):
        if name in top and ctx.get_parameter_source(name) is not ParameterSource.DEFAULT:
            top[name] = ctx.params[name]
    # These are combined from both positions.
    for name in ("with_", "trigger"):
        top[name] = (*(ahead.get(name) or ()), *(ctx.params.get(name) or ()))
    return top
