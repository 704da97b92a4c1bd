"""Streams of server-sent events: the events of a run and the output of its tasks.

The format is defined in section 9.2 of the HTML standard: lines `event:`, `id:` and `data:`, and an
empty line. Events are read from the store only as fast as the client receives them, so a slow
client delays only its own stream.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, closing
from itertools import islice
from typing import Any, TypeVar

from aiohttp import web

from aflow.errors import InvalidInput, MetadataError, MetadataUnavailable, NotFound
from aflow.metadata.base import MetadataStore, RunRecord
from aflow.runs.log_tail import LogTail, TaskLine
from aflow.scheduler.messages import (
    AttemptEnded,
    CancelRequested,
    Event,
    ItemsReady,
    RunStarted,
    decode_events,
)
from aflow.scheduler.states import TERMINAL_RUN_STATES
from aflow.server.auth import send_stream
from aflow.server.views import plain_line

LOOK = 0.5  # seconds between polls
KEEP_ALIVE = 15.0  # seconds of silence after which a comment is sent
_AT_ONCE = 200  # lines, or batches of events, read at a time
_BYTES_AT_ONCE = 64 << 10  # bytes of text read at a time, not counting the last line
_MOST = 100  # concurrent streams: each polls twice a second
_READERS = 2  # concurrent reader threads: they compete with the event loop for the GIL
_PATIENCE = 60.0  # seconds that a client may stop reading
_LONG = 500  # characters of an id; longer ids are sent with the last line of a chunk only
_LONGEST = 6000  # maximum characters of an id that a client can send back

T = TypeVar("T")
Last = tuple[int, int]  # a version of the journal, and how many events of it (0: all)


class Streams:
    """The streams of one server: limits their number, and ends them at shutdown."""

    def __init__(self, metadata: MetadataStore) -> None:
        self._metadata = metadata
        self._count = 0
        self._closed = asyncio.Event()
        self._reading = asyncio.Semaphore(_READERS)
        self._reads: dict[str, asyncio.Task[Any]] = {}

    def close(self) -> None:
        """End all streams without an `end` event; clients reconnect and continue."""
        self._closed.set()

    async def _read(self, read: Callable[..., T], *arguments: Any) -> T:
        """Return the result of a call in a thread; the number of threads is limited."""
        async with self._reading:
            return await asyncio.to_thread(read, *arguments)

    async def rest(self, seconds: float) -> bool:
        """Sleep, but wake up at shutdown.

        Args:
            seconds: The maximum time to wait, in seconds.

        Returns:
            True if the server is shutting down.
        """
        try:
            async with asyncio.timeout(seconds):
                return await self._closed.wait()
        except TimeoutError:
            return False

    async def shared(self, key: str, read: Callable[[], T], fresh: float) -> T:
        """Return the result of a call in a thread. Requests for it share one thread.

        Args:
            key: The name of the call.
            read: The call.
            fresh: The seconds for which later requests get the same result.
        """
        loop = asyncio.get_running_loop()

        def release(done: asyncio.Task[T]) -> None:
            # Retrieve the error even if all requests have ended, which prevents a warning of
            # asyncio.
            done.cancelled() or done.exception()
            loop.call_later(fresh, self._reads.pop, key, None)

        found = self._reads.get(key)
        if found is None:
            found = self._reads[key] = loop.create_task(asyncio.to_thread(read))
            found.add_done_callback(release)
        return await asyncio.shield(found)

    async def answer(
        self, request: web.Request, chunks: AsyncGenerator[bytes, None]
    ) -> web.StreamResponse:
        """Respond with a stream of chunks. Raises HTTPServiceUnavailable if there are too many
        streams."""
        if self._count >= _MOST:
            raise web.HTTPServiceUnavailable(reason=f"{_MOST} streams go on already.")
        self._count += 1
        try:
            response = web.StreamResponse(
                headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
            )
            await response.prepare(request)
            return await send_stream(request, response, _write(response, chunks))
        finally:
            self._count -= 1

    def lines(
        self, run: RunRecord, log_tail: LogTail, *, follow: bool
    ) -> AsyncGenerator[bytes, None]:
        """Yield the output of a run: `line` events, then one `end` event with its state.

        Args:
            run: The run; the last event contains its state.
            log_tail: The logs to read, with the current position in them.
            follow: Whether to continue until the run has ended.
        """

        def look() -> Iterator[bytes]:
            found = log_tail.poll()
            while part := _some_lines(log_tail, found):
                yield part

        return self._parts(run, log_tail.has_ended, look, follow)

    def events(self, run: RunRecord, after: Last, *, follow: bool) -> AsyncGenerator[bytes, None]:
        """Yield the events of a run's journal, then one `end` event.

        Args:
            run: The run.
            after: The last event that the client has received.
            follow: Whether to continue until the run has ended.
        """

        def has_ended() -> bool:
            now = self._metadata.run(run.flow, run.run)
            return now is None or now.state in TERMINAL_RUN_STATES

        def look() -> Iterator[bytes]:
            nonlocal after
            more = True
            while more:
                part, after, more = _some(self._metadata, run.key, after)
                if part:
                    yield part

        return self._parts(run, has_ended, look, follow)

    async def _parts(
        self,
        run: RunRecord,
        has_ended: Callable[[], bool],
        look: Callable[[], Iterator[bytes]],
        follow: bool,
    ) -> AsyncGenerator[bytes, None]:
        """Yield the results of `look`, repeatedly while the run is followed, and one `end`
        event."""
        silence = 0.0
        while True:
            # Checked before reading: records written before the end of the run are found by this
            # read.
            is_last = not follow or await self._read(has_ended)
            found = look()
            while (part := await self._read(next, found, None)) is not None:
                silence = 0.0
                yield part
            if is_last:
                yield await self._end(run)
                return
            if await self.rest(LOOK):
                return
            silence += LOOK
            if silence >= KEEP_ALIVE:
                silence = 0.0
                yield b": still here\n\n"

    async def _end(self, run: RunRecord) -> bytes:
        now = await self._read(self._metadata.run, run.flow, run.run)
        if now is None:
            raise NotFound(f"The run {run.flow}/{run.run} no longer exists.")
        return event("end", {"state": now.state.value, "reason": now.reason})


async def _write(response: web.StreamResponse, chunks: AsyncGenerator[bytes, None]) -> None:
    async with aclosing(chunks):
        async for each in chunks:
            async with asyncio.timeout(_PATIENCE):
                await response.write(each)


def event(kind: str, data: Any, id_: str | None = None) -> bytes:
    """Return an encoded event.

    Args:
        kind: The type of the event, as dispatched by EventSource.
        data: The data of the event, encoded as JSON.
        id_: The id of the event; None if clients cannot resume after it.
    """
    head = f"event: {kind}\n" if id_ is None else f"id: {id_}\nevent: {kind}\n"
    return f"{head}data: {json.dumps(data)}\n\n".encode()


def last_event(text: str | None) -> Last:
    """Return the position in the journal that a `Last-Event-ID` header describes.

    Args:
        text: The value of the header; None for the start.

    Raises:
        InvalidInput: If the value is malformed.
    """
    if text is None:
        return 0, 0
    if not re.fullmatch(r"\d{1,9}(?:\.\d{1,9})?", text, re.ASCII):
        raise InvalidInput(f"Last-Event-ID {text[:80]!r} is not the id of an event of a run.")
    version, _, count = text.partition(".")
    return int(version), int(count or 0)


def _some_lines(log_tail: LogTail, found: Iterator[TaskLine]) -> bytes:
    lines, size = [], 0
    for line in islice(found, _AT_ONCE):
        lines.append((line, log_tail.position))
        size += len(line.text)
        if size > _BYTES_AT_ONCE:  # bounds the memory held for a slow client
            break
    longest = [_LONG] * (len(lines) - 1) + [_LONGEST]
    return b"".join(
        event("line", plain_line(line), id_ if len(id_) <= most else None)
        for (line, id_), most in zip(lines, longest, strict=False)
    )


def _some(metadata: MetadataStore, run_key: int, after: Last) -> tuple[bytes, Last, bool]:
    """Return a chunk of encoded events after a position, the new position, and whether there may be
    more. The query is closed before returning, so that a slow client keeps none open."""
    version, skipped = after
    with closing(metadata.journal_after(run_key, version - 1 if skipped else version)) as found:
        batches = [*islice(found, _AT_ONCE)]
    parts = []
    for number, batch in batches:
        try:
            events = [_event_of(metadata, run_key, at, each) for at, each in decode_events(batch)]
        except MetadataUnavailable:
            raise
        except MetadataError as error:  # other batches may be readable
            events = [("damaged", {"reason": str(error)})]
        sent = [each for each in events if each is not None]
        first = skipped if number == version else 0
        for count, (kind, data) in enumerate(sent[first:], first + 1):
            id_ = f"{number}" if count == len(sent) else f"{number}.{count}"
            parts.append(event(kind, data, id_))
    last = (batches[-1][0], 0) if batches else after
    return b"".join(parts), last, len(batches) == _AT_ONCE


def _event_of(
    metadata: MetadataStore, run_key: int, at: float, what: Event
) -> tuple[str, dict[str, Any]] | None:
    if isinstance(what, RunStarted):
        return "run_started", {"at": at}
    if isinstance(what, CancelRequested):
        return "cancel_requested", {"at": at, "reason": what.reason}
    if isinstance(what, ItemsReady):
        return "items_ready", {"at": at, "task": what.task, "count": what.count}
    if isinstance(what, AttemptEnded):
        view = metadata.task(run_key, what.task)
        return "attempt_ended", {
            "at": at,
            "step": view.task.step if view else None,
            "task": what.task,
            "attempt": what.attempt,
            "state": what.outcome.state.value,
            "reason": what.outcome.reason,
        }
    return None
