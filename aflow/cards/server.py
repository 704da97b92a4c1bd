"""A small server that shows cards as they come: for the machine that it runs on."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from aflow.cards.get import FoundCard, get_cards
from aflow.cards.page import page

if TYPE_CHECKING:
    from aiohttp import web

_RUNS = 5  # of each flow
_RELOAD = "<script>setTimeout(()=>location.reload(),3000)</script>"


def serve(metadata: str, flow: str | None, run: str | None, port: int) -> None:
    """Serve on 127.0.0.1 until it is interrupted. Raises MissingExtra without aiohttp."""
    try:
        from aiohttp import web
    except ImportError as error:
        from aflow.errors import MissingExtra

        raise MissingExtra("The card server needs aiohttp: install aflow[server].") from error
    web.run_app(
        application(metadata, flow, run), host="127.0.0.1", port=port, print=lambda *_: None
    )


def application(metadata: str, flow: str | None, run: str | None) -> web.Application:
    """The server as an application of aiohttp."""
    from aiohttp import web

    async def index(request: web.Request) -> web.Response:
        import asyncio

        return html(await asyncio.to_thread(_index, metadata, flow, run))

    async def one(request: web.Request) -> web.Response:
        import asyncio

        found = await asyncio.to_thread(_find, metadata, request.match_info["path"])
        if found is None:
            raise web.HTTPNotFound(text="There is no such card.")
        return html(found.html)

    def html(text: str) -> web.Response:
        return web.Response(text=text, content_type="text/html")

    app = web.Application()
    app.add_routes([web.get("/", index), web.get("/card/{path:.+}", one)])
    return app


def _index(metadata: str, flow: str | None, run: str | None) -> str:
    lines = [
        f'<li><a href="/card/{escape(each.pathspec)}/{each.hash}">{escape(each.pathspec)}</a> '
        f'<span class="type">{escape(each.type)} {escape(each.id or "")}</span></li>'
        for each in _cards(metadata, flow, run)
    ]
    body = f"<ul>{''.join(lines)}</ul>" if lines else "<p>No cards yet.</p>"
    return page("Cards", f"<header><h1>Cards</h1></header>{body}{_RELOAD}")


def _cards(metadata: str, flow: str | None, run: str | None) -> list[FoundCard]:
    from aflow import client

    client.metadata(metadata)
    client.namespace(None)
    flows = client.Metaflow().flows if flow is None else [client.Flow(flow)]
    found: list[FoundCard] = []
    for each in flows:
        runs = [each[run]] if run is not None else each.runs(limit=_RUNS)
        for one in runs:
            for step in one:
                for task in step:
                    found += get_cards(task)
    return found


def _find(metadata: str, path: str) -> FoundCard | None:
    from aflow import client

    client.metadata(metadata)
    pathspec, _, digest = path.rpartition("/")
    client.namespace(None)
    cards = get_cards(pathspec)
    return next((each for each in cards if each.hash == digest), None)
