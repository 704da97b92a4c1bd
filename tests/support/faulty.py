"""An HTTP proxy that injects faults into some requests.

    with FaultyProxy("http://127.0.0.1:9000", seed=1) as proxy:
        proxy.faults.append(Fault("reset", chance=0.1, method="PUT"))
        ...  # send requests to proxy.url; proxy.seen lists the requests and their faults

Headers and bodies are forwarded unchanged, so that signatures remain valid. The faulty requests are
chosen at random from the seed. The second request that matches a fault always gets it, so that no
test passes because no fault happened. At most six requests for one target, and three in a row, get
random faults, so that a client that tries eight times never fails by chance.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import random
import re
import socket
import struct
import threading
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, NamedTuple, Self

import aiohttp
from aiohttp import web
from yarl import URL

Kind = Literal["answer", "reset", "lost", "cut", "flipped", "dropped", "late"]
_HOP_BY_HOP = frozenset({"connection", "expect", "keep-alive", "transfer-encoding"})


@dataclass
class Fault:
    """A kind of fault, the requests that can get it (`method` and `target` are regular expressions;
    `target` is searched in path?query), its probability (`chance`) and maximum number (`times`).

    answer   the response is an error of S3 with `status` and `code`; nothing is forwarded
    reset    the connection is reset before the request is forwarded
    lost     the server processes the request, and the connection is reset before the response
    cut      the response's body ends in the middle, and the connection is closed
    flipped  one bit of the response's body is flipped
    dropped  the connection is reset in the middle of the request's body
    late     the response takes `seconds` longer
    """

    kind: Kind
    chance: float = 1.0
    method: str = ".*"
    target: str = ""
    times: int | None = None
    status: int = 503
    code: str = "SlowDown"
    seconds: float = 2.0
    met: int = field(default=0, init=False)
    hits: int = field(default=0, init=False)

    def strikes(self, method: str, target: str, lot: float) -> bool:
        """Return whether this request gets the fault."""
        if not re.fullmatch(self.method, method) or not re.search(self.target, target):
            return False
        self.met += 1
        if self.hits == self.times or not (lot < self.chance or self.met == 2):
            return False
        self.hits += 1
        return True


class Seen(NamedTuple):
    """A request and the kind of its fault; "" if it had none."""

    method: str
    target: str
    kind: str


class FaultyProxy:
    """A proxy in front of the server at `upstream`, in a separate thread.

    With `deaf` it removes the conditions (If-Match, If-None-Match) from all requests, like servers
    that do not support them.
    """

    def __init__(self, upstream: str, *, seed: int = 0, deaf: bool = False) -> None:
        self._upstream = upstream
        self._deaf = deaf
        self._lots = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="faulty")
        self._closing = asyncio.Event()
        self._rows = Counter[tuple[str, str]]()  # consecutive faults by method and target
        self._spoiled = Counter[tuple[str, str]]()  # all faults by method and target
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.url = ""

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def requests(self, method: str = ".*", target: str = "") -> list[Seen]:
        """Return the requests so far whose method and target match the regular expressions."""
        return [
            each
            for each in self.seen
            if re.fullmatch(method, each.method) and re.search(target, each.target)
        ]

    async def _open(self) -> None:
        self._session = aiohttp.ClientSession(auto_decompress=False)
        self._runner = web.ServerRunner(web.Server(self._handle), shutdown_timeout=0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{_port_of(self._runner)}"

    async def _close(self) -> None:
        self._closing.set()
        await self._runner.cleanup()
        await self._session.close()

    def _fault(self, method: str, target: str) -> Fault | None:
        at_random = self._rows[method, target] < 3 and self._spoiled[method, target] < 6
        self._rows[method, target] += 1
        for each in self.faults:
            lot = self._lots.random()
            if (at_random or each.chance == 1) and each.strikes(method, target, lot):
                self._spoiled[method, target] += 1
                return each
        del self._rows[method, target]
        return None

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        fault = self._fault(request.method, request.raw_path)
        kind = fault.kind if fault else ""
        self.seen.append(Seen(request.method, request.raw_path, kind))
        if request.headers.get("Expect", "").lower() == "100-continue":
            assert request.transport is not None, "it was connected a moment ago"
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if kind == "dropped" and request.can_read_body:
            await request.content.readany()
            return _reset(request)
        body = await request.content.read()
        if kind in ("reset", "dropped"):
            return _reset(request)
        if fault and kind == "answer":
            return _refusal(request.method, fault)
        if fault and kind == "late":
            await self._until_closed(fault.seconds)
        return await self._passed_on(request, body, kind)

    async def _until_closed(self, seconds: float) -> None:
        """Wait for this time, or until the proxy is closing."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), seconds)

    async def _passed_on(
        self, request: web.BaseRequest, body: bytes, kind: str
    ) -> web.StreamResponse:
        gone = {*_HOP_BY_HOP, *(("if-none-match", "if-match") if self._deaf else ())}
        headers = [
            (name, value) for name, value in request.headers.items() if name.lower() not in gone
        ]
        url = URL(self._upstream + request.raw_path, encoded=True)
        async with self._session.request(
            request.method, url, headers=headers, data=io.BytesIO(body) if body else None,
            allow_redirects=False,
            skip_auto_headers=["User-Agent", "Accept", "Accept-Encoding", "Content-Type"],
        ) as answer:  # fmt: skip
            data = bytearray(await answer.read())
            if kind == "lost":
                return _reset(request)
            if kind == "flipped" and data:
                data[len(data) // 2] ^= 1
            passed = web.StreamResponse(status=answer.status, reason=answer.reason)
            passed.headers.extend(
                (name, value)
                for name, value in answer.headers.items()
                if name.lower() not in _HOP_BY_HOP
            )
            if request.method != "HEAD":
                passed.content_length = len(data)
            await passed.prepare(request)
            if kind == "cut" and len(data) > 1:
                await passed.write(bytes(data[: len(data) // 2]))
                assert request.transport is not None, "it was connected a moment ago"
                request.transport.close()
                return passed
            if request.method != "HEAD" and data:
                await passed.write(bytes(data))
            await passed.write_eof()
            return passed


def _port_of(runner: web.ServerRunner) -> int:
    port: int = runner.addresses[0][1]
    return port


def _refusal(method: str, fault: Fault) -> web.Response:
    text = f"<Error><Code>{fault.code}</Code><Message>as the test wants</Message></Error>"
    return web.Response(
        status=fault.status,
        content_type="application/xml",
        headers={"x-amzn-errortype": fault.code},  # the error code for services that use JSON
        text="" if method == "HEAD" else text,
    )


def _reset(request: web.BaseRequest) -> web.StreamResponse:
    """Close the connection with a TCP reset."""
    if request.transport is not None:
        sock = request.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()
    return web.Response()
