"""What every body has to be."""

from __future__ import annotations

from aiohttp import web


def demand(request: web.Request, type_: str) -> None:
    """Refuse a body of another type (415). JSON is asked for by name, since a page of another site
    cannot send that without being asked for leave first."""
    if request.content_type != type_:
        raise web.HTTPUnsupportedMediaType(reason=f"The body has to be {type_}.")
