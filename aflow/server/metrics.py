"""The metrics of a server at /metrics, in the text format of Prometheus."""

from __future__ import annotations

import asyncio
from collections import Counter as Tally
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from aiohttp import web
from aiohttp.hdrs import METH_ALL

from aflow.errors import AflowError, MissingExtra
from aflow.executors.protocol import DEFAULT_POOL, tasks_topic
from aflow.server.listening import Handler
from aflow.server.recovery import KIND

try:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
    from prometheus_client.exposition import generate_latest
except ImportError as error:
    raise MissingExtra(
        "Metrics need the package prometheus-client: install aflow-runtime[server]."
    ) from error

if TYPE_CHECKING:
    from aflow.metadata.base import MetadataStore
    from aflow.queue.base import Queue
    from aflow.server.runs import Runs

LOOK = 1.0  # seconds between measurements of the event loop's lag
_MOST_ORPHANED = 1000
POOLS = (DEFAULT_POOL, "gpu")


class Metrics:
    """The metrics of one server, and the middleware that counts requests.

    `queue` opens the queue whose depth is reported; None if the server has no queue."""

    __middleware_version__ = 1

    def __init__(
        self, runs: Runs, metadata: MetadataStore, queue: Callable[[], Queue] | None
    ) -> None:
        self._runs = runs
        self._metadata = metadata
        self._open_queue = queue
        self._queue: Queue | None = None
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        gauge = partial(Gauge, registry=registry)
        self._requests = Counter(
            "aflow_http_requests", "Requests answered.", ["route", "method", "status"],
            registry=registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "aflow_http_request_seconds", "How long answers took, but for streams.", ["route"],
            registry=registry,
        )  # fmt: skip
        self._lag = gauge("aflow_event_loop_lag_seconds", "How late the event loop was last.")
        self._going_on = gauge("aflow_runs_going_on", "Runs that this server drives.")
        self._orphaned = gauge("aflow_runs_orphaned", "Runs of servers that no coordinator drives.")
        self._tasks = gauge(
            "aflow_tasks", "Tasks of the runs that this server drives.", ["flow", "state"]
        )
        self._messages = gauge("aflow_queue_messages", "Tasks in the queue.", ["pool", "state"])
        self._waits = gauge(
            "aflow_queue_oldest_seconds", "How long the oldest task that is ready waits.", ["pool"]
        )
        self._up = gauge("aflow_backend_up", "Whether it answered last time.", ["backend"])

    async def __call__(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Handle a request, and record its status and duration."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        resource = request.match_info.route.resource
        route = resource.canonical if resource is not None else "none"
        response = await handler(request)
        method = request.method if request.method in METH_ALL else "other"  # bounded labels
        self._requests.labels(route, method, str(response.status)).inc()
        if response.content_type != "text/event-stream":
            self._seconds.labels(route).observe(loop.time() - began)
        return response

    async def run_forever(self) -> None:
        """Measure the lag of the event loop periodically."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LOOK
            await asyncio.sleep(LOOK)
            self._lag.set(max(0.0, loop.time() - due))

    async def text(self) -> bytes:
        """Return the current metrics. Those of a backend that does not respond keep their last
        values."""
        names = self._runs.going_on()
        self._going_on.set(len(names))
        await self._look_at("metadata", asyncio.to_thread(self._ask_metadata, names))
        if self._open_queue is not None:
            await self._look_at("queue", self._ask_queue(self._open_queue))
        return generate_latest(self._registry)

    async def close(self) -> None:
        """Close the queue."""
        if self._queue is not None:
            await self._queue.close()

    async def _look_at(self, backend: str, look: Awaitable[None]) -> None:
        up = self._up.labels(backend)
        try:
            await look
        except AflowError:  # reported by the gauge
            up.set(0)
        else:
            up.set(1)

    def _ask_metadata(self, names: Sequence[str]) -> None:
        self._orphaned.set(len(self._metadata.orphaned(KIND, _MOST_ORPHANED)))
        tally: Tally[tuple[str, str]] = Tally()
        for name in names:
            flow, _, run = name.partition("/")
            record = self._metadata.run(flow, run)
            for step in () if record is None else self._metadata.progress(record.key):
                for state, count in step.tasks.items():
                    tally[flow, state.value] += count
        self._tasks.clear()
        for labels, count in tally.items():
            self._tasks.labels(*labels).set(count)

    async def _ask_queue(self, open_queue: Callable[[], Queue]) -> None:
        if self._queue is None:
            self._queue = open_queue()
        for pool in POOLS:
            depth = await self._queue.depth(tasks_topic(pool))
            for state, count in depth._asdict().items():
                self._messages.labels(pool, state).set(count)
            waits = await self._queue.longest_wait(tasks_topic(pool))
            if waits is not None:
                self._waits.labels(pool).set(waits)
