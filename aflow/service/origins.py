"""Requests that browsers send for pages of others.

A page of any site can have the browser of somebody who looks at it send requests to that somebody's
own machine. Where no key is asked for, these are told by what browsers say of every request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiohttp import web

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


def names_this_machine(request: web.Request) -> bool:
    """Whether it is addressed to this machine by a name that no site can take: a site can have its
    own name mean this machine, but not these."""
    host = request.host.lower()
    return host in _NAMES or host.rpartition(":")[0] in _NAMES


def is_of_another_site(request: web.Request) -> bool:
    """Whether a browser sends it for a page that is not of this server."""
    if request.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
        return True
    origin = request.headers.get("Origin")
    return origin is not None and origin != f"{request.scheme}://{request.host}"
