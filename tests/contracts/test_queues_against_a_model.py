"""Queues behave like a model of a few lines for any sequence of operations."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aflow.errors import LeaseLost
from aflow.queue.base import Depth, Lease, Message, Queue
from aflow.queue.sqlite import SqliteQueue
from tests.support.clocks import FakeClock

T = TypeVar("T")
MOST = 3  # deliveries
TOPICS = st.sampled_from(["t", "u"])
NAMES = st.sampled_from("ab")
WHICH = st.integers(0, 4)
SECONDS = st.sampled_from([1.0, 5.0, 60.0])


@dataclass
class Entry:
    """A message in the model."""

    deliveries: int = 0
    token: str | None = None
    until: float = 0.0  # when the lease or the delay expires
    buried: bool = False


class QueueMachine(RuleBasedStateMachine):
    """One queue and its model; subclasses choose the queue."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = FakeClock()
        self.queue = self.open()
        self.model: dict[tuple[str, str], Entry] = {}
        self.leases: list[Lease] = []

    def open(self) -> Queue:
        raise NotImplementedError

    def do(self, call: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(call)

    def teardown(self) -> None:
        self.do(self.queue.close())
        self.loop.close()

    def settle(self) -> None:
        """Apply the elapsed time to the model."""
        for entry in self.model.values():
            if entry.token is not None and entry.until <= self.clock.monotonic():
                self.come_back(entry)

    @staticmethod
    def come_back(entry: Entry, until: float = 0.0) -> None:
        entry.token, entry.until = None, until
        entry.buried = entry.deliveries >= MOST

    def held(self, lease: Lease) -> Entry | None:
        self.settle()
        entry = self.model.get((lease.topic, lease.id))
        return entry if entry is not None and entry.token == lease.token else None

    # ------------------------------------------------------------------ rules

    @rule(topic=TOPICS, names=st.lists(NAMES, max_size=3))
    def put(self, topic: str, names: list[str]) -> None:
        self.do(self.queue.put(topic, [Message(name, name.encode()) for name in names]))
        for name in names:
            self.model.setdefault((topic, name), Entry())

    @rule(topics=st.sampled_from([["t"], ["u"], ["t", "u"]]), limit=st.integers(1, 3), ttl=SECONDS)
    def lease(self, topics: list[str], limit: int, ttl: float) -> None:
        self.settle()
        now = self.clock.monotonic()
        ready = {
            key
            for key, entry in self.model.items()
            if key[0] in topics and not entry.token and not entry.buried and entry.until <= now
        }
        taken = self.do(self.queue.lease(topics, limit, ttl))

        assert min(limit, len(ready)) == len(taken)
        first = {key for key in ready if key[0] == topics[0]}
        assert min(limit, len(first)) == sum(lease.topic == topics[0] for lease in taken)
        for lease in taken:
            entry = self.model[lease.topic, lease.id]
            assert (lease.topic, lease.id) in ready
            assert lease.id.encode() == lease.body
            entry.deliveries += 1
            entry.token, entry.until = lease.token, now + ttl
            assert entry.deliveries == lease.deliveries
            assert self.clock.now() + ttl == lease.expires_at
        self.leases += taken

    @rule(seconds=st.sampled_from([0.5, 4.0, 30.0, 100.0]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(seconds=st.sampled_from([-100_000.0, -40.0, 40.0, 100_000.0]))
    def set_the_clock(self, seconds: float) -> None:
        """Leases and delays expire on time, even if the clock is set."""
        self.clock.jump(seconds)

    def chosen(self, which: int, count: int = 1) -> list[Lease]:
        """Return earlier leases, the latest first."""
        return self.leases[::-1][which : which + count]

    @rule(which=WHICH, ttl=SECONDS)
    def extend(self, which: int, ttl: float) -> None:
        for lease in self.chosen(which):
            entry = self.held(lease)
            try:
                (longer,) = self.do(self.queue.extend([lease], ttl))
            except LeaseLost:
                assert entry is None
            else:
                assert entry is not None
                entry.until = self.clock.monotonic() + ttl
                assert self.clock.now() + ttl == longer.expires_at

    @rule(which=WHICH, count=st.integers(1, 3))
    def ack(self, which: int, count: int) -> None:
        leases = self.chosen(which, count)
        lost = [lease.id for lease in leases if self.held(lease) is None]
        for lease in leases:
            if self.held(lease) is not None:
                del self.model[lease.topic, lease.id]
        reported: list[str] = []
        try:
            self.do(self.queue.ack(leases))
        except LeaseLost as error:
            reported += error.lost
        assert lost == reported

    @rule(which=WHICH, delay=st.sampled_from([0.0, 3.0]), counted=st.booleans())
    def release(self, which: int, delay: float, counted: bool) -> None:
        for lease in self.chosen(which):
            entry = self.held(lease)
            try:
                self.do(self.queue.release([lease], delay=delay, counted=counted))
            except LeaseLost:
                assert entry is None
            else:
                assert entry is not None
                entry.deliveries -= not counted
                self.come_back(entry, self.clock.monotonic() + delay)

    @rule(topic=TOPICS, names=st.lists(NAMES, max_size=3))
    def remove(self, topic: str, names: list[str]) -> None:
        self.settle()
        self.do(self.queue.remove(topic, names))
        for name in names:
            if (topic, name) in self.model and self.model[topic, name].token is None:
                del self.model[topic, name]

    @invariant()
    def what_is_there_is_where_the_model_says(self) -> None:
        self.settle()
        for topic in ("t", "u"):
            there = {key[1]: entry for key, entry in self.model.items() if key[0] == topic}
            buried = {name for name, entry in there.items() if entry.buried}
            leased = sum(entry.token is not None for entry in there.values())
            expected = Depth(len(there) - leased - len(buried), leased, len(buried))
            assert expected == self.do(self.queue.depth(topic))
            assert buried == {each.id for each in self.do(self.queue.buried(topic))}


class MemoryMachine(QueueMachine):
    def open(self) -> Queue:
        return SqliteQueue(None, MOST, self.clock)


class SqliteMachine(QueueMachine):
    def open(self) -> Queue:
        self.folder = tempfile.TemporaryDirectory()
        return SqliteQueue(Path(self.folder.name) / "queue.db", MOST, self.clock)

    def teardown(self) -> None:
        super().teardown()
        self.folder.cleanup()


TestMemory = MemoryMachine.TestCase
TestSqlite = SqliteMachine.TestCase
TestMemory.settings = settings(max_examples=60, stateful_step_count=40)
TestSqlite.settings = settings(max_examples=10, stateful_step_count=30)
