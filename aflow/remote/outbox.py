"""What a worker has to say to coordinators, and to the queue: in order, until it is heard."""

from __future__ import annotations

import asyncio
import socket
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from aflow.errors import LeaseLost, QueueUnavailable
from aflow.executors import letters
from aflow.executors.letters import ReportsLetter
from aflow.queue.away import pause
from aflow.queue.base import Lease, Message, Queue


class Outbox:
    """What is to be said to coordinators: together, in order, and leases acknowledged after it."""

    def __init__(self, queue: Queue, worker: str, key: bytes | None) -> None:
        self._queue = queue
        self._worker = worker
        self._key = key
        self._host = socket.gethostname()
        self._number = 0
        self._events: defaultdict[str, list[Any]] = defaultdict(list)
        self._done: list[Lease] = []
        self._back: list[Lease] = []
        self._news = asyncio.Event()
        self._closed = False

    def add(self, reply: str, event: Sequence[Any], done: Lease | None = None) -> None:
        """Say it soon; `done` is acknowledged after that."""
        self._events[reply].append(event)
        if done is not None:
            self._done.append(done)
        self._news.set()

    def give_back(self, lease: Lease) -> None:
        """Somebody else is to have it, as if we had never taken it."""
        self._back.append(lease)
        self._news.set()

    def close(self) -> None:
        """`send` returns when all is said."""
        self._closed = True
        self._news.set()

    async def send(self) -> None:
        """Say what there is to say, again and again."""
        while True:
            await self._news.wait()
            self._news.clear()
            events, self._events = self._events, defaultdict(list)
            done, self._done = self._done, []
            back, self._back = self._back, []
            for reply, said in events.items():
                for part in letters.parts(said):
                    await self._put(reply, part)
            await self._until_done(lambda: self._queue.ack(done))  # noqa: B023
            await self._until_done(lambda: self._queue.release(back, counted=False))  # noqa: B023
            if self._closed and not self._news.is_set():
                return

    async def _put(self, reply: str, events: list[Any]) -> None:
        self._number += 1
        letter = ReportsLetter(self._worker, self._host, self._number, events)
        message = Message(f"{self._worker}:{self._number}", letter.seal(self._key))
        await self._until_done(lambda: self._queue.put(reply, [message]))

    async def _until_done(self, call: Callable[[], Any]) -> None:
        """The broker may be away: what was done is not to be lost for that."""
        while True:
            try:
                await call()
                return
            except LeaseLost:  # the message was delivered again: it will be seen to be settled
                return
            except QueueUnavailable:
                await pause()
