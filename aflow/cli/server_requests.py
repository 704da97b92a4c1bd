"""Requests from commands to a server (aflow server)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from threading import Event
from typing import Any, NamedTuple
from urllib import request
from urllib.error import HTTPError
from urllib.parse import urlsplit

import click

from aflow._core.backoff import Backoff, Tries
from aflow._core.secret import as_mentioned
from aflow._core.settings import looked_up
from aflow.cli.options import option
from aflow.errors import CommandFailed, InvalidInput, ServerUnavailable
from aflow.metadata.tokens import headers_for, is_this_machine

DEFAULT_SERVER = "http://127.0.0.1:8180"
WAIT = 30  # seconds that a request asks the server to wait; it is then repeated
_PATIENCE = 60 + WAIT
_TRIES = 16  # they take about a minute
_BEGUN, _ALIVE = "", ":"  # kinds of messages that are not events
_BACKOFF = Backoff(0.5, 10.0)


def server_option() -> click.Option:
    """Return the option --server of a command that requires a server."""
    return option(
        "--server",
        metavar="URL",
        default=lambda: looked_up("SERVER") or DEFAULT_SERVER,
        show_default=f"AFLOW_SERVER, else {DEFAULT_SERVER}",
        help="URL of the server.",
    )


def of_a_server() -> click.Option:
    """Return the option --server of a command that uses the local metadata unless it is given."""
    return option(
        "--server",
        metavar="URL",
        default=lambda: looked_up("SERVER"),
        callback=lambda _, __, url: url or None,
        help="Ask this server ('': the local metadata).  [default: AFLOW_SERVER, else the local "
        "metadata]",
    )


def ask(
    server: str, method: str, path: str, body: bytes | None = None, type_: str = "application/json"
) -> Any:
    """Return the JSON response of the server.

    Args:
        server: The URL of the server.
        method: The HTTP method.
        path: The path below the server's URL, optionally with a query.
        body: The body of the request; None for none.
        type_: The media type of the body.

    Raises:
        InvalidInput: If the server's URL is malformed.
        CommandFailed: If the server rejects the request, with its message, or does not respond.
    """
    with _answered(server, method, path, body, type_) as answer:
        return json.load(answer)


class ServerSentEvent(NamedTuple):
    """A server-sent event."""

    kind: str
    data: Any


def events(server: str, path: str, *, there: bool = False) -> Iterator[ServerSentEvent]:
    """Yield server-sent events, up to and including the one with the name `end`. After the loss of
    the connection, or a restart of the server, they continue after the last event with an id; this
    requires that the server has responded once. Also raises the errors of `ask`.

    Args:
        server: The URL of the server.
        path: The path of a stream below the server's URL, optionally with a query.
        there: Whether the server has responded before, so that a first failure is retried too.

    Raises:
        ServerUnavailable: If the server does not respond for a minute.
    """
    last, tries = "", Tries(_BACKOFF, most=_TRIES, waiting_for=f"the server {server}")
    while True:
        try:
            for id_, event in _events(server, path, last):
                there = True
                if event.kind == _BEGUN:
                    continue
                tries.succeeded()
                if event.kind == _ALIVE:
                    continue
                last = id_ or last
                yield event
                if event.kind == "end":
                    return
            raise ServerUnavailable(f"The server {server} has ended its answer.")
        except ServerUnavailable as error:
            delay = tries.failed(error) if there else None
            if delay is None:
                raise
            Event().wait(delay)


def _events(server: str, path: str, last: str) -> Iterator[tuple[str, ServerSentEvent]]:
    """Yield the events with their ids, and messages that the response has started or is alive."""
    more = {"Last-Event-ID": last} if last else {}
    id_, kind = "", ""
    with _answered(server, "GET", path, None, "application/json", more) as answer:
        yield "", ServerSentEvent(_BEGUN, None)
        for line in answer:
            if line.startswith(b":"):  # a comment, which keeps the connection alive
                yield "", ServerSentEvent(_ALIVE, None)
                continue
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name == "id":
                id_ = value
            elif name == "event":
                kind = value
            elif name == "data":
                yield id_, ServerSentEvent(kind, json.loads(value))
                id_ = ""


@contextmanager
def _answered(
    server: str,
    method: str,
    path: str,
    body: bytes | None,
    type_: str,
    more: Mapping[str, str] | None = None,
) -> Iterator[HTTPResponse]:
    if not server.startswith(("http://", "https://")):
        raise InvalidInput(
            f"{as_mentioned(server)!r} is not an address of a server: http(s)://host:port."
        )
    if "@" in server.partition("://")[2].partition("/")[0]:
        raise InvalidInput(
            f"The server {as_mentioned(server)} is named with a user: a token is not sent by the "
            "address, but by AFLOW_SERVICE_AUTH_KEY."
        )
    headers = {"Content-Type": type_, **(more or {})}
    if key := headers_for(server).get("x-api-key"):
        headers["Authorization"] = f"Bearer {key}"
    url = server.rstrip("/") + path
    asked = request.Request(url, data=body, headers=headers, method=method)  # noqa: S310 -- http(s), as was checked
    try:
        with _opener(server).open(asked, timeout=_PATIENCE) as answer:
            yield answer
    except HTTPError as error:
        if 300 <= error.code < 400:
            raise CommandFailed(
                f"The server {server} redirects to {error.headers.get('Location', '')[:200]!r}. A "
                "token is sent nowhere but to the address that was given: give that one with "
                "--server, if it is the right one."
            ) from error
        kind = ServerUnavailable if error.code in (502, 503, 504) else CommandFailed
        raise kind(f"The server {server} refuses: {_sentence(error)}") from error
    except (OSError, HTTPException, ValueError) as error:
        why = getattr(error, "reason", error)
        raise ServerUnavailable(
            f"The server {server} does not answer ({why}): start one with `aflow server`, or name "
            "another with --server."
        ) from error


class _NoRedirects(request.HTTPRedirectHandler):
    """Turns redirects into HTTPError: following one would send the token to another address."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Do not follow the redirect."""
        return


def _opener(server: str) -> request.OpenerDirector:
    handlers: list[request.BaseHandler] = [_NoRedirects()]
    if is_this_machine(urlsplit(server).hostname or ""):
        handlers.append(request.ProxyHandler({}))  # no proxy may receive the token
    return request.build_opener(*handlers)


def _sentence(error: HTTPError) -> str:
    try:
        return str(json.load(error)["error"])
    except (OSError, HTTPException, ValueError, KeyError, TypeError):  # without a body, or cut off
        return f"{error.code} {error.reason}"
