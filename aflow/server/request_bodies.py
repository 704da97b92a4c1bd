"""Validation of request data: limits on the size of bodies, the time to receive them and the number
of objects they decode to; whole numbers in the query."""

from __future__ import annotations

import asyncio

from aiohttp import web

from aflow.errors import InvalidInput

LARGEST_NUMBER = 999_999_999
PATIENCE = 30.0  # seconds to receive a body of any size
LARGEST_JSON = 2 << 20  # bytes
_SLOWEST = 128 << 10  # minimum rate of a large body, in bytes per second
_CONTAINERS = 100_000  # arrays and objects: one byte each to send, about 60 bytes of memory
_VALUES = 1_000_000


async def body_of(request: web.Request, most: int, patience: float = PATIENCE) -> bytes:
    """Return the body of a request, within limits of size and time.

    Args:
        request: The request whose body is read.
        most: The maximum size of the body, in bytes.
        patience: The seconds to receive the body; large values of `most` add to them.

    Raises:
        HTTPRequestEntityTooLarge: If the body is larger (413).
        HTTPRequestTimeout: If the body is not complete in time (408).
        HTTPBadRequest: If the body is truncated or its framing is malformed (400).
        HTTPUnsupportedMediaType: If the body is compressed (415): a few compressed bytes can expand
            to gigabytes.
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
    """Return the body of a request, which must be JSON (else 415).

    Requiring the content type protects from pages of other sites, which cannot send it without a
    preflight request. Raises the errors of `body_of` and `check_json`.

    Args:
        request: The request whose body is read.
    """
    check_type(request, "application/json")
    data = await body_of(request, LARGEST_JSON)
    check_json(data)
    return data


def check_type(request: web.Request, type_: str) -> None:
    """Check that the body of a request has a media type, else raise HTTPUnsupportedMediaType (415).

    Args:
        request: The request; only its header is read.
        type_: The required media type.
    """
    if request.content_type != type_:
        raise web.HTTPUnsupportedMediaType(reason=f"The body has to be {type_}.")


def check_json(data: bytes) -> None:
    """Check that JSON does not decode to an excessive number of objects.

    Characters within strings are counted, too; the limits are far above what requests need.

    Args:
        data: The unparsed body.

    Raises:
        HTTPRequestEntityTooLarge: If there are too many values (413).
    """
    if (
        data.count(b"[") + data.count(b"{") > _CONTAINERS
        or data.count(b",") + data.count(b":") > _VALUES
    ):
        raise web.HTTPRequestEntityTooLarge(
            _VALUES, reason="The body has too many values for one request."
        )


def number_of(request: web.Request, name: str, default: int, most: int = LARGEST_NUMBER) -> int:
    """Return a whole number from the path or the query of a request.

    Args:
        request: The request.
        name: The name of the path or query parameter.
        default: The result if the parameter is missing.
        most: The maximum value.

    Raises:
        InvalidInput: If the value is not a whole number from 0 to `most`.
    """
    text = request.match_info.get(name) or request.query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 9) or int(text) > most:
        raise InvalidInput(f"{name} has to be a whole number from 0 to {most}.")
    return int(text)
