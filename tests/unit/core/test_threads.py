"""An event loop in a separate thread, and calls that are cancelled before they start there."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import CancelledError, Future
from types import SimpleNamespace

import pytest

from aflow._core.threads import Portal
from aflow.storage.s3 import _in_lane

LONGEST = 60  # seconds


async def closed(_: str) -> None:
    """Do nothing: nothing was opened."""


def test_a_portal_that_is_closed_ends_the_calls_that_still_go_on() -> None:
    async def opened() -> str:
        return "resource"

    goes_on = threading.Event()
    ended: list[str] = []

    async def work(resource: str) -> None:
        try:
            goes_on.set()
            await asyncio.Event().wait()
        finally:
            ended.append(resource)

    portal = Portal("test-portal", opened, closed)
    answer = portal.begin(work)
    assert goes_on.wait(LONGEST)

    portal.close(LONGEST)

    with pytest.raises(CancelledError):
        answer.result(LONGEST)
    assert ["resource"] == ended


def test_a_part_that_is_cancelled_while_its_lane_connects_is_not_sent() -> None:
    connects, may_connect = threading.Event(), threading.Event()
    sent: list[str] = []

    async def opened() -> str:
        connects.set()
        await asyncio.to_thread(may_connect.wait, LONGEST)
        return "client"

    async def send(client: str) -> None:
        await asyncio.Event().wait()
        sent.append(client)

    lane = Portal("test-lane", opened, closed)
    begun: list[Future[None]] = []

    class Seen:
        """Keeps what the lane has begun."""

        def begin(self, work: object) -> Future[None]:
            begun.append(lane.begin(send))
            return begun[0]

    async def cancelled() -> None:
        part = asyncio.create_task(_in_lane(SimpleNamespace(aflow_lanes=[Seen()]), 1, send))
        assert await asyncio.to_thread(connects.wait, LONGEST)
        part.cancel()
        with pytest.raises(asyncio.CancelledError):
            await part

    asyncio.run(cancelled())
    may_connect.set()
    for thread in threading.enumerate():
        if thread.name == "aflow-call":
            thread.join(LONGEST)

    assert [True] == [each.cancelled() for each in begun]
    lane.close(LONGEST)
    assert [] == sent
