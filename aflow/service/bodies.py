"""Bodies of requests, of which nobody knows yet how large and how slow they are."""

from __future__ import annotations

import asyncio

from aiohttp import web

PATIENCE = 30.0  # seconds that any body may take
_SLOWEST = 128 << 10  # bytes a second of one that is large


async def body_of(request: web.Request, most: int, patience: float = PATIENCE) -> bytes:
    """The body, of at most so many bytes, which has `patience` seconds, and more if it may be
    large. Raises HTTPRequestEntityTooLarge (413),
    HTTPRequestTimeout (408) for one that does not come to its end, HTTPBadRequest for one that
    breaks off, and HTTPUnsupportedMediaType (415) for one that is compressed: a few bytes of that
    can be gigabytes."""
    if "Content-Encoding" in request.headers:
        raise web.HTTPUnsupportedMediaType(reason="The body may not be compressed.")
    if (request.content_length or 0) > most:
        raise web.HTTPRequestEntityTooLarge(most, request.content_length or 0)
    data = bytearray()
    try:
        async with asyncio.timeout(patience + most / _SLOWEST):
            async for part in request.content.iter_any():
                data += part
                if len(data) > most:
                    raise web.HTTPRequestEntityTooLarge(most, len(data))
    except TimeoutError as error:
        raise web.HTTPRequestTimeout(reason="The body did not come to its end in time.") from error
    except web.RequestPayloadError as error:
        raise web.HTTPBadRequest(reason="The body is cut off, or not framed as it says.") from error
    return bytes(data)
