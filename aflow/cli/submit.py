"""`aflow submit flow.py`: have a server run a flow."""

from __future__ import annotations

import json
from collections.abc import Sequence
from http.client import HTTPException
from typing import Any
from urllib import request
from urllib.error import HTTPError

import click

from aflow.cli.options import flag, option
from aflow.config import Settings, service_headers
from aflow.errors import CommandFailed, InvalidInput

_HELP = """Send the code of a flow to a server (aflow server), which runs it.

Options that are not listed here are parameters of the flow. The token is that of
AFLOW_SERVICE_AUTH_KEY.

\b
  aflow submit flow.py --alpha 0.5 --wait
"""
_WAIT = 30  # seconds that the server is asked to wait, again and again
_PATIENCE = 60 + _WAIT


def submit(words: Sequence[str]) -> object:
    """Run the command with these words; the exit code is 1 for a run that was waited for and
    failed."""
    command = click.Command(
        "submit",
        params=[
            click.Argument(["target"], metavar="FLOW.PY"),
            option(
                "--server",
                metavar="URL",
                envvar="AFLOW_SERVER",
                default="http://127.0.0.1:8180",
                show_default=True,
                help="Where the server is.",
            ),
            option("--tag", "tags", multiple=True, help="A tag of the run."),
            option("--max-workers", type=click.IntRange(min=1), help="Live tasks at most."),
            flag("--wait", help="Wait until the run has ended."),
            click.Argument(["given"], nargs=-1, type=click.UNPROCESSED, metavar="[PARAMETERS]..."),
        ],
        callback=_submit,
        help=_HELP,
        context_settings={"ignore_unknown_options": True},
    )
    return command.main([*words], prog_name="aflow submit", standalone_mode=False)


def _submit(
    target: str,
    server: str,
    tags: tuple[str, ...],
    max_workers: int | None,
    wait: bool,
    given: tuple[str, ...],
) -> int:
    from aflow import package
    from aflow.cli.loading import load_flow
    from aflow.configured import configured

    if not server.startswith(("http://", "https://")):
        raise InvalidInput(f"{server!r} is no address of a server: http(s)://host:port.")
    parameters = _parameters(given)
    definition = configured(load_flow(target))
    files = package.members(definition, Settings.load().package_suffixes)
    kept = _ask(server, "POST", "/v1/packages", package.pack(files), "application/x-tar")
    wanted = {
        "package": kept["package"],
        "script": definition.file.rpartition("/")[2],
        "flow": definition.name,
        "parameters": parameters,
        "tags": list(tags),
        "max_workers": max_workers,
    }
    run = _ask(server, "POST", "/v1/runs", json.dumps(wanted).encode())["run"]
    click.echo(run)
    return _awaited(server, run) if wait else 0


def _awaited(server: str, run: str) -> int:
    while True:
        told = _ask(server, "GET", f"/v1/runs/{run}?wait={_WAIT}")
        if told["finished_at"] is not None:
            click.echo(f"{run} has {told['state']}. {told['reason']}".strip(), err=True)
            return 0 if told["state"] == "succeeded" else 1
        if not told["here"]:
            raise CommandFailed(f"The process of {run} has ended without a word: it was killed.")


def _parameters(given: Sequence[str]) -> dict[str, str]:
    """`--alpha 0.5 --beta=1` as values by name. Raises InvalidInput."""
    found = {}
    words = iter(given)
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not name:
            raise InvalidInput(f"{word!r} is no parameter: write --name value.")
        if not equals:
            try:
                value = next(words)
            except StopIteration as error:
                raise InvalidInput(f"Parameter {name!r} has no value.") from error
        found[name] = value
    return found


def _ask(
    server: str, method: str, path: str, body: bytes | None = None, type_: str = "application/json"
) -> Any:
    """What the server answers. Raises CommandFailed with its sentence, or why there is none."""
    headers = {"Content-Type": type_}
    if key := service_headers().get("x-api-key"):
        headers["Authorization"] = f"Bearer {key}"
    url = server.rstrip("/") + path
    asked = request.Request(url, data=body, headers=headers, method=method)  # noqa: S310 -- http(s), as was checked
    try:
        with request.urlopen(asked, timeout=_PATIENCE) as answer:  # noqa: S310
            return json.load(answer)
    except HTTPError as error:
        raise CommandFailed(f"The server {server} refuses: {_sentence(error)}") from error
    except (OSError, HTTPException, ValueError) as error:
        why = getattr(error, "reason", error)
        raise CommandFailed(
            f"The server {server} does not answer ({why}): start one with `aflow server`, or name "
            "another with --server."
        ) from error


def _sentence(error: HTTPError) -> str:
    try:
        return str(json.load(error)["error"])
    except (ValueError, KeyError, TypeError):
        return f"{error.code} {error.reason}"
