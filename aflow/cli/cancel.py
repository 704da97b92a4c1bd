"""`aflow cancel Flow/run`: have a server stop a run that it has begun."""

from __future__ import annotations

from collections.abc import Sequence

import click

from aflow import ids
from aflow.cli.asking import ask, server_option
from aflow.errors import InvalidName

_HELP = """Stop a run that was submitted to a server.

\b
  aflow cancel MyFlow/1234
"""


def cancel(words: Sequence[str]) -> object:
    """Run the command with these words."""
    command = click.Command(
        "cancel",
        params=[click.Argument(["run"], metavar="FLOW/RUN"), server_option()],
        callback=_cancel,
        help=_HELP,
    )
    return command.main([*words], prog_name="aflow cancel", standalone_mode=False)


def _cancel(run: str, server: str) -> None:
    spec = ids.Pathspec.parse(run)
    if spec.run is None or spec.step is not None:
        raise InvalidName(f"{run!r} names no run: give FLOW/RUN.")
    ask(server, "DELETE", f"/v1/runs/{spec}")
    click.echo(f"{spec} is being stopped.")
