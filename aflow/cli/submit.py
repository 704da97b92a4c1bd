"""`aflow submit flow.py`: submit a flow to a server, which runs it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from aflow._core.ids import Pathspec
from aflow._core.settings import Settings
from aflow.cli.loading import load_flow
from aflow.cli.logs import BOTH, follow_there
from aflow.cli.options import count_option, flag, tags_option
from aflow.cli.server_requests import ask, server_option
from aflow.errors import InvalidInput
from aflow.task import code_package
from aflow.task.config_binding import configured

if TYPE_CHECKING:
    from aflow.flow.definition import FlowDefinition

_HELP = """Submit the code of a flow to a server (aflow server), which runs it.

Options that are not listed here are parameters of the flow. The command sends the token of
AFLOW_SERVICE_AUTH_KEY.

\b
  aflow submit flow.py --alpha 0.5 --wait
"""


def submit() -> click.Command:
    """Return the command `submit`; its exit code is 1 if it has waited for the run, which
    failed."""
    return click.Command(
        "submit",
        params=[
            click.Argument(["target"], metavar="FLOW.PY"),
            server_option(),
            tags_option(),
            count_option("--max-workers", help="The most tasks of a run at a time."),
            flag("--wait", help="Follow the output of the run until it has ended."),
            click.Argument(["given"], nargs=-1, type=click.UNPROCESSED, metavar="[PARAMETERS]..."),
        ],
        callback=_submit,
        help=_HELP,
        context_settings={"ignore_unknown_options": True},
    )


def _submit(
    target: str,
    server: str,
    tags: tuple[str, ...],
    max_workers: int | None,
    wait: bool,
    given: tuple[str, ...],
) -> int:
    parameters = parameters_of(given)
    request = send(server, configured(load_flow(target)), parameters, tags, max_workers)
    run = ask(server, "POST", "/v1/runs", json.dumps(request).encode())["run"]
    click.echo(run)
    if not wait:
        return 0
    return follow_there(server, Pathspec.parse(run), BOTH, follow=True, known=True)


def send(
    server: str,
    definition: FlowDefinition,
    parameters: Mapping[str, str],
    tags: Sequence[str],
    max_workers: int | None,
) -> dict[str, Any]:
    """Upload the code of a flow to a server.

    Args:
        server: The URL of the server.
        definition: The flow: its class, steps, parameters and decorators.
        parameters: The values of parameters, by name.
        tags: The tags of the run.
        max_workers: The maximum number of concurrent tasks; None for the setting.

    Returns:
        The body of `POST /v1/runs` for a run with this code.
    """
    files = code_package.members(definition, Settings.load().package_suffixes)
    kept = ask(server, "POST", "/v1/packages", code_package.pack(files), "application/x-tar")
    return {
        "package": kept["package"],
        "script": code_package.program_of(definition).place[1],
        "flow": definition.name,
        "parameters": parameters,
        "tags": list(tags),
        "max_workers": max_workers,
    }


def parameters_of(given: Sequence[str]) -> dict[str, str]:
    """Return the values of `--alpha 0.5 --beta=1`, by name.

    Args:
        given: The arguments of the command line.

    Raises:
        InvalidInput: If an argument has another form.
    """
    found = {}
    remaining = iter(given)
    for argument in remaining:
        name, equals, text = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not name:
            raise InvalidInput(f"{argument!r} is not a parameter: write --name value.")
        value = text if equals else next(remaining, None)
        if value is None:
            raise InvalidInput(f"Parameter {name!r} has no value.")
        found[name] = value
    return found
