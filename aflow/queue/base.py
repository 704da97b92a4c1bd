"""The port of the queue: messages by topic, handed out by lease, delivered at least once.

A topic is a name of `[A-Za-z0-9_.-]`, at most 64 characters, and needs no making. `tasks.POOL` has
tasks for the workers of a pool, `reports.OWNER` what workers tell the coordinator of that name.

What every backend promises, and tests/contracts/test_queues.py checks:

- `put` of many is all or nothing. A message whose id the topic has already (ready, leased or
  buried) is not put again.
- A message is with one lease at a time. `lease` hands out those that are ready, roughly in the
  order in which they were put; it waits for the first of them, as long as it is told to, and is
  woken by a `put` rather than looking again and again.
- A lease ends by `ack` (the message is gone), by `release` (it is ready again), or when its time
  has passed: then the message is delivered again. `deliveries` counts, the current one included.
- A message that comes back after `max_deliveries` deliveries is buried: kept to be looked at, and
  never delivered again. A release that is not `counted` takes its own delivery back.
- `extend`, `ack` and `release` of a lease that has ended raise LeaseLost and change nothing of its
  message; the other leases of the same call are served.
- What was put survives the queue's users; whether it survives the broker, its page says.
- A broker that is away, refuses or was told wrong credentials raises QueueUnavailable: one sentence
  with the place, the reason and what to do. A call that raised may have been carried out.

Effects are exactly-once because commits are fenced by attempt, not because delivery is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from aflow.errors import InvalidName

MAX_DELIVERIES = 5

_TOPIC = re.compile(r"[A-Za-z0-9_.\-]{1,64}\Z")
_ID = re.compile(r"[A-Za-z0-9_.:/\-]{1,256}\Z")


class Message(NamedTuple):
    """What is put: an id of `[A-Za-z0-9_.:/-]` that is its own in the topic, and some bytes."""

    id: str
    body: bytes


class Lease(NamedTuple):
    """A message that is ours until `expires_at` (seconds since the epoch). `token` tells this
    lease from earlier and later ones of the message."""

    topic: str
    id: str
    token: str
    body: bytes
    deliveries: int
    expires_at: float


class Buried(NamedTuple):
    """A message that was delivered too often and never acknowledged."""

    topic: str
    id: str
    body: bytes
    deliveries: int
    buried_at: float


class Depth(NamedTuple):
    """How many messages of a topic are where; ready ones include those that are delayed. Some
    brokers only estimate."""

    ready: int
    leased: int
    buried: int


class Queue(Protocol):
    """Messages by topic; see the module's text for what is promised."""

    @property
    def url(self) -> str:
        """Where it is, without a password."""

    async def put(self, topic: str, messages: Sequence[Message]) -> None:
        """Add messages to the topic."""

    async def lease(
        self, topics: Sequence[str], limit: int, ttl: float, wait: float = 0.0
    ) -> list[Lease]:
        """Up to `limit` messages of these topics, for `ttl` seconds; the topics named first go
        first. Waits up to `wait` seconds for the first message, and gives none if none came."""

    async def extend(self, leases: Sequence[Lease], ttl: float) -> list[Lease]:
        """The same leases, for `ttl` seconds from now."""

    async def ack(self, leases: Sequence[Lease]) -> None:
        """The messages are done with."""

    async def release(
        self, leases: Sequence[Lease], *, delay: float = 0.0, counted: bool = True
    ) -> None:
        """Give the messages back, to be delivered again after `delay` seconds."""

    async def remove(self, topic: str, ids: Sequence[str]) -> None:
        """Forget messages that nobody has leased, buried ones among them. Others are left alone."""

    async def buried(self, topic: str, limit: int = 100) -> list[Buried]:
        """The buried messages of a topic, oldest first."""

    async def depth(self, topic: str) -> Depth:
        """How many messages the topic has."""

    async def close(self) -> None:
        """Let go of connections; what was leased stays so until its time has passed. May be called
        twice."""


def check_topic(topic: str) -> str:
    """The topic, if it can be one; raises InvalidName."""
    if not _TOPIC.match(topic):
        raise InvalidName(
            f"{topic[:80]!r} cannot be the name of a topic: use letters, digits and . _ -, at most "
            "64 of them."
        )
    return topic


def check_messages(messages: Sequence[Message]) -> Sequence[Message]:
    """The messages, if their ids can be ids; raises InvalidName."""
    for message in messages:
        if not _ID.match(message.id):
            raise InvalidName(f"{message.id[:80]!r} cannot be the id of a message.")
    return messages
