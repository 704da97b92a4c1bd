"""A queue inside of one process: for tests, for embedding, and for a server on its own."""

from __future__ import annotations

import asyncio
import heapq
import uuid
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from aflow.clock import SystemClock
from aflow.errors import LeaseLost
from aflow.queue.base import (
    MAX_DELIVERIES,
    Buried,
    Depth,
    Lease,
    Message,
    check_messages,
    check_topic,
)

if TYPE_CHECKING:
    from aflow.clock import Clock


class _Entry:
    """One message. `token` is that of its lease, `due` when that ends or when its delay does."""

    __slots__ = ("body", "buried_at", "deliveries", "due", "id", "token", "topic")

    def __init__(self, topic: str, message: Message) -> None:
        self.topic = topic
        self.id = message.id
        self.body = message.body
        self.deliveries = 0
        self.token: str | None = None
        self.due: float | None = None
        self.buried_at: float | None = None


class MemoryQueue:
    """The queue of one event loop: nothing of it is left when the program ends."""

    def __init__(self, max_deliveries: int = MAX_DELIVERIES, clock: Clock | None = None) -> None:
        self._max_deliveries = max_deliveries
        self._clock = clock or SystemClock()
        self._entries: dict[tuple[str, str], _Entry] = {}
        self._ready: dict[str, deque[_Entry]] = {}
        self._timed: list[tuple[float, int, _Entry]] = []
        self._pushed = 0
        self._news = asyncio.Event()

    @property
    def url(self) -> str:
        """`memory:`"""
        return "memory:"

    async def put(self, topic: str, messages: Sequence[Message]) -> None:
        """Add messages; see the port."""
        check_topic(topic)
        for message in check_messages(messages):
            if (topic, message.id) not in self._entries:
                entry = self._entries[topic, message.id] = _Entry(topic, message)
                self._make_ready(entry)

    async def lease(
        self, topics: Sequence[str], limit: int, ttl: float, wait: float = 0.0
    ) -> list[Lease]:
        """Up to `limit` messages; see the port."""
        for topic in topics:
            check_topic(topic)
        give_up_at = self._clock.monotonic() + wait
        while True:
            self._news.clear()
            self._settle()
            taken = self._take(topics, limit, ttl)
            left = give_up_at - self._clock.monotonic()
            if taken or left <= 0:
                return taken
            if self._timed:
                left = min(left, max(0.0, self._timed[0][0] - self._clock.now()))
            try:
                # Not wait_for: in Python 3.11 it loses a cancellation that comes with the news.
                async with asyncio.timeout(left):
                    await self._news.wait()
            except TimeoutError:
                continue  # something is due, or the time is up: both are looked at above

    def _take(self, topics: Sequence[str], limit: int, ttl: float) -> list[Lease]:
        taken: list[Lease] = []
        for topic in topics:
            ready = self._ready.setdefault(topic, deque())
            while ready and len(taken) < limit:
                entry = ready.popleft()
                if self._entries.get((topic, entry.id)) is not entry:
                    continue  # it was removed
                entry.deliveries += 1
                entry.token = uuid.uuid4().hex
                self._at(entry, self._clock.now() + ttl)
                taken.append(self._lease_of(entry))
        return taken

    def _lease_of(self, entry: _Entry) -> Lease:
        assert entry.token is not None, "it is leased"
        assert entry.due is not None, "leases end"
        return Lease(entry.topic, entry.id, entry.token, entry.body, entry.deliveries, entry.due)

    def _settle(self) -> None:
        """Make ready, or bury, whatever the time has come for."""
        now = self._clock.now()
        while self._timed and self._timed[0][0] <= now:
            due, _, entry = heapq.heappop(self._timed)
            if entry.due == due and self._entries.get((entry.topic, entry.id)) is entry:
                self._come_back(entry)

    def _come_back(self, entry: _Entry) -> None:
        entry.token = entry.due = None
        if entry.deliveries >= self._max_deliveries:
            entry.buried_at = self._clock.now()
        else:
            self._make_ready(entry)

    def _make_ready(self, entry: _Entry) -> None:
        self._ready.setdefault(entry.topic, deque()).append(entry)
        self._news.set()

    def _at(self, entry: _Entry, due: float) -> None:
        entry.due = due
        self._pushed += 1
        heapq.heappush(self._timed, (due, self._pushed, entry))

    def _held(self, leases: Sequence[Lease]) -> tuple[list[_Entry], list[str]]:
        """The entries of the leases that have not ended, and the ids of the others."""
        self._settle()
        held, lost = [], []
        for lease in leases:
            entry = self._entries.get((lease.topic, lease.id))
            if entry is not None and entry.token == lease.token:
                held.append(entry)
            else:
                lost.append(lease.id)
        return held, lost

    async def extend(self, leases: Sequence[Lease], ttl: float) -> list[Lease]:
        """Keep leases for longer; see the port."""
        held, lost = self._held(leases)
        for entry in held:
            self._at(entry, self._clock.now() + ttl)
        extended = [self._lease_of(entry) for entry in held]
        if lost:
            raise LeaseLost.of(lost, extended)
        return extended

    async def ack(self, leases: Sequence[Lease]) -> None:
        """The messages are done with; see the port."""
        held, lost = self._held(leases)
        for entry in held:
            del self._entries[entry.topic, entry.id]
        if lost:
            raise LeaseLost.of(lost)

    async def release(
        self, leases: Sequence[Lease], *, delay: float = 0.0, counted: bool = True
    ) -> None:
        """Give messages back; see the port."""
        held, lost = self._held(leases)
        for entry in held:
            if not counted:
                entry.deliveries -= 1
            entry.token = None
            if delay > 0 and entry.deliveries < self._max_deliveries:
                self._at(entry, self._clock.now() + delay)
            else:
                self._come_back(entry)
        if lost:
            raise LeaseLost.of(lost)

    async def remove(self, topic: str, ids: Sequence[str]) -> None:
        """Forget messages; see the port."""
        self._settle()
        for name in ids:
            entry = self._entries.get((topic, name))
            if entry is not None and entry.token is None:
                del self._entries[topic, name]

    async def buried(self, topic: str, limit: int = 100) -> list[Buried]:
        """The buried messages; see the port."""
        self._settle()
        found = [
            Buried(topic, each.id, each.body, each.deliveries, each.buried_at)
            for each in self._entries.values()
            if each.topic == topic and each.buried_at is not None
        ]
        return sorted(found, key=lambda each: each.buried_at)[:limit]

    async def depth(self, topic: str) -> Depth:
        """How many messages the topic has; see the port."""
        self._settle()
        there = [each for each in self._entries.values() if each.topic == topic]
        buried = sum(each.buried_at is not None for each in there)
        leased = sum(each.token is not None for each in there)
        return Depth(len(there) - buried - leased, leased, buried)

    async def close(self) -> None:
        """Nothing to let go of."""
