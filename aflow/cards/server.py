"""A small server that shows new cards to the user of the local machine."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from html import escape
from itertools import islice
from typing import NamedTuple

from aflow import client
from aflow._core.system import holds_connection
from aflow.cards.get import FoundCard, get_cards
from aflow.cards.page import page
from aflow.errors import InvalidInput, InvalidSetting, MissingExtra, NotFound

try:
    from aiohttp import web

    from aflow.server.auth import is_of_another_site, names_this_machine
    from aflow.server.listening import Handler
except ImportError as error:
    raise MissingExtra("The card server needs aiohttp: install aflow-runtime[server].") from error

_RUNS = 5  # runs of each flow
# Custom cards may contain scripts. They run in a sandbox with an opaque origin, so they cannot read
# other cards or send requests.
_HEADERS = {
    "Content-Security-Policy": (
        "sandbox allow-scripts allow-popups; default-src 'none'; script-src 'unsafe-inline'; "
        "style-src 'unsafe-inline'; img-src data:; media-src data:; font-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Shown(NamedTuple):
    """The selection of cards: at most `limit`, of one flow or all, of one run or the latest ones,
    of runs in a namespace or of all users."""

    metadata: str
    flow: str | None = None
    run: str | None = None
    namespace: str | None = None
    limit: int = 30


def serve(shown: Shown, port: int, interval: int, echo: Callable[[str], object]) -> None:
    """Serve cards on 127.0.0.1 until interrupted.

    Args:
        shown: The selection of cards.
        port: The port; 0 for a free one.
        interval: The seconds after which pages reload.
        echo: Called with the line `Cards are at URL` when the server listens.

    Raises:
        InvalidSetting: If another program listens on the port.
    """
    try:
        listening = socket.create_server(("127.0.0.1", port))
    except OSError as error:
        raise InvalidSetting(
            f"The card server cannot listen on 127.0.0.1:{port} ({error.strerror}): choose another "
            "--port."
        ) from error
    echo(f"Cards are at http://127.0.0.1:{listening.getsockname()[1]}/ (Ctrl-C stops)")
    web.run_app(application(shown, interval), sock=listening, print=lambda *_: None)


def application(shown: Shown, interval: int = 5) -> web.Application:
    """Return the server as an aiohttp application.

    Args:
        shown: The selection of cards.
        interval: The seconds after which pages reload.
    """

    async def index(request: web.Request) -> web.Response:
        answer = html(await asyncio.to_thread(_index, shown))
        answer.headers["Refresh"] = str(interval)
        return answer

    async def one(request: web.Request) -> web.Response:
        with suppress(NotFound, InvalidInput):  # the run was deleted, or the link is mistyped
            found = await asyncio.to_thread(_find, shown, request.match_info["path"])
            if found is not None:
                return html(found.html)
        raise web.HTTPNotFound(text="There is no such card.")

    def html(text: str) -> web.Response:
        body = text.encode("utf-8", "surrogatepass")  # as it is stored
        return web.Response(body=body, content_type="text/html", charset="utf-8", headers=_HEADERS)

    @web.middleware
    async def only_from_here(request: web.Request, handler: Handler) -> web.StreamResponse:
        # All users of this machine can connect. A page that the user visits can make the browser
        # send requests, possibly under a host name that resolves to 127.0.0.1. Following a link
        # from another site is allowed: it does not let that site read the response.
        if not _is_of_this_user(request):
            raise web.HTTPForbidden(text="Cards are shown to the user who serves them alone.")
        if not names_this_machine(request):
            raise web.HTTPMisdirectedRequest(text="Ask for 127.0.0.1 or localhost.")
        visits = request.headers.get("Sec-Fetch-Mode") == "navigate"
        if is_of_another_site(request) and not (visits and "Origin" not in request.headers):
            raise web.HTTPForbidden(text="Cards are not shown to other sites.")
        return await handler(request)

    app = web.Application(middlewares=[only_from_here])
    app.add_routes([web.get("/", index), web.get("/card/{path:.+}", one)])
    return app


def _is_of_this_user(request: web.Request) -> bool:
    """Return whether the client process belongs to this user or root; True if the system does not
    report it."""
    transport = request.transport
    if transport is None:
        return False
    here, there = transport.get_extra_info("sockname"), transport.get_extra_info("peername")
    return holds_connection((0, os.geteuid()), there[:2], here[:2])


def _index(shown: Shown) -> str:
    lines = [
        f'<li><a href="/card/{escape(each.pathspec)}/{each.hash}">{escape(each.pathspec)}</a> '
        f'<span class="type">{escape(each.type)} {escape(each.id or "")}</span></li>'
        for each in islice(_cards(shown), shown.limit)
    ]
    body = f"<ul>{''.join(lines)}</ul>" if lines else "<p>No cards yet.</p>"
    return page("Cards", f"<header><h1>Cards</h1></header>{body}")


def _cards(shown: Shown) -> Iterator[FoundCard]:
    client.metadata(shown.metadata)
    client.namespace(shown.namespace)
    flows = client.Metaflow().flows
    for flow in (each for each in flows if shown.flow in (None, each.id)):
        runs = flow.runs(limit=_RUNS)
        if shown.run is not None:
            runs = (flow[each] for each in (shown.run,) if each in flow)
        for run in runs:
            for step in run:
                for task in step:
                    yield from get_cards(task)


def _find(shown: Shown, path: str) -> FoundCard | None:
    client.metadata(shown.metadata)
    pathspec, _, digest = path.rpartition("/")
    client.namespace(shown.namespace)
    cards = get_cards(pathspec)
    return next((each for each in cards if each.hash == digest), None)
