"""Listening on a port, so that whoever connects cannot use up the process."""

from __future__ import annotations

import asyncio
import gc
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

from aiohttp import web

from aflow.errors import InvalidSetting

if TYPE_CHECKING:
    import ssl

MOST = 1000  # connections at once
IDLE = 75.0  # seconds for the head of a request; more than proxies keep a connection that is idle
_GOODBYE = 10.0  # seconds for requests that are being answered
_LINGER = 1.0  # seconds in which the rest of a body is thrown away after its refusal

_FULL = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class _TurnedAway(asyncio.Protocol):
    """A connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport), "it is a connection"
        transport.write(_FULL)
        transport.close()


def settle() -> None:
    """What a program has by now, it keeps. To look for garbage in all of that again and again would
    hold up whoever asks just then: by 30 ms and more, each time."""
    gc.collect()
    gc.freeze()


def room() -> int:
    """How many connections may be open at once: the rest of the descriptors is for the work."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if allowed == resource.RLIM_INFINITY else min(MOST, allowed // 2)


class Bounds(NamedTuple):
    """Of connections: how many may be open at once, and seconds that one may be idle. One whose
    request has not come whole, up to its body, counts as idle, however slowly it drips in."""

    connections: int
    idle: float = IDLE


@asynccontextmanager
async def listening(
    app: web.Application,
    host: str,
    port: int,
    who: str,
    tls: ssl.SSLContext | None = None,
    bounds: Bounds | None = None,
) -> AsyncIterator[int]:
    """Answer requests with the application, and give the port; 0 takes a free one. At the end those
    that are being answered have a while. Raises InvalidSetting, which names `who` cannot listen."""
    most, idle = bounds or Bounds(room())
    runner = web.AppRunner(
        app,
        shutdown_timeout=_GOODBYE,
        keepalive_timeout=idle,
        lingering_time=_LINGER,
        auto_decompress=False,
    )
    await runner.setup()
    server = runner.server
    assert server is not None, "it is set up"

    def connected() -> asyncio.BaseProtocol:
        return server() if len(server.connections) < most else _TurnedAway()

    try:
        try:
            listens = await asyncio.get_running_loop().create_server(
                connected, host, port, ssl=tls, backlog=128
            )
        except OSError as error:
            raise InvalidSetting(
                f"The {who} cannot listen on {host}:{port} ({error.strerror}): choose another "
                "--host or --port."
            ) from error
        try:
            yield listens.sockets[0].getsockname()[1]
        finally:
            listens.close()
    finally:
        await runner.cleanup()
