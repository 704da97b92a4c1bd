"""Server-sent events: what happens in a run, and what its tasks print.

The format is that of the HTML standard, section 9.2: lines `event:`, `id:` and `data:`, and an
empty line. Nothing is read ahead of a client that is slow: it holds up itself alone.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from aiohttp import web

from aflow import backends
from aflow.errors import NotFound
from aflow.following import Following, TaskLine
from aflow.scheduler.codec import decode_events
from aflow.scheduler.messages import AttemptEnded, CancelRequested, Event, ItemsReady, RunStarted
from aflow.scheduler.states import TERMINAL_RUN_STATES

if TYPE_CHECKING:
    from aflow.metadata.base import MetadataStore, RunRecord

LOOK = 0.5  # seconds between looks
KEEP_ALIVE = 15.0  # seconds of silence after which a comment is sent
_AT_ONCE = 200  # lines, or batches of events, that are read before they are sent


async def answer(request: web.Request, told: AsyncIterator[bytes]) -> web.StreamResponse:
    """Answer with these events as they come."""
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
    )
    await response.prepare(request)
    try:
        async for each in told:
            await response.write(each)
    except ConnectionResetError:  # the client has enough
        return response
    await response.write_eof()
    return response


def event(kind: str, data: Any, id_: str | None = None) -> bytes:
    """One event as it is sent."""
    head = f"event: {kind}\n" if id_ is None else f"id: {id_}\nevent: {kind}\n"
    return f"{head}data: {json.dumps(data)}\n\n".encode()


async def lines(
    metadata: MetadataStore, run: RunRecord, step: str | None, task: int | None, follow: bool
) -> AsyncIterator[bytes]:
    """The output of a run, of a step or of a task: `line` events, and one `end` with its state."""
    store = backends.open_store(run.settings["storage"])
    following = Following(metadata, store, run, step, task)
    async for each in _again_and_again(following, follow):
        yield each
    yield await _end(metadata, run)


async def _again_and_again(following: Following, follow: bool) -> AsyncIterator[bytes]:
    silence = 0.0
    while True:
        is_last = not follow or await asyncio.to_thread(following.has_ended)
        found = following.poll()
        while part := await asyncio.to_thread(lambda: [*islice(found, _AT_ONCE)]):  # noqa: B023
            silence = 0.0
            yield b"".join(event("line", _line(each)) for each in part)
        if is_last:
            return
        await asyncio.sleep(LOOK)
        silence += LOOK
        if silence >= KEEP_ALIVE:
            silence = 0.0
            yield b": still here\n\n"


def _line(line: TaskLine) -> dict[str, Any]:
    return {**line._asdict(), "text": line.text.decode("utf-8", "replace")}


async def happenings(
    metadata: MetadataStore, run: RunRecord, after: int, follow: bool
) -> AsyncIterator[bytes]:
    """The events of a run's journal above version `after`, whose versions are their ids, and one
    `end`."""
    silence = 0.0
    while True:
        now = await asyncio.to_thread(metadata.run, run.flow, run.run)
        found = metadata.journal_after(run.key, after)
        while part := await asyncio.to_thread(lambda: _some(metadata, run.key, found)):  # noqa: B023
            silence = 0.0
            for version, told in part:
                after = version
                for kind, data in told:
                    yield event(kind, data, str(version))
        if not follow or now is None or now.state in TERMINAL_RUN_STATES:
            yield await _end(metadata, run)
            return
        await asyncio.sleep(LOOK)
        silence += LOOK
        if silence >= KEEP_ALIVE:
            silence = 0.0
            yield b": still here\n\n"


_Told = list[tuple[str, dict[str, Any]]]


def _some(
    metadata: MetadataStore, run_key: int, batches: Iterator[tuple[int, bytes]]
) -> list[tuple[int, _Told]]:
    told: list[tuple[int, _Told]] = []
    for version, batch in islice(batches, _AT_ONCE):
        events = [_happened(metadata, run_key, at, each) for at, each in decode_events(batch)]
        told.append((version, [each for each in events if each is not None]))
    return told


def _happened(
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


async def _end(metadata: MetadataStore, run: RunRecord) -> bytes:
    now = await asyncio.to_thread(metadata.run, run.flow, run.run)
    if now is None:
        raise NotFound(f"There is no run {run.flow}/{run.run} any more.")
    return event("end", {"state": now.state.value, "reason": now.reason})
