"""Requests of commands to a server (aflow server)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib import request
from urllib.error import HTTPError

import click

from aflow.cli.options import option
from aflow.config import looked_up, service_headers
from aflow.errors import CommandFailed, InvalidInput

WAIT = 30  # seconds that the server is asked to wait, again and again
_PATIENCE = 60 + WAIT


def server_option() -> click.Option:
    """The option --server of a command that needs one."""
    return option(
        "--server",
        metavar="URL",
        default=lambda: looked_up("SERVER") or "http://127.0.0.1:8180",
        show_default="AFLOW_SERVER, else http://127.0.0.1:8180",
        help="Where the server is.",
    )


def of_a_server() -> click.Option:
    """The option --server of a command that shows what is here, unless one is named."""
    return option("--server", metavar="URL", help="What this server has, instead of what is here.")


def ask(
    server: str, method: str, path: str, body: bytes | None = None, type_: str = "application/json"
) -> Any:
    """What the server answers. Raises InvalidInput for what is no address,
    and CommandFailed with the server's sentence, or why there is none."""
    with _answered(server, method, path, body, type_) as answer:
        return json.load(answer)


def events(server: str, path: str) -> Iterator[str]:
    """The lines of an answer as they come, without their newlines. Raises what `ask` raises."""
    with _answered(server, "GET", path, None, "application/json") as answer:
        for line in answer:
            yield line.decode().rstrip("\n")


@contextmanager
def _answered(
    server: str, method: str, path: str, body: bytes | None, type_: str
) -> Iterator[HTTPResponse]:
    if not server.startswith(("http://", "https://")):
        raise InvalidInput(f"{server!r} is no address of a server: http(s)://host:port.")
    headers = {"Content-Type": type_}
    if key := service_headers().get("x-api-key"):
        headers["Authorization"] = f"Bearer {key}"
    url = server.rstrip("/") + path
    asked = request.Request(url, data=body, headers=headers, method=method)  # noqa: S310 -- http(s), as was checked
    try:
        with request.urlopen(asked, timeout=_PATIENCE) as answer:  # noqa: S310
            yield answer
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
