"""Server-sent events: what happens in a run, and what its tasks print.

The format is that of the HTML standard, section 9.2: lines `event:`, `id:` and `data:`, and an
empty line. Nothing is read ahead of a client that is slow: it holds up itself alone.
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

LOOK = 0.5  # seconds between looks
KEEP_ALIVE = 15.0  # seconds of silence after which a comment is sent
_AT_ONCE = 200  # lines, or batches of events, that are read before they are sent
_BYTES_AT_ONCE = 64 << 10  # of text, the last line not counted
_MOST = 100  # streams at once: each looks twice a second
_READERS = 2  # threads that read for streams at once: each takes turns with the event loop
_PATIENCE = 60.0  # seconds that a client may leave what was sent unread
_LONG = 500  # characters of an id that is sent with the last line alone of what is sent at once
_LONGEST = 6000  # characters of an id that a client could send again

T = TypeVar("T")
Last = tuple[int, int]  # a version of the journal, and how many events of it (0: all)


class Streams:
    """The streams of one server; there are not too many, and they end before the server does."""

    def __init__(self, metadata: MetadataStore) -> None:
        self._metadata = metadata
        self._count = 0
        self._closed = asyncio.Event()
        self._reading = asyncio.Semaphore(_READERS)

    def close(self) -> None:
        """End all streams, each without its `end`: clients go on where they were."""
        self._closed.set()

    async def _read(self, read: Callable[..., T], *arguments: Any) -> T:
        """What `read(*arguments)` returns, called in a thread; few are at a time."""
        async with self._reading:
            return await asyncio.to_thread(read, *arguments)

    async def rest(self, seconds: float) -> bool:
        """Wait that long, or until it is time to end.

        Args:
            seconds: How many seconds to wait at most.

        Returns:
            True once the server is being stopped.
        """
        try:
            async with asyncio.timeout(seconds):
                return await self._closed.wait()
        except TimeoutError:
            return False

    async def answer(
        self, request: web.Request, chunks: AsyncGenerator[bytes, None]
    ) -> web.StreamResponse:
        """Answer with these events as they come. Raises HTTPServiceUnavailable for one stream too
        many."""
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
        """Yield the output of a run: `line` events, and one `end` with its state.

        Args:
            run: The run whose end the last event reports.
            log_tail: The logs that are followed, and how far they were read.
            follow: Whether to go on until the run has ended.
        """

        def look() -> Iterator[bytes]:
            found = log_tail.poll()
            while part := _some_lines(log_tail, found):
                yield part

        return self._parts(run, log_tail.has_ended, look, follow)

    def events(self, run: RunRecord, after: Last, *, follow: bool) -> AsyncGenerator[bytes, None]:
        """Yield the events of a run's journal, and one `end`.

        Args:
            run: The run whose journal is read.
            after: The event after which to begin.
            follow: Whether to go on until the run has ended.
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
        """What `look` finds, again and again while the run is followed, and one `end`."""
        silence = 0.0
        while True:
            # Asked first: what is written meanwhile is found by this look.
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
    """Return one event, as it is sent.

    Args:
        kind: The type of the event, as EventSource dispatches it.
        data: What becomes the JSON of the event.
        id_: The id of the event; None for one that a client cannot go on from.
    """
    head = f"event: {kind}\n" if id_ is None else f"id: {id_}\nevent: {kind}\n"
    return f"{head}data: {json.dumps(data)}\n\n".encode()


def last_event(text: str | None) -> Last:
    """Return the id of the last event that a client has seen.

    Args:
        text: The id, as the client sends it; None for the start.

    Raises:
        InvalidInput: It is malformed.
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
        if size > _BYTES_AT_ONCE:  # what a slow client does not take waits in memory
            break
    longest = [_LONG] * (len(lines) - 1) + [_LONGEST]
    return b"".join(
        event("line", plain_line(line), id_ if len(id_) <= most else None)
        for (line, id_), most in zip(lines, longest, strict=False)
    )


def _some(metadata: MetadataStore, run_key: int, after: Last) -> tuple[bytes, Last, bool]:
    """What has happened after that event, not too much at once; the last of it, and whether there
    may be more. The query is over when this returns: a slow client keeps none open."""
    version, skipped = after
    with closing(metadata.journal_after(run_key, version - 1 if skipped else version)) as found:
        batches = [*islice(found, _AT_ONCE)]
    parts = []
    for number, batch in batches:
        try:
            events = [_event_of(metadata, run_key, at, each) for at, each in decode_events(batch)]
        except MetadataUnavailable:
            raise
        except MetadataError as error:  # what stands in other batches can be read
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
