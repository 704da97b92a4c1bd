"""A queue inside of one process: for tests, for embedding, and for a standalone server."""

from __future__ import annotations

import asyncio
import heapq
import uuid
from collections import OrderedDict, defaultdict, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aflow._core.clock import SystemClock
from aflow.queue.base import (
    MAX_DELIVERIES,
    Buried,
    Depth,
    Lease,
    Message,
    Queue,
    check_held,
    check_messages,
    check_topic,
    group_of,
)

if TYPE_CHECKING:
    from aflow._core.clock import Clock


@dataclass(slots=True, eq=False)
class _StoredMessage:
    """One message. `token` is that of its lease, `due` the end of its lease or delay, `since` when
    it became ready; both by the monotonic clock."""

    topic: str
    id: str
    body: bytes
    priority: int
    group: str
    is_ready: bool = False
    since: float = 0.0
    deliveries: int = 0
    token: str | None = None
    due: float | None = None
    buried_at: float | None = None


class _Ready:
    """The ready messages of a topic, by priority and group; the first group is the next one."""

    def __init__(self) -> None:
        self._classes: dict[int, OrderedDict[str, deque[_StoredMessage]]] = {}

    def add(self, entry: _StoredMessage, *, first: bool = False) -> None:
        """Add a message; if `first`, before others of its group, whose turn is then next."""
        groups = self._classes.get(entry.priority)
        if groups is None:
            groups = self._classes[entry.priority] = OrderedDict()
        members = groups.get(entry.group)
        if members is None:
            members = groups[entry.group] = deque()
        entry.is_ready = True
        if first:
            members.appendleft(entry)
            groups.move_to_end(entry.group, last=False)
        else:
            members.append(entry)

    def take(self, limit: int, skip: Collection[str]) -> list[_StoredMessage]:
        """Remove up to `limit` messages from the ready ones, and return them."""
        taken: list[_StoredMessage] = []
        for priority in sorted(self._classes, reverse=True):
            groups = self._classes[priority]
            left = {group: groups.pop(group) for group in skip if group in groups}
            while groups and len(taken) < limit:
                group, members = next(iter(groups.items()))
                entry = members.popleft()
                if members:
                    groups.move_to_end(group)
                else:
                    del groups[group]
                if entry.is_ready:  # otherwise it was deleted
                    entry.is_ready = False
                    taken.append(entry)
            groups.update(left)
            if not groups:
                del self._classes[priority]
        return taken

    def listed(self, limit: int) -> list[_StoredMessage]:
        """Return the first messages, in the order in which they would be taken."""
        found: list[_StoredMessage] = []
        for priority in sorted(self._classes, reverse=True):
            turns = deque(deque(each) for each in self._classes[priority].values())
            while turns and len(found) < limit:
                members = turns.popleft()
                entry = members.popleft()
                if members:
                    turns.append(members)
                if entry.is_ready:
                    found.append(entry)
        return found


class MemoryQueue(Queue):
    """A queue for one event loop. Its messages are lost when the program ends."""

    def __init__(self, max_deliveries: int = MAX_DELIVERIES, clock: Clock | None = None) -> None:
        self._max_deliveries = max_deliveries
        self._clock = clock or SystemClock()
        self._entries: dict[tuple[str, str], _StoredMessage] = {}
        self._ready: defaultdict[str, _Ready] = defaultdict(_Ready)
        self._announced: dict[str, tuple[bytes, float]] = {}
        self._timed: list[tuple[float, int, _StoredMessage]] = []
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
                entry = self._entries[topic, message.id] = _StoredMessage(
                    topic, *message, group_of(message.id), since=self._clock.monotonic()
                )
                self._ready[topic].add(entry)
                self._news.set()

    async def lease(
        self,
        topics: Sequence[str],
        limit: int,
        ttl: float,
        wait: float = 0.0,
        skip: Collection[str] = (),
    ) -> list[Lease]:
        """Lease messages; see the port."""
        for topic in topics:
            check_topic(topic)
        give_up_at = self._clock.monotonic() + wait
        while True:
            self._news.clear()
            self._settle()
            taken = self._take(topics, limit, ttl, skip)
            left = give_up_at - self._clock.monotonic()
            if taken or left <= 0:
                return taken
            if self._timed:
                left = min(left, max(0.0, self._timed[0][0] - self._clock.monotonic()))
            try:
                # Not wait_for: in Python 3.11 it loses a cancellation concurrent with the event.
                async with asyncio.timeout(left):
                    await self._news.wait()
            except TimeoutError:
                continue  # a message is due, or the time is up: both are checked above

    def _take(
        self, topics: Sequence[str], limit: int, ttl: float, skip: Collection[str]
    ) -> list[Lease]:
        taken: list[Lease] = []
        for topic in topics:
            for entry in self._ready[topic].take(limit - len(taken), skip):
                entry.deliveries += 1
                entry.token = uuid.uuid4().hex
                self._at(entry, self._clock.monotonic() + ttl)
                taken.append(self._lease_of(entry))
        return taken

    def _lease_of(self, entry: _StoredMessage) -> Lease:
        assert entry.token is not None, "it is leased"
        assert entry.due is not None, "leases end"
        expires_at = self._clock.now() + entry.due - self._clock.monotonic()
        return Lease(
            topic=entry.topic,
            id=entry.id,
            token=entry.token,
            body=entry.body,
            deliveries=entry.deliveries,
            expires_at=expires_at,
        )

    def _settle(self) -> None:
        """Make messages whose lease or delay has ended ready, or bury them."""
        now = self._clock.monotonic()
        while self._timed and self._timed[0][0] <= now:
            due, _, entry = heapq.heappop(self._timed)
            if entry.due == due and self._entries.get((entry.topic, entry.id)) is entry:
                self._come_back(entry)

    def _come_back(self, entry: _StoredMessage) -> None:
        entry.token = entry.due = None
        if entry.deliveries >= self._max_deliveries:
            entry.buried_at = self._clock.now()
        else:
            entry.since = self._clock.monotonic()
            self._ready[entry.topic].add(entry, first=True)
            self._news.set()

    def _at(self, entry: _StoredMessage, due: float) -> None:
        entry.due = due
        self._pushed += 1
        heapq.heappush(self._timed, (due, self._pushed, entry))

    def _held(self, leases: Sequence[Lease]) -> dict[str, _StoredMessage]:
        """Return the messages whose leases have not ended, by token."""
        self._settle()
        there = {each.token: self._entries.get((each.topic, each.id)) for each in leases}
        return {token: each for token, each in there.items() if each and each.token == token}

    async def extend(self, leases: Sequence[Lease], ttl: float) -> list[Lease]:
        """Extend leases; see the port."""
        held = self._held(leases)
        for entry in held.values():
            self._at(entry, self._clock.monotonic() + ttl)
        extended = [self._lease_of(entry) for entry in held.values()]
        check_held(leases, held, extended)
        return extended

    async def ack(self, leases: Sequence[Lease]) -> None:
        """Delete messages; see the port."""
        held = self._held(leases)
        for entry in held.values():
            self._forget(entry)
        check_held(leases, held)

    async def release(
        self, leases: Sequence[Lease], *, delay: float = 0.0, counted: bool = True
    ) -> None:
        """Make messages available for redelivery; see the port."""
        held = self._held(leases)
        for entry in held.values():
            if not counted:
                entry.deliveries -= 1
            entry.token = None
            if delay > 0 and entry.deliveries < self._max_deliveries:
                self._at(entry, self._clock.monotonic() + delay)
            else:
                self._come_back(entry)
        check_held(leases, held)

    async def bury(self, leases: Sequence[Lease]) -> None:
        """Keep messages for inspection; see the port."""
        held = self._held(leases)
        for entry in held.values():
            entry.token = entry.due = None
            entry.buried_at = self._clock.now()
        check_held(leases, held)

    async def remove(self, topic: str, ids: Sequence[str], *, leased: bool = False) -> None:
        """Delete messages; see the port."""
        self._settle()
        for name in ids:
            entry = self._entries.get((topic, name))
            if entry is not None and (leased or entry.token is None):
                self._forget(entry)

    def _forget(self, entry: _StoredMessage) -> None:
        entry.is_ready = False
        del self._entries[entry.topic, entry.id]

    async def known(self, topic: str, ids: Sequence[str]) -> set[str] | None:
        """Return which of these messages exist; see the port."""
        return {name for name in ids if (topic, name) in self._entries}

    async def drop(self, topic: str) -> None:
        """Delete the topic; see the port."""
        for entry in [each for each in self._entries.values() if each.topic == topic]:
            self._forget(entry)
        self._ready.pop(topic, None)

    async def redrive(self, topic: str, ids: Sequence[str]) -> int:
        """Make buried messages ready; see the port."""
        self._settle()
        there = [self._entries.get((topic, name)) for name in ids]
        buried = [each for each in there if each is not None and each.buried_at is not None]
        for entry in buried:
            entry.buried_at, entry.deliveries = None, 0
            self._come_back(entry)
        return len(buried)

    async def peek(self, topic: str, limit: int = 100) -> list[Message] | None:
        """Return the ready messages; see the port."""
        self._settle()
        ready = self._ready.get(topic)
        return [Message(each.id, each.body) for each in ready.listed(limit)] if ready else []

    async def topics(self) -> list[str] | None:
        """Return the topics that have messages; see the port."""
        return sorted({topic for topic, _ in self._entries})

    async def announce(self, name: str, body: bytes, ttl: float) -> None:
        """Publish a record of a worker; see the port."""
        if body:
            self._announced[name] = body, self._clock.monotonic() + ttl
        else:
            self._announced.pop(name, None)

    async def announced(self) -> Mapping[str, bytes] | None:
        """Return the unexpired records of workers; see the port."""
        now = self._clock.monotonic()
        self._announced = {
            name: (body, until) for name, (body, until) in self._announced.items() if until > now
        }
        return {name: body for name, (body, _) in self._announced.items()}

    async def buried(self, topic: str, limit: int = 100) -> list[Buried]:
        """Return the buried messages; see the port."""
        self._settle()
        found = [
            Buried(topic, each.id, each.body, each.deliveries, each.buried_at)
            for each in self._entries.values()
            if each.topic == topic and each.buried_at is not None
        ]
        return sorted(found, key=lambda each: each.buried_at)[:limit]

    async def depth(self, topic: str) -> Depth:
        """Return the numbers of messages of the topic; see the port."""
        self._settle()
        there = [each for each in self._entries.values() if each.topic == topic]
        buried = sum(each.buried_at is not None for each in there)
        leased = sum(each.token is not None for each in there)
        return Depth(len(there) - buried - leased, leased, buried)

    async def longest_wait(self, topic: str) -> float | None:
        """Return the waiting time of the oldest ready message; see the port."""
        self._settle()
        now = self._clock.monotonic()
        ready = [e.since for e in self._entries.values() if e.topic == topic and e.is_ready]
        return max(now - min(ready, default=now), 0.0)

    async def close(self) -> None:
        """Do nothing: there are no connections."""
