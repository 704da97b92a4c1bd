"""What every body has to be, and how requests are refused."""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web

from aflow.service.bodies import body_of

LARGEST_JSON = 2 << 20  # bytes


async def json_of(request: web.Request) -> bytes:
    """A body that says it is JSON (415): that is asked for by name, since a page of another site
    cannot send it without being asked for leave first. Raises what `body_of` raises."""
    demand(request, "application/json")
    return await body_of(request, LARGEST_JSON)


def demand(request: web.Request, type_: str) -> None:
    """Refuse a body of another type (415)."""
    if request.content_type != type_:
        raise web.HTTPUnsupportedMediaType(reason=f"The body has to be {type_}.")


def refusal(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """The answer to what cannot be done."""
    return web.json_response({"error": sentence}, status=status, headers=headers)
