"""`aflow completion SHELL`: completion of commands, options and file names in a shell.

The shell runs `aflow` with `_AFLOW_COMPLETE` set (click's protocol,
https://click.palletsprojects.com/shell-completion/). The output has the commands of `aflow` and of
flows, and their options, but not the parameters of a flow: for these its file would have to be run
at every key press.
"""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class, shell_complete

from aflow.cli.commands import COMMANDS, OTHERS
from aflow.cli.flow_commands import FlowGroup
from aflow.cli.main import other_command

VARIABLE = "_AFLOW_COMPLETE"
_PLACES = {
    "bash": 'eval "$(aflow completion bash)"   in ~/.bashrc',
    "zsh": 'eval "$(aflow completion zsh)"    in ~/.zshrc',
    "fish": "aflow completion fish > ~/.config/fish/completions/aflow.fish",
}


class AllCommands(click.Group):
    """All commands of `aflow`, each imported when it is used."""

    def __init__(self) -> None:
        super().__init__("aflow")
        self._flow = FlowGroup(None, "aflow")

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands of flows, then those of the others."""
        return [*COMMANDS, *OTHERS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command with this name; None if there is none."""
        if cmd_name in OTHERS:
            return other_command(cmd_name)
        made = self._flow.get_command(ctx, cmd_name)
        if made is not None and not isinstance(made, click.Group):
            # The flow's file, whose path the shell completes.
            file = click.Argument(["flow_file"], type=click.Path(), required=False)
            made.params.insert(0, file)
        return made


def complete(instruction: str) -> int:
    """Respond to a shell: `bash_source` etc. request its script, `bash_complete` etc. the
    completions at the cursor.

    Args:
        instruction: The instruction of click's protocol.

    Returns:
        The exit code.
    """
    return shell_complete(AllCommands(), {}, "aflow", VARIABLE, instruction)


def completion() -> click.Command:
    """Return the command `completion`."""
    places = "\n".join(f"  {place}" for place in _PLACES.values())
    return click.Command(
        "completion",
        params=[click.Argument(["shell"], type=click.Choice(list(_PLACES)))],
        callback=_print,
        help=f"Print the completion script for the commands and options of aflow:\n\n\b\n{places}",
    )


def _print(shell: str) -> None:
    found = get_completion_class(shell)
    assert found is not None, "click knows the shells of the choice"
    click.echo(found(AllCommands(), {}, "aflow", VARIABLE).source())
