"""Validation of what requests bring: bodies are bounded in size, in the time that they may take and
in the objects that they decode to; and whole numbers of the query."""

from __future__ import annotations

import asyncio

from aiohttp import web

from aflow.errors import InvalidInput

LARGEST_NUMBER = 999_999_999
PATIENCE = 30.0  # seconds that any body may take
LARGEST_JSON = 2 << 20  # bytes
_SLOWEST = 128 << 10  # bytes a second of one that is large
_CONTAINERS = 100_000  # arrays and objects of a body: each is a byte to send, and 60 to keep
_VALUES = 1_000_000


async def body_of(request: web.Request, most: int, patience: float = PATIENCE) -> bytes:
    """Return the body, of at most this many bytes, which has `patience` seconds, and more if it may
    be large.

    Args:
        request: The request whose body is read.
        most: How many bytes the body may have.
        patience: How many seconds the client has to send it.

    Raises:
        HTTPRequestEntityTooLarge: The body is larger (413).
        HTTPRequestTimeout: The body does not come to its end in time (408).
        HTTPBadRequest: The connection breaks off.
        HTTPUnsupportedMediaType: The body is compressed: a few bytes of that can be gigabytes
            (415).
    """
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


async def json_of(request: web.Request) -> bytes:
    """Return a body that says it is JSON (415): that is required, since a page of another site
    cannot send it without a preflight request. Raises what `body_of` and `check_json` raise.

    Args:
        request: The request whose body is read.
    """
    check_type(request, "application/json")
    data = await body_of(request, LARGEST_JSON)
    check_json(data)
    return data


def check_type(request: web.Request, type_: str) -> None:
    """Refuse a body of another type (415).

    Args:
        request: The request, of which only the header is looked at.
        type_: The media type that is required.
    """
    if request.content_type != type_:
        raise web.HTTPUnsupportedMediaType(reason=f"The body has to be {type_}.")


def check_json(data: bytes) -> None:
    """Refuse JSON of which far more objects would be made than its bytes (413). Characters inside
    of texts count, too: the limits are far above what requests have.

    Args:
        data: The body, before it is parsed.

    Raises:
        HTTPRequestEntityTooLarge: There are too many values (413).
    """
    if (
        data.count(b"[") + data.count(b"{") > _CONTAINERS
        or data.count(b",") + data.count(b":") > _VALUES
    ):
        raise web.HTTPRequestEntityTooLarge(
            _VALUES, reason="The body has too many values for one request."
        )


def number_of(request: web.Request, name: str, default: int, most: int = LARGEST_NUMBER) -> int:
    """Return a whole number of the query, or of the path, from 0 to `most`; `default` where it is
    not there.

    Args:
        request: The request.
        name: The name of a part of the path, or of a parameter of the URL.
        default: What is returned where the name is missing.
        most: The greatest number that is allowed.

    Raises:
        InvalidInput: It is not a whole number, or is greater than `most`.
    """
    text = request.match_info.get(name) or request.query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 9) or int(text) > most:
        raise InvalidInput(f"{name} has to be a whole number from 0 to {most}.")
    return int(text)
