"""Listening on a port, with bounds on what clients may hold: connections in all and of one address,
and seconds for a TLS handshake, for the head of a request, and to read what was sent.

aiohttp answers requests; this module accepts connections itself, since neither aiohttp nor asyncio
counts a connection before its TLS handshake is over, and both accept without a limit. A connection
that carries no request is *idle*. Where there is no room for a new connection, the oldest idle one
is closed for it: so silent connections cannot keep clients out that have something to ask.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import ipaddress
import logging
import resource
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.log import server_logger

from aflow._core.process import release_memory, share_heaps
from aflow.errors import InvalidSetting

if TYPE_CHECKING:
    from aiohttp.web_protocol import RequestHandler

MOST = 1000  # connections at once
_GOODBYE = 10.0  # seconds for requests that are being answered
_RELEASE = 10.0  # seconds between releases of memory
_SWITCH = 0.0005  # seconds that a thread computes while others wait
_LINGER = 1.0  # seconds in which the rest of a body is thrown away after its refusal
_MALFORMED = 10  # requests that are not HTTP in this time are logged
_SHOWN_AGAIN = 60.0  # seconds after which the log repeats that connections are refused
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
    b"Connection: close\r\nContent-Length: 53\r\n\r\n"
    b'{"error": "Too many connections: try again shortly."}'
)

_log = logging.getLogger("aflow.server")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Bounds(NamedTuple):
    """What clients may hold. `connections` may be open at once, `per_address` of one address (of
    one /64 of IPv6; None: as many as in all). `head` are seconds for a TLS handshake, and for the
    head of a request from its first byte; `idle` those between requests; `unread` those that a
    client may leave unread what was sent; `refused` those in which a connection that is turned away
    may read the refusal; `grace` those in which a new connection is not closed for another."""

    connections: int
    per_address: int | None = None
    head: float = 10.0
    idle: float = 75.0  # more than proxies keep a connection that is idle
    unread: float = 60.0
    refused: float = 2.0
    grace: float = 1.0


def room() -> int:
    """Return how many connections may be open at once: the rest of the descriptors is for the
    work."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if allowed == resource.RLIM_INFINITY else min(MOST, allowed // 2)


def settle() -> None:
    """Freeze the start-up heap (gc.freeze): each full collection would look through all of it, and
    hold up requests for 30 ms and more. Let threads take turns more often: those that read records
    compute, and the event loop would wait 5 ms (Python's default) for each of them, several times a
    request. Let them share their heaps, too."""
    share_heaps()
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(_SWITCH)


@asynccontextmanager
async def listening(
    app: web.Application,
    host: str,
    port: int,
    server: str,
    tls: ssl.SSLContext | None = None,
    bounds: Bounds | None = None,
) -> AsyncIterator[int]:
    """Listen for requests to an application, inside of the block. At its end requests that are
    being answered have some seconds.

    Args:
        app: The application; it is cleaned up at the end.
        host: The address to listen on, or a name of it.
        port: The port; 0 for a free one.
        server: What listens, for the error.
        tls: The certificate and key; None for plain HTTP.
        bounds: How many connections are accepted; None for what the limit of descriptors allows.

    Yields:
        The port, also where 0 was given.

    Raises:
        InvalidSetting: The address cannot be listened at; the error names `server`.
    """
    if bounds is None:
        most = room()
        bounds = Bounds(most, max(1, most // 2))
    connections = _Connections(bounds, tls)
    # The first one, so that it also sees requests that other middlewares refuse.
    app.middlewares.insert(0, connections.mark_busy)
    app.on_response_prepare.append(_guarded)
    runner = web.AppRunner(
        app,
        shutdown_timeout=_GOODBYE,
        keepalive_timeout=bounds.idle,
        lingering_time=_LINGER,
        auto_decompress=False,
    )
    await runner.setup()
    assert runner.server is not None, "it is set up"
    connections.handler = runner.server
    sockets: list[socket.socket] = []
    malformed = _Malformed()
    server_logger.addFilter(malformed)
    try:
        try:
            sockets += await _bound(host, port)
        except OSError as error:
            raise InvalidSetting(
                f"The {server} cannot listen on {host}:{port} ({error.strerror or error}): choose "
                "another --host or --port."
            ) from error
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(connections.accept(group, each)) for each in sockets]
            tasks.append(group.create_task(connections.keep_deadlines()))
            tasks.append(group.create_task(_give_memory_back()))
            try:
                yield sockets[0].getsockname()[1]
            finally:
                for task in tasks:
                    task.cancel()
                for each in sockets:
                    each.close()
                connections.close_idle()
                await runner.cleanup()
    finally:
        server_logger.removeFilter(malformed)
        for each in sockets:
            each.close()
        await runner.cleanup()


async def _guarded(_: web.Request, response: web.StreamResponse) -> None:
    """The default headers of a response: no cache keeps it, no browser guesses its type, or
    shows it within a page of another site; and nothing of what the server is made of."""
    headers = response.headers
    headers["Server"] = "aflow"
    headers.setdefault("X-Content-Type-Options", "nosniff")
    headers.setdefault("Cross-Origin-Resource-Policy", "same-origin")
    headers.setdefault("Cache-Control", "private, no-cache" if "ETag" in headers else "no-store")


class _Malformed(logging.Filter):
    """A request that is not HTTP is one line of the log, and of many a few are: aiohttp logs a
    traceback of each, by which strangers could fill the disk."""

    def __init__(self) -> None:
        super().__init__()
        self._since = 0.0
        self._count = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is logged; it is made shorter."""
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, HttpProcessingError):
            return True
        if record.created - self._since >= _SHOWN_AGAIN:
            self._since, self._count = record.created, 0
        self._count += 1
        record.msg = f"{record.getMessage()}: it is not HTTP ({type(error).__name__})."
        record.args, record.exc_info, record.exc_text = None, None, None
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        return self._count <= _MALFORMED


async def _give_memory_back() -> None:
    """Release memory now and then, in a thread. By itself the C library hands free memory back only
    where it lies at the end of an area: a server under load kept twice what it needed."""
    while True:
        await asyncio.sleep(_RELEASE)
        await asyncio.to_thread(release_memory)


async def _bound(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen on all addresses of the host, with one port. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    sockets: list[socket.socket] = []
    failed: OSError | None = None
    for family, _, _, _, address in dict.fromkeys(found):
        try:
            each = socket.create_server((address[0], port), family=family, backlog=1024)
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                for bound in sockets:
                    bound.close()
                raise
            failed = error  # a machine without IPv6 may still have a name for ::1
            continue
        each.setblocking(False)
        port = each.getsockname()[1]
        sockets.append(each)
    if not sockets:
        raise failed or OSError(f"{host} has no address")
    return sockets


def _network(address: Any) -> str:
    """What counts as one address: of IPv6 a /64, which one client has whole."""
    host = str(address[0]).partition("%")[0]
    if ":" not in host:
        return host
    found = ipaddress.IPv6Address(host)
    return str(found.ipv4_mapped or ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))


class _Connections:
    """All connections of one listener, and when each has to do something next."""

    def __init__(self, bounds: Bounds, tls: ssl.SSLContext | None) -> None:
        self._bounds = bounds
        self._tls = tls
        self.handler: Callable[[], RequestHandler]
        self._by_address: dict[str, set[_Connection]] = {}
        self._by_handler: dict[Any, _Connection] = {}
        self._count = 0
        self._refused: set[_Refused] = set()
        # In the order of time: the first is the one that is idle for the longest.
        self._idle: dict[_Connection, None] = {}
        self._blocked: dict[_Connection, float] = {}
        self._logged_at = float("-inf")
        self._loop = asyncio.get_running_loop()

    # ------------------------------------------------------------ accepting

    async def accept(self, group: asyncio.TaskGroup, listens: socket.socket) -> None:
        """Accept connections until this is cancelled. Running out of descriptors is survived."""
        while True:
            try:
                connection, address = await self._loop.sock_accept(listens)
            except OSError as error:
                if error.errno in _NO_ROOM:
                    self._warn(f"Connections cannot be accepted: {error.strerror}.")
                    self._make_room()
                    await asyncio.sleep(0.1)
                continue
            network = _network(address)
            if self._has_room_for(network):
                admitted = _Connection(self, network, self.handler())
                self._add(admitted)  # now: more may be accepted before its task begins
                group.create_task(self._admit(admitted, connection))
            elif len(self._refused) < max(8, self._bounds.connections // 8):
                refused = _Refused(self._refused)
                self._refused.add(refused)
                group.create_task(self._refuse(refused, connection, network))
            else:  # a flood: there is no room for as many answers
                connection.close()
            await asyncio.sleep(0)  # in a flood others have their turn, too

    def _has_room_for(self, network: str) -> bool:
        """Whether one more connection may be open; an idle one is closed for it."""
        most = self._bounds.per_address
        of_address = self._by_address.get(network, ())
        if most is not None and len(of_address) >= most:
            return self._make_room(network)
        return self._count < self._bounds.connections or self._make_room()

    def _make_room(self, network: str | None = None) -> bool:
        """Close the connection that is idle for the longest; False where there is none. One that
        has just come is left: its request may be on its way."""
        latest = self._loop.time() - self._bounds.grace
        for each in self._idle:
            if each.idle_since > latest:
                return False
            if network is None or each.network == network:
                each.turn_away()
                return True
        return False

    async def _admit(self, connection: _Connection, connected: socket.socket) -> None:
        connection.opening = asyncio.current_task()
        try:
            await self._open(connection, connected)
        except (OSError, TimeoutError, asyncio.CancelledError):
            self.remove(connection)  # no handshake, or none in time, or room was made
        finally:
            connection.opening = None

    async def _refuse(self, refused: _Refused, connected: socket.socket, network: str) -> None:
        self._warn(f"Too many connections: one of {network} is refused.")
        try:
            async with asyncio.timeout(self._bounds.refused):
                await self._open(refused, connected)
                await refused.closed.wait()
        except (OSError, TimeoutError):
            pass  # it has not read why in time
        finally:
            refused.abort()

    async def _open(self, protocol: asyncio.Protocol, connected: socket.socket) -> None:
        # The transport closes the socket, however this ends.
        connected.setblocking(False)
        seconds = None if self._tls is None else self._bounds.head
        await self._loop.connect_accepted_socket(
            lambda: protocol, connected, ssl=self._tls, ssl_handshake_timeout=seconds
        )

    def _warn(self, sentence: str) -> None:
        now = self._loop.time()
        if now - self._logged_at >= _SHOWN_AGAIN:
            self._logged_at = now
            _log.warning("%s", sentence)

    # ------------------------------------------------------------ states of connections

    def _add(self, connection: _Connection) -> None:
        self._count += 1
        self._by_address.setdefault(connection.network, set()).add(connection)
        self._by_handler[connection.handler] = connection
        self.becomes_idle(connection, self._bounds.head)

    def remove(self, connection: _Connection) -> None:
        """Forget a connection that is closed. May be called twice."""
        if self._by_handler.pop(connection.handler, None) is None:
            return
        self._count -= 1
        self._idle.pop(connection, None)
        self._blocked.pop(connection, None)
        others = self._by_address[connection.network]
        others.discard(connection)
        if not others:
            del self._by_address[connection.network]

    def begins(self, connection: _Connection) -> None:
        """Start the time that a connection has for its first head: its handshake is over."""
        self.becomes_idle(connection, self._bounds.head)

    def becomes_idle(self, connection: _Connection, seconds: float) -> None:
        """Give the connection this many seconds, until a request has to be there."""
        connection.idle_since = self._loop.time()
        connection.give_up_at = connection.idle_since + seconds
        self._idle.pop(connection, None)
        self._idle[connection] = None

    def receives(self, connection: _Connection) -> None:
        """Bytes have come: with the first one of a head its time begins."""
        if connection.waits and connection in self._idle:
            connection.waits = False
            self.becomes_idle(connection, self._bounds.head)

    def blocks(self, connection: _Connection) -> None:
        """Note that the client does not read what was sent."""
        self._blocked[connection] = self._loop.time() + self._bounds.unread

    def flows(self, connection: _Connection) -> None:
        """Note that the client reads again."""
        self._blocked.pop(connection, None)

    @web.middleware
    async def mark_busy(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Mark a connection with a request on it as busy; the first middleware."""
        connection = self._by_handler.get(request.protocol)
        if connection is None:  # it is closed already
            return await handler(request)
        self._idle.pop(connection, None)
        try:
            return await handler(request)
        finally:
            if request.protocol in self._by_handler:
                connection.waits = True
                self.becomes_idle(connection, self._bounds.idle)

    async def keep_deadlines(self) -> None:
        """Close connections whose deadline has passed, until this is cancelled."""
        shortest = min(self._bounds.head, self._bounds.idle, self._bounds.unread)
        while True:
            await asyncio.sleep(min(1.0, shortest / 4))
            now = self._loop.time()
            late = [each for each in self._idle if each.give_up_at <= now]
            late += [each for each, at in self._blocked.items() if at <= now]
            for each in late:
                each.abort()

    def close_idle(self) -> None:
        """Close the connections that carry no request."""
        for each in [*self._idle]:
            each.abort()


class _Connection(asyncio.Protocol):
    """One connection: passes all on to aiohttp's handler, and keeps account of it."""

    def __init__(self, connections: _Connections, network: str, handler: RequestHandler) -> None:
        self._connections = connections
        self._transport: asyncio.Transport | None = None
        self.network = network
        self.handler = handler
        self.opening: asyncio.Task[Any] | None = None
        self.idle_since = 0.0
        self.give_up_at = 0.0
        self.waits = False  # for the first byte of a head that is not the connection's first

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The handshake is over, if there was one."""
        # (uvloop's transports are of classes of their own.)
        self._transport = cast("asyncio.Transport", transport)
        self._connections.begins(self)
        self.handler.connection_made(self._transport)

    def data_received(self, data: bytes) -> None:
        """Bytes of a request."""
        self._connections.receives(self)
        self.handler.data_received(data)

    def eof_received(self) -> None:
        """The client sends no more."""
        self.handler.eof_received()

    def pause_writing(self) -> None:
        """The client does not read."""
        self._connections.blocks(self)
        self.handler.pause_writing()

    def resume_writing(self) -> None:
        """The client reads."""
        self._connections.flows(self)
        self.handler.resume_writing()

    def connection_lost(self, error: BaseException | None) -> None:
        """It is closed."""
        self._connections.remove(self)
        self.handler.connection_lost(error)

    def turn_away(self) -> None:
        """Close it for another one; a client that has not had an answer yet gets one."""
        transport = self._transport
        if transport is None or transport.get_extra_info("sslcontext") is not None:
            self.abort()  # closing TLS waits for the client
            return
        self._connections.remove(self)
        if not self.waits:
            transport.write(_FULL)
        transport.close()

    def abort(self) -> None:
        """Close it at once, also in the middle of its handshake."""
        self._connections.remove(self)
        if self.opening is not None:
            self.opening.cancel()
        elif self._transport is not None:
            self._transport.abort()


class _Refused(asyncio.Protocol):
    """A connection for which there is no room. It is closed when the client has read why: closed at
    once with unread bytes of a request in it, it would be reset, and the answer lost."""

    def __init__(self, others: set[_Refused]) -> None:
        self._others = others
        self._transport: asyncio.Transport | None = None
        self.closed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say it."""
        # (uvloop's transports are of classes of their own.)
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(_FULL)
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def connection_lost(self, error: BaseException | None) -> None:
        """It is closed."""
        self.closed.set()

    def abort(self) -> None:
        """Close it."""
        self._others.discard(self)
        if self._transport is not None:
            self._transport.abort()
