"""The commands of a flow: `python flow.py COMMAND ...` and `aflow COMMAND flow.py ...`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from inspect import cleandoc
from typing import TYPE_CHECKING, Any

import click

from aflow._core.deferred import import_asyncio
from aflow._core.version import __version__
from aflow.cli.commands import COMMANDS, NEED_NO_FILE, imported
from aflow.cli.errors import printable
from aflow.cli.options import (
    SectionedCommand,
    Subcommand,
    bound,
    names_of,
    option,
    parameter_options,
    parameters_file,
    run_options,
    taken_out,
    top_options,
    write_sections,
)
from aflow.cli.session import Defined, Session
from aflow.task.config_binding import GivenConfigs

if TYPE_CHECKING:
    from aflow.flow.parameters import Parameter
    from aflow.flow.spec import FlowSpec

_NORMALIZED = {
    # --max_workers is --max-workers: names of parameters may have underscores.
    "token_normalize_func": lambda name: name.replace("_", "-"),
    "help_option_names": ["-h", "--help"],
}


class FlowGroup(click.Group):
    """The commands of one flow, in the file `script`; each is created on demand. `flow` is None for
    commands that have only a pathspec, or if only the help of a command is shown.
    """

    def __init__(
        self,
        flow: type[FlowSpec] | None,
        script: str,
        defined: Defined | None = None,
        argv: tuple[str, ...] = (),
    ) -> None:
        super().__init__(
            name=flow.__name__ if flow else "aflow",
            params=[*top_options(flow)],
            help=_help_of(flow, os.path.basename(script)),
            invoke_without_command=True,
            callback=self._without_command,
            context_settings=_NORMALIZED,
        )
        self._flow = flow
        self._script = script
        self._defined = defined or Defined(flow, GivenConfigs())
        self._argv = argv

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all names, without importing the commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command with this name; None if there is none."""
        if cmd_name not in COMMANDS:
            return None
        if cmd_name in _PLAIN:
            body, parameters = _PLAIN[cmd_name]
            params = imported(parameters)() if parameters else []
            return self._made(cmd_name, Subcommand(COMMANDS[cmd_name], params, imported(body)))
        make, of_flow = imported(_MAKERS[cmd_name]), cmd_name in _WITH_PARAMETERS
        made = make(self._parameters()) if of_flow else make()
        if isinstance(made, Subcommand):
            return self._made(cmd_name, made)
        return self._with_commands(cmd_name, made)

    def _parameters(self) -> Mapping[str, Parameter]:
        return self._defined().parameters if self._flow is not None else {}

    def _with_commands(self, cmd_name: str, commands: Mapping[str, Subcommand]) -> click.Group:
        """Return a command with subcommands, and with options before these."""
        options = imported(_OPTIONS[cmd_name])() if cmd_name in _OPTIONS else []
        group = _Group(
            cmd_name,
            default=_DEFAULTS.get(cmd_name),
            params=options,
            help=COMMANDS[cmd_name],
            context_settings=_NORMALIZED,
        )
        for name, made in commands.items():
            group.add_command(self._made(name, made, below=cmd_name))
        return group

    def _made(self, name: str, made: Subcommand, below: str | None = None) -> SectionedCommand:
        help, params, body = made
        shared = top_options(self._flow, after_command=True)
        taken = names_of(params)  # the command has its own options of these names
        general = [each for each in shared if not names_of([each]) & taken]
        needs_file = self._flow is None and (below or name) not in NEED_NO_FILE
        return SectionedCommand(
            name,
            options_metavar=f"{'FLOW.PY ' if needs_file else ''}[OPTIONS]",
            params=[*params, *general],
            callback=bound(body, self._flow, self._script, self._defined, self._argv),
            help=help,
            context_settings=_NORMALIZED,
        )

    def get_help(self, ctx: click.Context) -> str:
        """Return the help; texts of a flow in it may have control characters, which are escaped."""
        return printable(super().get_help(ctx))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write commands before options."""
        self.format_commands(ctx, formatter)
        write_sections(self, ctx, formatter)

    def _without_command(self, **_: Any) -> object:
        ctx = click.get_current_context()
        if ctx.invoked_subcommand is not None:
            return None
        check = self.get_command(ctx, "check")
        assert check is not None
        with check.make_context("check", [], parent=ctx) as inner:
            return check.invoke(inner)


class _Group(click.Group):
    """A command with subcommands; `default` is the subcommand if none is given."""

    def __init__(self, name: str, default: str | None = None, **rest: Any) -> None:
        super().__init__(name, **rest)
        self._default = default

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Move the name of the subcommand to the front."""
        if self._default is not None and not {"-h", "--help"} & set(args[:1]):
            named = next((argument for argument in args if argument in self.commands), None)
            if named is not None:
                args.remove(named)
            args = [named or self._default, *args]
        return super().parse_args(ctx, args)


def _help_of(flow: type[FlowSpec] | None, script: str) -> str:
    doc = cleandoc(flow.__doc__ or "") if flow else ""
    return f"""{doc}

\b
Examples:
  python {script} run --max-workers 4
  python {script} run --help            all options, and the parameters of the flow
  python {script} --with retry run      retry every step
  python {script} dump RUN/STEP         the artifacts of a step
"""


def run_command(declared: Mapping[str, Parameter]) -> Subcommand:
    """Return `run` with the parameters of a flow as options.

    Args:
        declared: The parameters of the flow, by attribute.
    """
    import_asyncio()
    from aflow.cli.run import name_of_run, run

    own = parameter_options(declared)
    # A parameter replaces an option of `run` with the same name; the setting remains available.
    taken = names_of(own.values())
    named = option("--run-id", metavar="NAME", help="An id for the run; it must not be a number.")
    all_options = (*run_options(), named, parameters_file())
    options = [each for each in all_options if not taken & names_of([each])]

    def body(session: Session, **values: Any) -> object:
        given = taken_out(values, declared, own)
        values["run_id"] = name_of_run(values.get("run_id"))
        return run(session, given, **values)

    return Subcommand(COMMANDS["run"], [*own.values(), *options], body)


def resume_command(declared: Mapping[str, Parameter]) -> Subcommand:
    """Return `resume` with the parameters of a flow as options, except those that have the name of
    an option of `resume`.

    Args:
        declared: The parameters of the flow, by attribute.
    """
    from aflow.cli.resume import resume, resume_parameters

    options = [*resume_parameters(), parameters_file()]
    taken = {name for each in options for name in each.opts}
    free = {name: each for name, each in declared.items() if f"--{each.name}" not in taken}
    own = parameter_options(free)
    for each in own.values():
        # Other parameters keep the values of the origin: no environment variable and no prompt
        # changes a value of a resumed run.
        each.envvar, each.prompt = None, None

    def body(session: Session, **values: Any) -> object:
        given = taken_out(values, free, own)
        changed = {name: value for name, value in given.items() if value is not None}
        return resume(session, changed, **values)

    return Subcommand(COMMANDS["resume"], [*own.values(), *options], body)


def check_parameters() -> list[click.Parameter]:
    """Return the options of `check`, whose own module does not import click (plain.py)."""
    return [option("--warnings/--no-warnings", default=False, help="Show warnings, too.")]


def show_version(session: Session) -> None:
    """Print the version of aflow."""
    click.echo(f"aflow {__version__}")


def show_help(session: Session) -> None:
    """Print the help of the flow's commands."""
    ctx = click.get_current_context()
    click.echo((ctx.parent or ctx).get_help())


# Commands that are the same for every flow: their function, and the one that returns their
# parameters, if any. Modules are imported when their command is used.
_PLAIN = {
    "check": ("aflow.cli.run:check", f"{__name__}:check_parameters"),
    "dump": ("aflow.cli.dump:dump", "aflow.cli.dump:dump_parameters"),
    "explain": ("aflow.cli.explain:explain", "aflow.cli.explain:explain_parameters"),
    "help": (f"{__name__}:show_help", ""),
    "output-dot": ("aflow.cli.graphs:output_dot", ""),
    "output-raw": ("aflow.cli.graphs:output_raw", "aflow.cli.graphs:output_raw_parameters"),
    "show": ("aflow.cli.graphs:show", ""),
    "spin": ("aflow.cli.spin:spin", "aflow.cli.spin:spin_parameters"),
    "version": (f"{__name__}:show_version", ""),
}
# The other commands: the function that creates the command, or its subcommands by name.
_MAKERS = {
    "batch": "aflow.cli.jobs:batch_commands",
    "card": "aflow.cli.cards:card_commands",
    "deploy": "aflow.cli.step_functions:step_functions_commands",
    "kubernetes": "aflow.cli.jobs:kubernetes_commands",
    "logs": "aflow.cli.logs:logs_commands",
    "package": "aflow.cli.package:package_commands",
    "resume": f"{__name__}:resume_command",
    "run": f"{__name__}:run_command",
    "step-functions": "aflow.cli.step_functions:step_functions_commands",
    "tag": "aflow.cli.tags:tag_commands",
}
# Those of these commands that have the parameters of the flow as options.
_WITH_PARAMETERS = ("deploy", "resume", "run", "step-functions")
# Options of a command with subcommands, before the name of the subcommand.
_OPTIONS = dict.fromkeys(
    ("deploy", "step-functions"), "aflow.cli.step_functions:step_functions_options"
)
# The default subcommand of a command.
_DEFAULTS = {"logs": "show"}
