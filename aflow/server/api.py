"""Version 1 of the daemon's HTTP API and its web pages: one of the APIs of `server/app.py`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from aflow._core import ids
from aflow._core.clock import SystemClock
from aflow.errors import CoordinatorClosed, InvalidInput, MetadataUnavailable, MissingExtra
from aflow.server.auth import Authenticator, attended, is_page, refusal
from aflow.server.listening import Handler
from aflow.server.request_bodies import body_of, check_type, json_of, number_of
from aflow.server.routes.actions import ActionRoutes, started
from aflow.server.routes.schedules import ScheduleRoutes
from aflow.server.routes.schemas import LARGEST_PAGE, LONGEST_WAIT
from aflow.server.routes.table import ROUTES
from aflow.server.routes.views import ViewRoutes, named_run, step_of
from aflow.server.run_requests import fields_of, order_of
from aflow.server.streams import LOOK, Streams, last_event
from aflow.server.ui import Pages
from aflow.server.views import Views, plain_run, plain_task
from aflow.task import code_package

try:
    from aiohttp import web
except ImportError as error:
    raise MissingExtra("The server needs aiohttp: install aflow-runtime[server].") from error

if TYPE_CHECKING:
    from aflow.metadata.base import MetadataStore
    from aflow.queue.base import Queue
    from aflow.server.metrics import Metrics
    from aflow.server.openapi import Description
    from aflow.server.runs import Runs
    from aflow.server.schedules import Scheduling
    from aflow.storage.blobs import BlobStore

_LARGEST_PACKAGE = 64 << 20
_UPLOADS = 4  # code packages that may be in memory at once
_SOON = 3.0  # deadline for the metadata in a readiness check, in seconds
_PROBE = "server/ready"  # object written to check that the disk has free space
_PROBES = frozenset({"/healthz", "/readyz", "/metrics"})


class Daemon(NamedTuple):
    """The parts of a server that runs flows.

    `blobs` stores artifacts, `queue` opens the queue whose workers run tasks, `shown` is the
    metadata store combined with Metaflow's own records, and `keys` sign messages to workers."""

    runs: Runs
    blobs: BlobStore
    metadata: MetadataStore
    queue: Callable[[], Queue] | None = None
    shown: MetadataStore | None = None
    keys: Sequence[bytes] = ()


class AflowApi:
    """The routes of the daemon and the pages of its web UI.

    `watch` is called with the pathspec of each run that was asked to stop."""

    def __init__(
        self,
        daemon: Daemon,
        metrics: Metrics,
        scheduling: Scheduling | None,
        authenticator: Authenticator,
        watch: Callable[[str], object] | None = None,
    ) -> None:
        runs, blobs, metadata, queue, shown, _ = daemon
        shown, clock = shown or metadata, SystemClock()
        views = Views(shown, clock)
        self._runs = RunRoutes(runs, blobs, metadata, metrics, shown, views)
        self._pages = Pages(authenticator.allows)
        self._answering = (
            self._runs,
            ScheduleRoutes(scheduling, clock),
            ViewRoutes(shown, views, self._runs.streams, clock),
            ActionRoutes(shown, views, runs, clock, blobs.store, queue, watch),
        )

    def owns(self, path: str) -> bool:
        """Return whether a path belongs to the daemon or to its pages."""
        return path.startswith("/v1/") or path in _PROBES or is_page(path)

    def add_to(self, app: web.Application) -> None:
        """Register the routes."""
        for route in ROUTES:
            answers = next(each for each in self._answering if hasattr(each, route.name))
            handler = getattr(answers, route.name)
            if route.takes is None:
                handler = _without_body(handler)
            app.router.add_route(route.method, route.path, handler)
        app.on_shutdown.append(self._runs.close)
        self._pages.add_to(app)

    def description(self) -> Description:
        """Return the OpenAPI description of the routes."""
        from aflow.server.openapi import of_daemon  # imported late: rarely requested

        answers: dict[str, Any] = {}
        for each in self._answering:
            answers |= vars(type(each))
        return of_daemon({route.name: answers[route.name].__doc__ or "" for route in ROUTES})

    def refused(self, status: int, sentence: str, headers: Mapping[str, str]) -> web.Response:
        """Return an error response; aflow's clients read the field `error`."""
        return refusal(status, sentence, headers, ("error",))


def _without_body(handler: Handler) -> Handler:
    """Return a handler that refuses a body before it calls the handler of a route that takes none,
    which may do expensive work."""

    async def checked(request: web.Request) -> web.StreamResponse:
        if request.body_exists:
            try:
                await body_of(request, 0)
            except web.HTTPException as error:
                raise InvalidInput("This route takes no body: send none.") from error
        return await handler(request)

    return checked


class RunRoutes:
    """The routes of code packages, runs, their events and logs, and the health probes."""

    def __init__(
        self,
        runs: Runs,
        blobs: BlobStore,
        metadata: MetadataStore,
        metrics: Metrics,
        shown: MetadataStore,
        views: Views,
    ) -> None:
        self._shown = shown
        self._views = views
        self._metrics = metrics
        self._runs = runs
        self._blobs = blobs
        self._metadata = metadata
        self.streams = self._streams = Streams(shown)
        self._uploads = asyncio.Semaphore(_UPLOADS)

    async def close(self, _: web.Application) -> None:
        """Close all streams and end all requests that wait for a run."""
        self._streams.close()

    async def alive(self, _: web.Request) -> web.StreamResponse:
        """Check that the process responds."""
        return web.json_response({"status": "alive"})

    async def ready(self, _: web.Request) -> web.StreamResponse:
        """Check that the server accepts runs.

        The server is ready if the metadata store responds within three seconds, the disk of the
        datastore has free space, and no shutdown is in progress; otherwise the status is 503."""
        if self._runs.is_closed:
            raise CoordinatorClosed("The server is being stopped.")
        try:
            # Shared by all probes: a check that waits for an unresponsive database occupies a
            # thread.
            async with asyncio.timeout(_SOON):
                await self._streams.shared("ready", self._look, 0.0)
        except TimeoutError as error:
            raise MetadataUnavailable(
                f"The metadata in {self._metadata.url} do not answer within {_SOON:g} seconds."
            ) from error
        return web.json_response({"status": "ready"})

    def _look(self) -> None:
        """Read the metadata, and write a small object if the datastore is local. Raises
        AflowError."""
        self._metadata.flows()
        store = self._blobs.store
        if store.url.startswith("file:"):  # in S3 each probe would be billed as a request
            store.put(_PROBE, [b"ready\n"])

    async def measure(self, _: web.Request) -> web.StreamResponse:
        """Show metrics for Prometheus."""
        text = await self._metrics.text()
        return web.Response(body=text, headers={"Content-Type": "text/plain; version=0.0.4"})

    async def add_package(self, request: web.Request) -> web.StreamResponse:
        """Upload a code package.

        The body is a tar archive. The response contains its key, which POST /v1/runs takes."""
        check_type(request, "application/x-tar")
        async with self._uploads:
            data = await body_of(request, _LARGEST_PACKAGE)
            key = await asyncio.to_thread(self._kept, data)
        return web.json_response({"package": key}, status=201)

    def _kept(self, data: bytes) -> str:
        code_package.check(data)
        return self._blobs.put(data)

    async def add_run(self, request: web.Request) -> web.StreamResponse:
        """Start a run.

        The response is sent once the run is recorded, without waiting for its end."""
        return await started(self._runs.begin(order_of(fields_of(await json_of(request)))))

    async def list_runs(self, request: web.Request) -> web.StreamResponse:
        """List the latest runs of a flow, or of all flows."""
        flow = request.query.get("flow")
        name = None if flow is None else ids.flow_name(flow)
        limit = number_of(request, "limit", 20, LARGEST_PAGE)
        found = await asyncio.to_thread(self._shown.runs, name, limit=limit)
        return web.json_response({"runs": [plain_run(run) for run in found]})

    async def show_run(self, request: web.Request) -> web.StreamResponse:
        """Show a run and the progress of its steps.

        With `wait`, the response is sent when the run has ended, or after that many seconds."""
        flow, run = named_run(request)
        if "wait" in request.query:
            seconds = number_of(request, "wait", 0, LONGEST_WAIT)
            await attended(request, self._wait(flow, run, seconds))
        here = f"{flow}/{run}" in self._runs.going_on()  # read first: the record is newer
        record = await asyncio.to_thread(self._views.run, flow, run)
        steps = await asyncio.to_thread(self._shown.progress, record.key)
        progress = [{"step": each.step, "tasks": each.tasks} for each in steps]
        return web.json_response({**plain_run(record), "here": here, "steps": progress})

    async def _wait(self, flow: str, run: str, at_most: float) -> None:
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + at_most
        await self._runs.wait(f"{flow}/{run}", at_most)
        while (left := give_up_at - loop.time()) > 0:  # another process may drive it
            record = await self._streams.shared(
                f"record {flow}/{run}", lambda: self._views.run(flow, run), LOOK
            )
            if record.finished_at is not None:
                return
            if await self._streams.rest(min(left, LOOK)):
                return

    async def list_tasks(self, request: web.Request) -> web.StreamResponse:
        """List the tasks of a run by number, with their latest attempts."""
        flow, run = named_run(request)
        limit = number_of(request, "limit", 100, LARGEST_PAGE)
        after = number_of(request, "after", 0)  # task 0 holds the parameters

        def page() -> list[dict[str, Any]]:
            key = self._views.run(flow, run).key
            found = self._shown.tasks(key, after=after, limit=limit, light=True)
            return [plain_task(view) for view in found]

        return web.json_response({"tasks": await asyncio.to_thread(page)})

    async def show_events(self, request: web.Request) -> web.StreamResponse:
        """Stream the events of a run as server-sent events.

        The events are `run_started`, `items_ready`, `attempt_ended`, `cancel_requested`, `damaged`
        (a record that cannot be read), and a last one, `end`. With `follow=1` the stream stays open
        until the run has ended. A client that reconnects sends `Last-Event-ID`."""
        flow, run = named_run(request)
        after = last_event(request.headers.get("Last-Event-ID"))
        follow = bool(number_of(request, "follow", 0, 1))
        record = await asyncio.to_thread(self._views.run, flow, run)
        stream = self._streams.events(record, after, follow=follow)
        return await self._streams.answer(request, stream)

    async def show_logs(self, request: web.Request) -> web.StreamResponse:
        """Stream the lines of a run's tasks as server-sent events.

        Each line is an event `line`; the last event is `end`. With `follow=1` the stream stays open
        until the run has ended. A client that reconnects sends `Last-Event-ID`."""
        flow, run = named_run(request)
        step = step_of(request)
        task = number_of(request, "task", 0) or None
        follow = bool(number_of(request, "follow", 0, 1))
        record = await asyncio.to_thread(self._views.run, flow, run)
        after = request.headers.get("Last-Event-ID", "")
        log_tail = await asyncio.to_thread(self._views.log_tail, record, step, task, after)
        stream = self._streams.lines(record, log_tail, follow=follow)
        return await self._streams.answer(request, stream)
