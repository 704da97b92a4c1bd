"""The port of the queue: messages by topic, handed out by lease, delivered at least once.

A topic is a name of `[A-Za-z0-9_.-]`, at most 64 characters, and needs no making. `tasks.POOL` has
tasks for the workers of a pool, `reports.OWNER` what workers report to the coordinator of that
name.

What every backend promises, and tests/contracts/test_queues.py checks:

- `put` of many is all or nothing. A message whose id the topic has already (ready, leased or
  buried) is not put again.
- A message is with one lease at a time. `lease` hands out those that are ready; it waits for the
  first of them, up to `wait` seconds, and is woken by a `put` rather than looking again and again.
- Messages of a higher priority go first. Of one priority the groups of a topic take turns: a
  message's group is what stands before the first `:` of its id (a run, for tasks), and a group with
  many messages does not hold up one with few. Within a group they come roughly in the order in
  which they were put; one that comes back goes before the others.
- `skip` names groups whose messages are left to others.
- A lease ends by `ack` (the message is gone), by `release` (it is ready again), or when its time
  has passed: then the message is delivered again. `deliveries` counts, the current one included.
- A message that comes back after `max_deliveries` deliveries is buried: kept to be looked at, and
  not delivered again until `redrive` makes it ready. A release that is not `counted` takes its own
  delivery back.
- `extend`, `ack` and `release` of a lease that has ended raise LeaseLost and change nothing of its
  message; the other leases of the same call are served.
- What was put survives the queue's users; whether it survives the broker, its page says. `known`
  tells what the topic still has of what was put.
- What a worker announces of itself is seen by all users until its time has passed.
- A broker that cannot be reached or refuses the credentials raises QueueUnavailable: one sentence
  with the place, the reason and what to do. A call that raised may have been carried out.

Effects are exactly-once because commits are fenced by attempt, not because delivery is.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

from aflow._core.backoff import Backoff
from aflow.errors import InvalidName, LeaseLost

MAX_DELIVERIES = 5
HIGHEST_PRIORITY = 100

_TOPIC = re.compile(r"[A-Za-z0-9_.\-]{1,64}\Z")
_ID = re.compile(r"[A-Za-z0-9_.:/\-]{1,256}\Z")


class Message(NamedTuple):
    """What is put: an id of `[A-Za-z0-9_.:/-]` that is its own in the topic, some bytes, and how
    much it goes before others (from -100 to 100)."""

    id: str
    body: bytes
    priority: int = 0


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
    """Messages by topic; see the module's text for what is promised. A backend derives from it:
    what a method answers where the broker does not say is here."""

    @property
    def url(self) -> str:
        """Where it is, without a password."""

    @property
    def largest(self) -> int | None:
        """How many bytes the body of a message may have; None where aflow's own limit is lower."""
        return None

    async def put(self, topic: str, messages: Sequence[Message]) -> None:
        """Add messages to the topic, all or none. A message whose id the topic has already is left
        out.

        Args:
            topic: The name of the topic.
            messages: The messages, each with an id of its own in the topic.
        """

    async def lease(
        self,
        topics: Sequence[str],
        limit: int,
        ttl: float,
        wait: float = 0.0,
        skip: Collection[str] = (),
    ) -> list[Lease]:
        """Lease messages for `ttl` seconds. Returns an empty list if none came in time.

        Args:
            topics: The topics; those named first go first.
            limit: How many messages are leased at most.
            ttl: For how many seconds they are leased, by the broker's clock.
            wait: How many seconds to wait for the first message.
            skip: Groups whose messages are left to others.

        Returns:
            The leases.
        """

    async def extend(self, leases: Sequence[Lease], ttl: float) -> list[Lease]:
        """Extend leases to `ttl` seconds from now.

        Args:
            leases: Leases of this queue, of any of its topics.
            ttl: For how many seconds from now, by the broker's clock.

        Returns:
            The leases with their new ends.

        Raises:
            LeaseLost: If a lease had ended; the others are extended.
        """

    async def ack(self, leases: Sequence[Lease]) -> None:
        """The messages are done with.

        Args:
            leases: Leases of this queue, of any of its topics.
        """

    async def release(
        self, leases: Sequence[Lease], *, delay: float = 0.0, counted: bool = True
    ) -> None:
        """Give messages back, to be delivered again.

        Args:
            leases: Leases of this queue, of any of its topics.
            delay: After how many seconds they are ready.
            counted: Whether this delivery counts towards `max_deliveries`.

        Raises:
            LeaseLost: If a lease had ended; the other messages are released.
        """

    async def bury(self, leases: Sequence[Lease]) -> None:
        """Keep the messages, to be looked at: nobody can do them.

        Args:
            leases: Leases of this queue, of any of its topics.
        """

    async def remove(self, topic: str, ids: Sequence[str], *, leased: bool = False) -> None:
        """Remove messages, buried ones among them.

        Args:
            topic: The name of the topic.
            ids: The ids of the messages.
            leased: Whether leased messages are removed, too; their leases end.
        """

    async def known(self, topic: str, ids: Sequence[str]) -> set[str] | None:
        """Return which of these messages the topic has: ready, leased or buried. None where the
        broker does not say.

        Args:
            topic: The name of the topic.
            ids: The ids of the messages.
        """
        return None

    async def drop(self, topic: str) -> None:
        """Forget the topic, with all of its messages.

        Args:
            topic: The name of the topic.
        """

    async def buried(self, topic: str, limit: int = 100) -> list[Buried]:
        """Return the buried messages of a topic, oldest first.

        Args:
            topic: The name of the topic.
            limit: How many messages are returned at most.
        """

    async def redrive(self, topic: str, ids: Sequence[str]) -> int:
        """Make buried messages ready again, as if they had never been delivered.

        Args:
            topic: The name of the topic.
            ids: The ids of the messages.

        Returns:
            How many were buried.
        """

    async def peek(self, topic: str, limit: int = 100) -> list[Message] | None:
        """Return the messages that are ready, in the order in which they would be handed out; their
        priority is not counted. None where the broker does not say.

        Args:
            topic: The name of the topic.
            limit: How many messages are returned at most.
        """
        return None

    async def topics(self) -> list[str] | None:
        """Return the topics that have messages, in alphabetical order. None where the broker does
        not say."""
        return None

    async def depth(self, topic: str) -> Depth:
        """Return how many messages the topic has.

        Args:
            topic: The name of the topic.
        """

    async def longest_wait(self, topic: str) -> float | None:
        """Return for how many seconds the oldest ready message has waited, by the broker's clock,
        since it was put or came back. 0 where none is ready, None where the broker cannot say.

        Args:
            topic: The name of the topic.
        """
        return None

    async def announce(self, name: str, body: bytes, ttl: float) -> None:
        """Show all users of the queue a record of a worker.

        Args:
            name: The name of the worker, formed like a message's id.
            body: The record; empty to remove it.
            ttl: For how many seconds it is shown, unless it is announced again.
        """

    async def announced(self) -> Mapping[str, bytes] | None:
        """Return what workers have announced, by name. None where the broker does not say."""
        return None

    async def close(self) -> None:
        """Release connections; what was leased stays so until its time has passed. May be called
        twice."""


def group_of(id: str) -> str:
    """Return the group of a message with this id; empty for one that has none.

    Args:
        id: The id of the message.
    """
    group, colon, _ = id.partition(":")
    return group if colon else ""


def check_topic(topic: str) -> str:
    """Return the topic, if it can be one.

    Args:
        topic: The name of the topic.

    Raises:
        InvalidName: If the name is not allowed.
    """
    if not _TOPIC.match(topic):
        raise InvalidName(
            f"{topic[:80]!r} cannot be the name of a topic: use letters, digits and . _ -, at most "
            "64 of them."
        )
    return topic


def check_held(
    leases: Sequence[Lease], held: Collection[str], extended: Sequence[Lease] = ()
) -> None:
    """Check that leases have not ended.

    Args:
        leases: The leases of a call.
        held: The tokens of those that had not ended when the call was carried out.
        extended: The leases with their new ends, which the error carries.

    Raises:
        LeaseLost: If the tokens of some leases are not among those that are held.
    """
    lost = [lease.id for lease in leases if lease.token not in held]
    if lost:
        raise LeaseLost.of(lost, extended)


def check_messages(messages: Sequence[Message]) -> Sequence[Message]:
    """Return the messages, if their ids can be ids, and their priorities priorities.

    Args:
        messages: The messages of a call of `put`.

    Raises:
        InvalidName: If an id is malformed, or a priority out of range.
    """
    for message in messages:
        if not _ID.match(message.id):
            raise InvalidName(f"{message.id[:80]!r} cannot be the id of a message.")
        if not -HIGHEST_PRIORITY <= message.priority <= HIGHEST_PRIORITY:
            raise InvalidName(
                f"{message.priority} cannot be a priority: use -{HIGHEST_PRIORITY} to "
                f"{HIGHEST_PRIORITY}."
            )
    return messages


AWAY = Backoff(0.5, 2.0)
"""Of a user of a queue, while its broker cannot be reached."""
