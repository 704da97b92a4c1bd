"""The API of Metaflow's metadata service: one of the APIs of `server/app.py`.

Database queries run in threads. A list longer than a chunk is streamed chunk by chunk; shorter
responses carry an ETag, and are replaced by a 304 if the client has them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http import HTTPStatus
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from aflow._core import ids
from aflow._core.clock import LATEST
from aflow.errors import (
    AflowError,
    InvalidMessage,
    InvalidName,
    MetadataUnavailable,
    MissingExtra,
    RegistrationRefused,
)
from aflow.metadata import wire
from aflow.metadata.base import Batch, RunRecord, WorkerRecord
from aflow.metadata.metaflow.service import OWN
from aflow.metadata.wire import WRITES
from aflow.server.metaflow import checks
from aflow.server.metaflow import routes as flows
from aflow.server.metaflow.aflow_runs import Lister, OwnRuns
from aflow.server.metaflow.messages import CHUNK, PROTOCOL, Asked, JsonResponse
from aflow.server.metaflow.routes import ROUTES, ServiceRoute

try:
    from aiohttp import web

    from aflow.server.auth import OWN_CALLS, refusal, send_stream
    from aflow.server.listening import Handler
    from aflow.server.request_bodies import body_of, check_json
except ImportError as error:
    raise MissingExtra(
        "The metadata service needs aiohttp: install aflow-runtime[server]."
    ) from error

if TYPE_CHECKING:
    from aflow._core.clock import Clock
    from aflow.metadata.base import MetadataStore
    from aflow.server.metaflow.database import Database, Transaction
    from aflow.server.metaflow.messages import Listing
    from aflow.server.openapi import Description
    from aflow.storage.base import ObjectStore

    OpenStore = Callable[[str], ObjectStore | None]

# The calls of the metadata port over HTTP, used by `metadata.service`.


_ITEMS = 200  # items in a frame


def answered(store: MetadataStore, name: str, body: bytes) -> Generator[bytes, None, None]:
    """Yield the frames of the response to a call.

    Args:
        store: The metadata store.
        name: The name of the method, from the path of the request.
        body: The packed arguments; the limit on their number depends on the method.

    Raises:
        InvalidMessage: If there is no such method, or the body is malformed.
    """
    if name not in wire.CALLS and name not in wire.STREAMS:
        raise InvalidMessage(f"There is no call {name[:40]!r} of the metadata.")
    try:
        values, named = wire.unpack(
            body, wire.MOST_CONTAINERS if name in wire.WRITES else wire.MOST_OF_QUESTION
        )
        for value in (*values, *named.values()):
            _check(value)
        result = getattr(store, name)(*values, **named)
        if name in wire.CALLS:
            yield wire.value_frame(result)
        else:
            yield from _streamed(result)
    except (MetadataUnavailable, InvalidMessage):
        raise
    except AflowError as error:
        yield wire.error_frame(error)
    except Exception as error:  # a driver may raise anything for invalid values
        raise InvalidMessage(f"The call {name} cannot be done: {error}.") from error


def _streamed(items: Iterator[Any]) -> Iterator[bytes]:
    while chunk := list(islice(items, _ITEMS)):
        yield wire.items_frame(chunk)
    yield wire.end_frame()


def _check(value: object) -> None:
    """Check names and times before they are stored: readers build paths from names, and dates from
    times."""
    try:
        if isinstance(value, RunRecord):
            ids.flow_name(value.flow)
            ids.run_id(value.run)
            _check_times(value.created_at, value.finished_at, value.heartbeat_at)
        elif isinstance(value, WorkerRecord):
            ids.worker_name(value.name)
            _check_times(value.started_at, *(each.since for each in value.running))
        elif isinstance(value, Batch):
            for task in value.tasks:
                ids.step_name(task.step)
                _check_times(task.created_at)
            for attempt in value.attempts:
                _check_times(attempt.started_at, attempt.finished_at)
            for each in value.metadata:
                _check_times(each.created_at)
    except InvalidName as error:
        raise InvalidMessage(str(error)) from error


def _check_times(*times: float | None) -> None:
    for at in times:
        if at is not None and not 0 <= at <= LATEST:
            raise InvalidMessage(f"{at!r} is not a time: times are in seconds since 1970.")


T = TypeVar("T")

REGISTERED = "_registered"
"""A query parameter: return only registered objects. aflow's client reads aflow's runs itself."""

_VERSION_HEADER = "METADATA_SERVICE_VERSION"
_PLAIN = frozenset({"/ping", "/version", "/healthcheck", "/auth/token", "/flows"})
_PREFIXES = ("/flows/", OWN_CALLS)
_LARGEST_JSON = 16 << 20
_THREADS = 8  # threads for database queries
# Limits for calls of the metadata port: a commit contains the manifests of many tasks.
_LARGEST_WRITE, _LARGEST_READ = 256 << 20, 1 << 20

_log = logging.getLogger("aflow.server.metaflow")


class MetaflowApi:
    """The routes of Metaflow's metadata service, and the calls of the metadata port, which `store`
    executes.

    Closes the database at the end of the application, but not `store`. `open_store` opens the
    datastore of a run recorded by aflow, for clients that read artifacts; see OwnRuns."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        store: MetadataStore | None = None,
        open_store: OpenStore | None = None,
    ) -> None:
        self._database = database
        self._clock = clock
        self._store = store
        self._own = None if store is None else OwnRuns(store, open_store)
        self._threads = ThreadPoolExecutor(_THREADS, "service")

    def owns(self, path: str) -> bool:
        """Return whether a path belongs to the service or is a call of the metadata port."""
        return path in _PLAIN or path.startswith(_PREFIXES)

    def add_to(self, app: web.Application) -> None:
        """Register the routes. All responses, including errors, carry the version of the
        service."""
        routes: list[tuple[str, str, Handler]] = [
            ("GET", "/ping", self.ping),
            ("GET", "/version", _version),
            ("GET", "/healthcheck", self.healthcheck),
            ("GET", "/auth/token", _no_token),
            ("POST", OWN_CALLS + "{call}", self.own_call),
            *((route.method, route.path, self.handler(route)) for route in ROUTES),
        ]
        for method, path, handler in routes:
            app.router.add_route(method, path, handler)
        app.on_response_prepare.append(self._name_version)
        app.on_cleanup.append(self.close)

    async def _name_version(self, request: web.Request, response: web.StreamResponse) -> None:
        if self.owns(request.path):
            response.headers[_VERSION_HEADER] = PROTOCOL

    def description(self) -> Description:
        """Return the OpenAPI description of the routes."""
        from aflow.server.metaflow.openapi import description  # imported late: rarely requested

        return description()

    def refused(self, status: int, sentence: str, headers: Mapping[str, str]) -> web.Response:
        """Return an error response: Metaflow's clients read `message`, or the details of a
        failure."""
        if status < 500:
            return refusal(status, sentence, headers, ("message",))
        failure = {
            "traceback": "",  # only in the log of the service
            "detail": sentence,
            "status": status,
            "title": HTTPStatus(status).phrase,
            "type": "about:blank",
        }
        return web.json_response(failure, status=status, headers=headers)

    def handler(self, route: ServiceRoute) -> Handler:
        """Return the aiohttp handler of a route, which calls the route in a thread.

        Args:
            route: The method, the path and the function of the route.
        """

        async def handle(request: web.Request) -> web.StreamResponse:
            query = {name: each for name, each in request.query.items() if name != REGISTERED}
            own = None if REGISTERED in request.query else self._own
            asked = Asked(
                {kind: checks.path_name(kind, value) for kind, value in request.match_info.items()},
                query,
                await _json_of(request) if route.writes else b"",
                self._clock.now(),
                self._database.words,
            )
            answer = await self._in_thread(partial(self._answer, route, asked, own))
            if not isinstance(answer, JsonResponse):
                return await self._listed(request, answer)
            return _sent(request, json.dumps(answer.body).encode(), answer.status, answer.headers)

        return handle

    def _answer(
        self, route: ServiceRoute, asked: Asked, own: OwnRuns | None
    ) -> JsonResponse | Lister:
        """Respond with registrations and aflow's own records (`own`). Blocks."""
        in_transaction = self._database.write if route.writes else self._database.read
        name = route.answer.__name__
        is_new = name == "add_run" and own is not None and own.has_flow(asked.flow)

        def answered_in(session: Transaction) -> JsonResponse | Listing:
            if is_new:  # clients do not register flows of aflow's own runs
                flows.register_flow(session, asked)
            return route.answer(session, asked)

        try:
            answer = in_transaction(answered_in)
        except RegistrationRefused as refused:
            found = own.one(name, asked) if own and refused.status == 404 else None
            if found is None:
                raise
            return found
        return own.joined(name, asked, answer) if own else answer

    async def _listed(self, request: web.Request, listing: Lister) -> web.StreamResponse:
        rows = await self._in_thread(lambda: self._database.read(listing.first))
        page = listing.page
        if page is not None or len(rows) < CHUNK:
            headers = {} if page is None else page.headers([row[0] for row in rows])
            return _sent(request, _encoded(listing, rows), 200, headers)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_compression()
        await response.prepare(request)
        return await send_stream(request, response, self._write_list(response, listing, rows))

    async def _write_list(
        self, response: web.StreamResponse, listing: Lister, rows: Sequence[Any]
    ) -> None:
        opening = b"["
        while rows:
            last = rows[-1][0] if len(rows) == CHUNK else None
            chunk = await self._in_thread(partial(_encoded, listing, rows))
            await response.write(opening + chunk[1:-1])
            opening, rows = b", ", []
            if last is not None:
                rows = await self._in_thread(
                    partial(self._database.read, partial(listing.after, key=last))
                )
        await response.write(b"]")

    async def own_call(self, request: web.Request) -> web.StreamResponse:
        """Execute a call of the metadata port."""
        if self._store is None:
            raise RegistrationRefused.of(501, "this service does not keep metadata of aflow itself")
        call = request.match_info["call"]
        asked = await body_of(request, _LARGEST_WRITE if call in WRITES else _LARGEST_READ)
        frames = _OneByOne(answered(self._store, call, asked))
        try:
            first = await self._in_thread(frames.next)
            response = web.StreamResponse(headers={"Content-Type": "application/msgpack"})
            await response.prepare(request)
            return await send_stream(request, response, self._write_frames(response, first, frames))
        finally:
            await self._in_thread(frames.close)

    async def _write_frames(
        self, response: web.StreamResponse, first: bytes | None, frames: _OneByOne
    ) -> None:
        frame = first
        while frame is not None:
            await response.write(frame)
            frame = await self._in_thread(frames.next)

    async def ping(self, _: web.Request) -> web.StreamResponse:
        """Respond with `pong`; a header shows whether calls of the metadata port are supported."""
        return web.Response(text="pong", headers={} if self._store is None else {OWN: "1"})

    async def healthcheck(self, request: web.Request) -> web.StreamResponse:
        """Check the database; 503 if it does not respond."""
        try:
            await self._in_thread(
                lambda: self._database.write(lambda session: session.rows("SELECT 1"))
            )
        except MetadataUnavailable as error:
            _log.error("The database does not answer: %s", error)
            return web.json_response({"status": "DOWN"}, status=503)
        return web.json_response({"status": "UP"})

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def close(self, _: web.Application) -> None:
        """Shut down the threads, and close the database."""
        self._threads.shutdown()
        self._database.close()


class _OneByOne:
    """An iterator of frames that is used by one thread at a time. The client may disconnect while a
    thread computes the next frame."""

    def __init__(self, frames: Generator[bytes, None, None]) -> None:
        self._frames = frames
        self._lock = threading.Lock()

    def next(self) -> bytes | None:
        """Return the next frame; None after the last one."""
        with self._lock:
            return next(self._frames, None)

    def close(self) -> None:
        """Close the underlying query."""
        with self._lock:
            self._frames.close()


async def _json_of(request: web.Request) -> bytes:
    """Return the body with any content type: Metaflow's clients do not always send one."""
    data = await body_of(request, _LARGEST_JSON)
    check_json(data)
    return data


def _encoded(listing: Lister, rows: Sequence[Any]) -> bytes:
    return json.dumps([listing.render(row) for row in rows]).encode()


def _sent(
    request: web.Request, body: bytes, status: int, headers: dict[str, str]
) -> web.StreamResponse:
    """Return the response, or 304 if the client has it already."""
    from blake3 import blake3

    if request.method == "GET" and status == 200:
        tag = f'"{blake3(body).hexdigest(16)}"'
        headers = {**headers, "ETag": tag}
        if tag in request.headers.get("If-None-Match", ""):
            return web.Response(status=304, headers=headers)
    return web.Response(body=body, status=status, headers=headers, content_type="application/json")


async def _version(_: web.Request) -> web.StreamResponse:
    return web.Response(text=PROTOCOL)


async def _no_token(_: web.Request) -> web.StreamResponse:
    return web.json_response(
        {"message": "this service gives out no credentials: use those of your own account"},
        status=403,
    )
