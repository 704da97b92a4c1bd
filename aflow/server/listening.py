"""Listening on a port, with limits on the resources that clients can hold: connections in total and
per address, and timeouts for the TLS handshake, the head of a request and unread responses.

aiohttp handles requests; this module accepts the connections itself, because neither aiohttp nor
asyncio counts a connection before its TLS handshake is complete, and both accept without a limit. A
connection without a request in progress is *idle*. If the limit is reached, the oldest idle
connection is closed for a new one, so silent connections cannot lock out active clients.
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

MOST = 1000  # simultaneous connections
_GOODBYE = 10.0  # seconds for requests in progress at shutdown
_RELEASE = 10.0  # seconds between releases of memory
_SWITCH = 0.0005  # the interpreter's thread switch interval, in seconds
_LINGER = 1.0  # seconds for which the rest of a rejected body is read and discarded
_MALFORMED = 10  # malformed requests logged per _SHOWN_AGAIN seconds
_SHOWN_AGAIN = 60.0  # seconds before a warning about refused connections is repeated
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
    b"Connection: close\r\nContent-Length: 53\r\n\r\n"
    b'{"error": "Too many connections: try again shortly."}'
)

_log = logging.getLogger("aflow.server")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Bounds(NamedTuple):
    """The limits of a listener; times are in seconds.

    `connections` is the number of open connections in total, `per_address` that of one address (of
    one /64 of IPv6; None: no separate limit). `head` is the timeout of a TLS handshake, and of the
    head of a request from its first byte; `idle` that between requests; `unread` that of a client
    that does not read the response; `refused` that of a rejected connection to read the refusal. A
    connection is not closed in favour of a new one during its first `grace` seconds."""

    connections: int
    per_address: int | None = None
    head: float = 10.0
    idle: float = 75.0  # longer than proxies keep an idle connection
    unread: float = 60.0
    refused: float = 2.0
    grace: float = 1.0


def room() -> int:
    """Return the maximum number of open connections, which leaves descriptors for other work."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if allowed == resource.RLIM_INFINITY else min(MOST, allowed // 2)


def settle() -> None:
    """Tune the process for serving requests.

    Freeze the start-up heap (gc.freeze), since a full collection of it would delay requests by 30
    ms or more. Shorten the thread switch interval: while threads parse records, the event loop
    would wait 5 ms (Python's default) for each of them, several times per request. Let threads
    share malloc arenas."""
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
    """Listen for requests to an application within the block. When it ends, requests in progress
    have some seconds to complete.

    Args:
        app: The application; it is cleaned up when the block ends.
        host: The address or host name to listen on.
        port: The port; 0 for a free one.
        server: The name of the server, for the error.
        tls: The certificate and key; None for plain HTTP.
        bounds: The limits on connections; None to derive them from the limit of descriptors.

    Yields:
        The port that was bound.

    Raises:
        InvalidSetting: If the address cannot be bound; the error names `server`.
    """
    if bounds is None:
        most = room()
        bounds = Bounds(most, max(1, most // 2))
    connections = _Connections(bounds, tls)
    # The first middleware, so that it also sees requests that the others reject.
    app.middlewares.insert(0, connections.mark_busy)
    app.on_response_prepare.append(_guarded)
    runner = web.AppRunner(
        app,
        # Twice: aiohttp waits for the response, then for the end of the handler.
        shutdown_timeout=_GOODBYE / 2,
        keepalive_timeout=bounds.idle,
        lingering_time=_LINGER,
        auto_decompress=False,
    )
    await runner.setup()
    assert runner.server is not None, "it is set up"
    connections.handler = runner.server
    malformed = _Malformed()
    server_logger.addFilter(malformed)
    try:
        try:
            sockets = await _bound(host, port)
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
        await runner.cleanup()


async def _guarded(_: web.Request, response: web.StreamResponse) -> None:
    """Set the default headers of a response: no caching, no content sniffing, no embedding by other
    sites, and no details about the server software."""
    headers = response.headers
    headers["Server"] = "aflow"
    headers.setdefault("X-Content-Type-Options", "nosniff")
    headers.setdefault("Cross-Origin-Resource-Policy", "same-origin")
    headers.setdefault("Cache-Control", "private, no-cache" if "ETag" in headers else "no-store")


class _Malformed(logging.Filter):
    """A log filter that shortens malformed requests to one line and limits their number: aiohttp
    logs a traceback for each, so strangers could fill the disk."""

    def __init__(self) -> None:
        super().__init__()
        self._since = 0.0
        self._count = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Shorten the record, and return whether to log it."""
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
    """Release free memory regularly, in a thread. malloc itself returns free memory only from the
    end of an arena: a server under load kept twice the memory it needed."""
    while True:
        await asyncio.sleep(_RELEASE)
        await asyncio.to_thread(release_memory)


async def _bound(host: str, port: int) -> list[socket.socket]:
    """Return listening sockets for all addresses of the host, with one port. Raises OSError."""
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
            failed = error  # a machine without IPv6 may still resolve a name to ::1
            continue
        each.setblocking(False)
        port = each.getsockname()[1]
        sockets.append(each)
    if not sockets:
        raise failed or OSError(f"{host} has no address")
    return sockets


def _network(address: Any) -> str:
    """Return the address for the limit per client: for IPv6 the /64, which one client usually
    owns."""
    host = str(address[0]).partition("%")[0]
    if ":" not in host:
        return host
    found = ipaddress.IPv6Address(host)
    return str(found.ipv4_mapped or ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))


class _Connections:
    """All connections of one listener, with their deadlines."""

    def __init__(self, bounds: Bounds, tls: ssl.SSLContext | None) -> None:
        self._bounds = bounds
        self._tls = tls
        self.handler: Callable[[], RequestHandler]
        self._by_address: dict[str, set[_Connection]] = {}
        self._by_handler: dict[Any, _Connection] = {}
        self._count = 0
        self._refusing = 0  # connections that are sent a refusal
        # Ordered by time: the first has been idle for the longest time.
        self._idle: dict[_Connection, None] = {}
        self._blocked: dict[_Connection, float] = {}
        self._logged_at = float("-inf")
        self._loop = asyncio.get_running_loop()

    # ------------------------------------------------------------ accepting

    async def accept(self, group: asyncio.TaskGroup, listens: socket.socket) -> None:
        """Accept connections until cancelled; continue if descriptors run out."""
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
                self._add(admitted)  # before its task starts, since more may be accepted until then
                group.create_task(self._admit(admitted, connection))
            elif self._refusing < max(8, self._bounds.connections // 8):
                self._refusing += 1
                group.create_task(self._refuse(connection, network))
            else:  # a flood: too many connections to send each a refusal
                connection.close()
            await asyncio.sleep(0)  # lets other tasks run during a flood

    def _has_room_for(self, network: str) -> bool:
        """Return whether there is room for another connection; closes an idle one if necessary."""
        most = self._bounds.per_address
        of_address = self._by_address.get(network, ())
        if most is not None and len(of_address) >= most:
            return self._make_room(network)
        return self._count < self._bounds.connections or self._make_room()

    def _make_room(self, network: str | None = None) -> bool:
        """Close the connection that has been idle for the longest time. Returns False if there is
        none.

        New connections are spared: their request may be on its way."""
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
            self.remove(connection)  # handshake failed or timed out, or closed for another
        finally:
            connection.opening = None

    async def _refuse(self, connected: socket.socket, network: str) -> None:
        refused = _Refused()
        self._warn(f"Too many connections: one of {network} is refused.")
        try:
            async with asyncio.timeout(self._bounds.refused):
                await self._open(refused, connected)
                await refused.closed.wait()
        except (OSError, TimeoutError):
            pass  # it did not read the refusal in time
        finally:
            self._refusing -= 1
            refused.abort()

    async def _open(self, protocol: asyncio.Protocol, connected: socket.socket) -> None:
        # The transport closes the socket in all cases.
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
        self.becomes_idle(connection)

    def remove(self, connection: _Connection) -> None:
        """Remove a closed connection. May be called twice."""
        if self._by_handler.pop(connection.handler, None) is None:
            return
        self._count -= 1
        self._idle.pop(connection, None)
        self._blocked.pop(connection, None)
        others = self._by_address[connection.network]
        others.discard(connection)
        if not others:
            del self._by_address[connection.network]

    def becomes_idle(self, connection: _Connection, seconds: float | None = None) -> None:
        """Mark the connection as idle; it must receive a request within this many seconds (None: as
        many as the head of a request may take)."""
        connection.idle_since = self._loop.time()
        timeout = self._bounds.head if seconds is None else seconds
        connection.give_up_at = connection.idle_since + timeout
        self._idle.pop(connection, None)
        self._idle[connection] = None

    def receives(self, connection: _Connection) -> None:
        """Handle received bytes: the first byte of a head starts its timeout."""
        if connection.waits and connection in self._idle:
            connection.waits = False
            self.becomes_idle(connection)

    def blocks(self, connection: _Connection) -> None:
        """Start the timeout of a client that does not read the response."""
        self._blocked[connection] = self._loop.time() + self._bounds.unread

    def flows(self, connection: _Connection) -> None:
        """Stop the timeout: the client reads again."""
        self._blocked.pop(connection, None)

    @web.middleware
    async def mark_busy(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Mark a connection as busy during its request; installed as the first middleware."""
        connection = self._by_handler.get(request.protocol)
        if connection is None:  # already closed
            return await handler(request)
        self._idle.pop(connection, None)
        try:
            return await handler(request)
        finally:
            if request.protocol in self._by_handler:
                connection.waits = True
                self.becomes_idle(connection, self._bounds.idle)

    async def keep_deadlines(self) -> None:
        """Close connections whose deadline has passed, until cancelled."""
        shortest = min(self._bounds.head, self._bounds.idle, self._bounds.unread)
        while True:
            await asyncio.sleep(min(1.0, shortest / 4))
            now = self._loop.time()
            late = [each for each in self._idle if each.give_up_at <= now]
            late += [each for each, at in self._blocked.items() if at <= now]
            for each in late:
                each.abort()

    def close_idle(self) -> None:
        """Close the connections without a request in progress."""
        for each in [*self._idle]:
            each.abort()


class _Connection(asyncio.Protocol):
    """One connection: forwards all events to aiohttp's handler, and reports its state."""

    def __init__(self, connections: _Connections, network: str, handler: RequestHandler) -> None:
        self._connections = connections
        self._transport: asyncio.Transport | None = None
        self.network = network
        self.handler = handler
        self.opening: asyncio.Task[Any] | None = None
        self.idle_since = 0.0
        self.give_up_at = 0.0
        self.waits = False  # for the first byte of the next request's head

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Handle the end of the handshake, if there is one."""
        # (uvloop's transports do not derive from asyncio.Transport.)
        self._transport = cast("asyncio.Transport", transport)
        self._connections.becomes_idle(self)
        self.handler.connection_made(self._transport)

    def data_received(self, data: bytes) -> None:
        """Forward bytes of a request."""
        self._connections.receives(self)
        self.handler.data_received(data)

    def eof_received(self) -> None:
        """Forward the end of the client's input."""
        self.handler.eof_received()

    def pause_writing(self) -> None:
        """Handle a full write buffer: the client does not read."""
        self._connections.blocks(self)
        self.handler.pause_writing()

    def resume_writing(self) -> None:
        """Handle a drained write buffer."""
        self._connections.flows(self)
        self.handler.resume_writing()

    def connection_lost(self, error: BaseException | None) -> None:
        """Handle the end of the connection."""
        self._connections.remove(self)
        self.handler.connection_lost(error)

    def turn_away(self) -> None:
        """Close the connection in favour of another one; send a 503 if it never had a response."""
        transport = self._transport
        if transport is None or transport.get_extra_info("sslcontext") is not None:
            self.abort()  # a regular close of TLS would wait for the client
            return
        self._connections.remove(self)
        if not self.waits:
            transport.write(_FULL)
        transport.close()

    def abort(self) -> None:
        """Close the connection immediately, even during its handshake."""
        self._connections.remove(self)
        if self.opening is not None:
            self.opening.cancel()
        elif self._transport is not None:
            self._transport.abort()


class _Refused(asyncio.Protocol):
    """A connection that is rejected because the limit is reached. It is closed after the client has
    read the refusal: closing a socket with unread input resets the connection, and the refusal
    would be lost."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self.closed = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the refusal."""
        # (uvloop's transports do not derive from asyncio.Transport.)
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(_FULL)
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def connection_lost(self, error: BaseException | None) -> None:
        """Handle the end of the connection."""
        self.closed.set()

    def abort(self) -> None:
        """Close the connection immediately."""
        if self._transport is not None:
            self._transport.abort()
