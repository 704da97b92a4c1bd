"""The handlers of the routes that the web UI reads: lists of runs, overviews, tasks as columns and
pages, artifacts, logs, cards, code, comparisons, and the stream of live updates of a page."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
from collections import OrderedDict
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Hashable,
    Iterator,
)
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from aiohttp import web

from aflow._core import ids
from aflow.errors import InvalidInput
from aflow.metadata.base import FIRST_KEY
from aflow.runs.log_tail import LogTail
from aflow.scheduler.states import TERMINAL_RUN_STATES, TaskState
from aflow.server import filters, jobs
from aflow.server.auth import send_stream
from aflow.server.request_bodies import number_of
from aflow.server.streams import LOOK, Streams, event
from aflow.server.views import plain_line

if TYPE_CHECKING:
    from aflow._core.clock import Clock
    from aflow.metadata.base import MetadataStore, RunRecord
    from aflow.server.views import Views

T = TypeVar("T")

SORTS = ("task", "started", "duration", "wait")
_MOST_TOPICS = 8  # topics of one stream
_LINES = 500  # lines of a log in one event
_FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Real-Ip", "Via")
_BODIES = 64 << 20  # bytes of cached responses
_MOST_BODIES = 500
_FRESH = 0.4  # seconds for which streams share a read
_LOOK_AT_LOG = 0.2  # seconds between polls if a log is followed
_FRESH_LOG = 0.15
_RECENT = 100  # runs whose states the topic `runs` watches
_PART = 1 << 18  # bytes of an artifact that are sent at a time
_HTML = b'<html lang="en">'  # the start of aflow's own cards
_CARD_CSP = (
    "sandbox allow-scripts; default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; font-src data:"
)


class ViewRoutes:
    """The handlers of the read-only routes; see `server.routes.table` for the paths."""

    def __init__(
        self, metadata: MetadataStore, views: Views, streams: Streams, clock: Clock
    ) -> None:
        self._views = views
        self._metadata = metadata
        self._streams = streams
        self._clock = clock
        self._bodies = _Bodies()

    # ------------------------------------------------------------ runs

    async def find_runs(self, request: web.Request) -> web.StreamResponse:
        """List the runs that match a filter, newest first, in pages.

        A page may be shorter than `limit` although more runs follow: one request reads a bounded
        number of runs. Follow `cursor` until it is null."""
        which = filters.parse(request.query.get("filter", ""), self._clock.now())
        limit = number_of(request, "limit", 50, 200)
        cursor = request.query.get("cursor")

        def page() -> dict[str, Any]:
            found, following = self._views.records(which, cursor, max(limit, 1))
            return {"runs": [self._views.summary(run) for run in found], "cursor": following}

        return web.json_response(await asyncio.to_thread(page))

    async def show_overview(self, request: web.Request) -> web.StreamResponse:
        """Show a run: graph, statistics of steps, parameters, failures."""
        run = await run_of(request, self._views)
        known = ("overview", run.key, run.version, run.state, run.tags, run.heartbeat_at)

        def read() -> bytes:
            return json.dumps(self._views.overview(run)).encode()

        return await self._bodies.answer(request, known, read, "application/json")

    async def show_columns(self, request: web.Request) -> web.StreamResponse:
        """Get the tasks of a run as columns of numbers.

        The format is little endian: 4 bytes with the length of a header, the header (JSON), then
        the columns `task` (u32), `ready`, `start`, `end` (f32, seconds after `base`), `step` and
        `worker` (u16, indexes into `steps` and `workers`), `state` (u8, index into `states`) and
        `flags` (u8: 1 reused, 2 retried), each padded to a multiple of 8 bytes. With `since` only
        tasks that changed after that version of the run."""
        run = await run_of(request, self._views)
        since = None if "since" not in request.query else number_of(request, "since", 0)
        known = ("columns", run.key, run.version, since)

        def read() -> bytes:
            return self._views.columns(run, since)

        return await self._bodies.answer(request, known, read, "application/octet-stream")

    async def get_trace(self, request: web.Request) -> web.StreamResponse:
        """Download a trace of the tasks of a run, for Perfetto."""
        run = await run_of(request, self._views)
        parts = await asyncio.to_thread(self._views.trace, run)
        return await _download(
            request, map(str.encode, parts), f"{run.flow}-{run.run}.trace.json", "application/json"
        )

    async def page_tasks(self, request: web.Request) -> web.StreamResponse:
        """List the tasks of a run, filtered and sorted, in pages."""
        step, state = step_of(request), request.query.get("state")
        if state is not None and state not in {each.value for each in TaskState}:
            raise InvalidInput(f"There is no state {state[:40]!r} of a task.")
        sort = request.query.get("sort", "task")
        if sort.removeprefix("-") not in SORTS:
            raise InvalidInput(f"Tasks cannot be sorted by {sort[:40]!r}: use {', '.join(SORTS)}.")
        offset, limit = number_of(request, "offset", 0), number_of(request, "limit", 100, 500)
        return await self._of_run(
            request, lambda run: self._views.tasks(run, step, state, sort, offset, limit)
        )

    async def show_task(self, request: web.Request) -> web.StreamResponse:
        """Show a task with its attempts, metadata, inputs, artifacts and cards."""
        task = number_of(request, "task", 0)
        return await self._of_run(request, lambda run: self._views.task(run, task))

    async def list_artifacts(self, request: web.Request) -> web.StreamResponse:
        """List the artifacts of the first tasks of each step."""
        return await self._of_run(request, lambda run: {"steps": self._views.artifacts(run)})

    async def get_artifact(self, request: web.Request) -> web.StreamResponse:
        """Download the pickle of an artifact.

        Unpickling executes the code that the pickle contains. Artifacts of more than 64 MB are
        refused (400): read them with the client."""
        task = number_of(request, "task", 0)
        name = str(ids.artifact_name(request.match_info["name"]))
        run = await run_of(request, self._views)
        data = await asyncio.to_thread(self._views.artifact, run, task, name)
        # In parts: the time that a client may take to read what was sent is that of a part.
        parts = (data[at : at + _PART] for at in range(0, len(data), _PART))
        name = f"{run.flow}-{run.run}-{task}-{name}.pickle"
        return await _download(request, parts, name, "application/octet-stream")

    async def list_cards(self, request: web.Request) -> web.StreamResponse:
        """List the cards of a run."""
        return await self._of_run(request, lambda run: {"cards": self._views.cards(run)})

    async def get_card(self, request: web.Request) -> web.StreamResponse:
        """Get the page of a card.

        Browsers show it in a sandbox (Content-Security-Policy)."""
        run = await run_of(request, self._views)
        task, name = number_of(request, "task", 0), request.match_info["name"]
        page = await asyncio.to_thread(self._views.card, run, task, name)
        theme = request.query.get("theme")
        if theme in ("light", "dark"):
            page = page.replace(_HTML, f'<html lang="en" data-theme="{theme}">'.encode(), 1)
        headers = {"Content-Security-Policy": _CARD_CSP, "X-Content-Type-Options": "nosniff"}
        return web.Response(body=page, content_type="text/html", charset="utf-8", headers=headers)

    async def explain_run(self, request: web.Request) -> web.StreamResponse:
        """Explain why tasks of a run ran, or why their results were reused."""
        return await self._of_run(request, lambda run: {"lines": self._views.explain(run)})

    async def show_code(self, request: web.Request) -> web.StreamResponse:
        """Show the files of a run's code package."""
        other = request.query.get("against")
        flow = str(ids.flow_name(request.match_info["flow"]))
        against = None if other is None else str(ids.run_id(other))

        def read(run: RunRecord) -> dict[str, Any]:
            before = None if against is None else self._views.run(flow, against)
            return self._views.code(run, before)

        return await self._of_run(request, read)

    # ------------------------------------------------------------ logs

    async def page_log(self, request: web.Request) -> web.StreamResponse:
        """List lines that the tasks of a run have printed, in pages.

        `tail` requires a `task`."""
        step, task = step_of(request), number_of(request, "task", 0) or None
        after, search = request.query.get("after", ""), request.query.get("search", "")[:500]
        limit = max(1, number_of(request, "limit", 1000, 5000))
        tail = number_of(request, "tail", 0, 5000)
        if tail and not task:
            raise InvalidInput("`tail` takes the last lines of one task: name a `task`.")
        return await self._of_run(
            request, lambda run: self._views.log(run, step, task, after, limit, search, tail)
        )

    async def get_log(self, request: web.Request) -> web.StreamResponse:
        """Download all lines that the tasks of a run have printed."""
        step, task = step_of(request), number_of(request, "task", 0)
        run = await run_of(request, self._views)
        name = "-".join(filter(None, [run.flow, run.run, step, str(task or "")]))
        parts = await asyncio.to_thread(self._views.log_text, run, step, task or None)
        return await _download(request, parts, f"{name}.log", "text/plain")

    # ------------------------------------------------------------ flows, comparisons

    async def list_flows(self, _: web.Request) -> web.StreamResponse:
        """List all flows, each with its latest run."""
        return web.json_response({"flows": await asyncio.to_thread(self._views.flows)})

    async def show_flow(self, request: web.Request) -> web.StreamResponse:
        """Show a flow: latest runs, durations of steps, graph."""
        name = str(ids.flow_name(request.match_info["flow"]))
        return web.json_response(await asyncio.to_thread(self._views.flow, name))

    async def list_jobs(self, _: web.Request) -> web.StreamResponse:
        """List the jobs of active runs at AWS Batch, Slurm and Kubernetes.

        The response is based on aflow's records: the job systems are not queried."""
        return web.json_response(await asyncio.to_thread(jobs.queues, self._metadata))

    async def list_run_jobs(self, request: web.Request) -> web.StreamResponse:
        """List the jobs of a run that have not ended, in pages by task."""
        step, after = step_of(request), number_of(request, "after", 0)
        limit = max(1, number_of(request, "limit", 100, 500))
        return await self._of_run(
            request, lambda run: jobs.jobs_of(self._metadata, run, step, after, limit)
        )

    async def compare_runs(self, request: web.Request) -> web.StreamResponse:
        """Compare two to five runs: state, parameters, durations, artifacts."""
        specs = [ids.Pathspec.parse(each) for each in request.query.get("runs", "").split(",")]
        if any(spec.run is None for spec in specs):
            raise InvalidInput("`runs` takes pathspecs of runs, as Flow/1,Flow/2.")

        def compare() -> dict[str, Any]:
            return self._views.compare([self._views.run(s.flow, s.run or "") for s in specs])

        return web.json_response(await asyncio.to_thread(compare))

    async def suggest(self, request: web.Request) -> web.StreamResponse:
        """Complete names for a search box: flows, runs, steps, artifacts, tags, users."""
        prefix = request.query.get("prefix", "")[:300]
        found = await asyncio.to_thread(self._views.suggest, prefix)
        return web.json_response({"found": found})

    # ------------------------------------------------------------ what is live

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Stream changes of runs and lines of logs as events.

        The topic `runs` sends an event when the list of runs has changed, `run:Flow/1` when the run
        has (its version and state), `logs:Flow/1` and `logs:Flow/1/7` send the lines of a run or a
        task, after the position that follows `@`. An event `alive` is sent after 15 seconds without
        another event."""
        topics = [_topic(each) for each in request.query.get("topics", "").split(",") if each]
        if not 1 <= len(topics) <= _MOST_TOPICS:
            raise InvalidInput(f"`topics` names 1 to {_MOST_TOPICS} topics of a stream.")
        sources = [await self._source(topic) for topic in topics]
        pause = _LOOK_AT_LOG if any(topic.kind == "logs" for topic in topics) else LOOK
        return await self._streams.answer(request, self._events(sources, pause))

    async def _source(self, topic: _Topic) -> Callable[[], AsyncIterator[bytes]]:
        if topic.kind == "runs":
            return _changes("runs", lambda: self._streams.shared("runs", self._recent, _FRESH))
        path = f"{topic.flow}/{topic.run}"
        if topic.kind == "run":  # a deleted run is reported, too
            read = partial(self._state, topic.flow, topic.run)
            return _changes("run", lambda: self._streams.shared(path, read, _FRESH))
        run = await asyncio.to_thread(self._views.run, topic.flow, topic.run)
        log_tail = await asyncio.to_thread(self._views.log_tail, run, None, topic.task, topic.after)
        # Runs recorded by Metaflow have no version that changes with their output.
        looks = None if run.key >= FIRST_KEY else partial(self._version, path, run)
        return _lines(path, topic.task, log_tail, looks)

    async def _version(self, path: str, run: RunRecord) -> Any:
        """Return the version of a run, read once for all streams that follow its output."""

        def read() -> Any:
            found = self._metadata.run(run.flow, run.run)
            return found and (found.key, found.version, found.state)

        return await self._streams.shared(f"log {path}", read, _FRESH_LOG)

    async def _events(
        self, sources: list[Callable[[], AsyncIterator[bytes]]], pause: float
    ) -> AsyncGenerator[bytes, None]:
        silence = 0.0
        while True:
            sent = False
            for look in sources:
                async for part in look():
                    sent = True
                    yield part
            silence = 0.0 if sent else silence + pause
            if silence >= 15.0:
                silence = 0.0
                # An event, not a comment, which scripts cannot see: pages detect lost connections
                # by it.
                yield event("alive", {})
            if await self._streams.rest(pause):
                return

    def _recent(self) -> Any:
        runs = self._metadata.runs(None, limit=_RECENT)
        return {"runs": [[f"{r.flow}/{r.run}", r.version, r.state.value] for r in runs]}

    def _state(self, flow: str, run: str) -> Any:
        found = self._metadata.run(flow, run)
        if found is None:
            return {"run": f"{flow}/{run}", "state": "deleted", "version": -1}
        return {
            "run": f"{flow}/{run}",
            "version": found.version,
            "state": found.state.value,
            "is_over": found.state in TERMINAL_RUN_STATES,
        }

    # ------------------------------------------------------------ helpers

    async def _of_run(
        self, request: web.Request, read: Callable[[RunRecord], dict[str, Any]]
    ) -> web.StreamResponse:
        run = await run_of(request, self._views)
        body = json.dumps(await asyncio.to_thread(read, run))
        response = web.Response(text=body, content_type="application/json")
        response.enable_compression()
        return response


class _Bodies:
    """A cache of large responses: many tabs may show the same active run, and all of them reload
    when it changes."""

    def __init__(self) -> None:
        self._found: OrderedDict[Hashable, asyncio.Future[bytes]] = OrderedDict()

    async def answer(
        self, request: web.Request, known: tuple[Any, ...], read: Callable[[], bytes], kind: str
    ) -> web.StreamResponse:
        """Respond with the result of `read`, which is called in a thread unless it is cached.
        `known` is the cache key: it contains everything that the response depends on."""
        digest = hashlib.blake2b(repr(known).encode(), digest_size=12).hexdigest()
        tag = f'"{digest}"'
        if request.headers.get("If-None-Match") == tag:
            return web.Response(status=304, headers={"ETag": tag})
        # Compressing would take longer than sending if the browser is on this machine.
        is_near = request.remote in ("127.0.0.1", "::1") and not any(
            each in request.headers for each in _FORWARDED
        )
        zipped = "gzip" in request.headers.get("Accept-Encoding", "") and not is_near
        body = await self._body((digest, zipped), read)
        headers = {"ETag": tag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding"}
        if zipped:
            headers["Content-Encoding"] = "gzip"
        return web.Response(body=body, content_type=kind, headers=headers)

    async def _body(self, key: tuple[str, bool], read: Callable[[], bytes]) -> bytes:
        found = self._found.get(key)
        if found is None:
            loop = asyncio.get_running_loop()
            make = partial(_zipped, read) if key[1] else read
            found = loop.create_task(asyncio.to_thread(make))
            self._found[key] = found
            found.add_done_callback(lambda made: self._keep(key, made))
        else:
            self._found.move_to_end(key)
        return await asyncio.shield(found)

    def _keep(self, key: tuple[str, bool], made: asyncio.Future[bytes]) -> None:
        """Keep a response unless it failed, and evict the oldest ones if there are too many."""
        if made.cancelled() or made.exception() is not None:
            self._found.pop(key, None)
            return
        sizes = {k: len(f.result()) for k, f in self._found.items() if f.done()}
        total = sum(sizes.values())
        for old, size in sizes.items():
            if total <= _BODIES and len(self._found) <= _MOST_BODIES:
                break
            if old != key:
                del self._found[old]
                total -= size


def _zipped(read: Callable[[], bytes]) -> bytes:
    # The fastest level: higher ones hardly compress columns of numbers better.
    return gzip.compress(read(), 1, mtime=0)


class _Topic(NamedTuple):
    kind: str
    flow: str = ""
    run: str = ""
    task: int | None = None
    after: str = ""


def _topic(text: str) -> _Topic:
    kind, _, rest = text.partition(":")
    if kind == "runs" and not rest:
        return _Topic("runs")
    path, _, after = rest.partition("@")
    parts = path.split("/")
    if kind == "run" and len(parts) == 2:
        return _Topic("run", str(ids.flow_name(parts[0])), str(ids.run_id(parts[1])))
    if kind == "logs" and len(parts) in (2, 3):
        number = parts[2] if len(parts) == 3 else ""
        if number and not (number.isascii() and number.isdigit() and len(number) <= 9):
            raise InvalidInput(f"{number[:40]!r} is not a number of a task.")
        task = int(number) if number else None
        return _Topic("logs", str(ids.flow_name(parts[0])), str(ids.run_id(parts[1])), task, after)
    raise InvalidInput(
        f"There is no topic {text[:80]!r}: use runs, run:Flow/1, logs:Flow/1 or logs:Flow/1/7."
    )


def _changes(name: str, read: Callable[[], Awaitable[Any]]) -> Callable[[], AsyncIterator[bytes]]:
    """Return a source that sends an event if what `read` returns differs from the last one sent."""
    sent: Any = None

    async def look() -> AsyncIterator[bytes]:
        nonlocal sent
        found = await read()
        if found != sent:
            sent = found
            yield event(name, found)

    return look


def _lines(
    path: str, task: int | None, log_tail: LogTail, version: Callable[[], Awaitable[Any]] | None
) -> Callable[[], AsyncIterator[bytes]]:
    """Return a source of new lines of a log. The log is read only if the result of `version` has
    changed."""
    seen: Any = None

    def some() -> list[dict[str, Any]]:
        return [plain_line(line) for line in islice(log_tail.poll(), _LINES)]

    async def look() -> AsyncIterator[bytes]:
        nonlocal seen
        if version is not None:
            before, seen = seen, await version()  # before the lines: newer ones come next time
            if seen is not None and seen == before:
                return
        while lines := await asyncio.to_thread(some):
            head = {"run": path, "task": task, "lines": lines}
            yield event("lines", {**head, "next": log_tail.position})
            if len(lines) < _LINES:
                return

    return look


def named_run(request: web.Request) -> tuple[str, str]:
    """Return the names of the flow and the run in the path of a request.

    Args:
        request: The request of a route of one run.

    Raises:
        InvalidName: If a name is not allowed.
    """
    return ids.flow_name(request.match_info["flow"]), ids.run_id(request.match_info["run"])


async def run_of(request: web.Request, views: Views) -> RunRecord:
    """Return the record of the run in the path of a request.

    Args:
        request: The request of a route of one run.
        views: Reads the record.

    Raises:
        NotFound: If there is no such run.
    """
    return await asyncio.to_thread(views.run, *named_run(request))


def step_of(request: web.Request) -> str | None:
    """Return the step in the query of a request; None for all steps.

    Args:
        request: The request.

    Raises:
        InvalidName: If the name is not allowed.
    """
    step = request.query.get("step")
    return None if step is None else ids.step_name(step)


async def _download(
    request: web.Request, parts: Iterator[bytes], name: str, kind: str
) -> web.StreamResponse:
    """Respond with a file to download. Its parts are read in threads while it is sent."""
    first = await asyncio.to_thread(next, parts, None)  # an error still has its own status
    response = web.StreamResponse(
        headers={
            "Content-Type": kind,
            "Content-Disposition": f'attachment; filename="{name}"',
            "X-Content-Type-Options": "nosniff",
        }
    )
    await response.prepare(request)

    async def send() -> None:
        part = first
        while part is not None:
            await response.write(part)
            part = await asyncio.to_thread(next, parts, None)

    return await send_stream(request, response, send())
