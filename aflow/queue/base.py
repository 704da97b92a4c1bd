"""The port of the queue: messages by topic, consumed with leases, delivered at least once.

A topic is a name of up to 64 characters of `[A-Za-z0-9_.-]`, and need not be created. The topic
`tasks.POOL` contains the tasks for the workers of a pool, `reports.OWNER` the reports of workers to
the coordinator of that name.

Every backend guarantees the following; tests/contracts/test_queues.py checks it:

- `put` is atomic. A message whose id already exists in the topic (ready, leased or buried) is not
  added again.
- A message has at most one lease. `lease` returns ready messages; if there are none, it waits up to
  `wait` seconds for the first, and is woken by a `put` rather than by polling.
- Messages of a higher priority are delivered first. Within a priority, the groups of a topic take
  turns, so that a group with many messages does not delay one with few; the group of a message is
  the part of its id before the first `:` (for tasks, the run). Within a group, messages are
  delivered roughly in the order in which they were put; redelivered ones come first.
- Messages of the groups in `skip` are not leased.
- A lease ends by `ack` (the message is deleted), by `release` (it is ready again), or when it
  expires, after which the message is redelivered. `deliveries` includes the current one.
- A message that is not acknowledged after `max_deliveries` deliveries is buried: kept for
  inspection, and not delivered until `redrive` makes it ready. A release with `counted=False` does
  not count its delivery.
- `extend`, `ack`, `release` and `bury` of a lease that has ended raise LeaseLost, and do not change
  its message; the other leases of the call are processed.
- Messages survive the clients of the queue; whether they survive the broker is documented per
  backend. `known` returns which messages the topic still has.
- The announcement of a worker is visible to all clients until it expires.
- A broker that cannot be reached or rejects the credentials raises QueueUnavailable, with one
  sentence that names the place, the reason and a remedy. A call that raised may have been executed.

Effects are exactly-once because commits are fenced by attempt, not because of the delivery.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Collection, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol, TypeVar

from aflow._core.backoff import Backoff
from aflow.errors import InvalidName, LeaseLost, QueueError

MAX_DELIVERIES = 5
HIGHEST_PRIORITY = 100

_GIVING_BACK = 5.0  # seconds to release leases for a caller that was cancelled
Taken = TypeVar("Taken", bound=tuple[Any, ...])

_TOPIC = re.compile(r"[A-Za-z0-9_.\-]{1,64}\Z")
_ID = re.compile(r"[A-Za-z0-9_.:/\-]{1,256}\Z")


class Message(NamedTuple):
    """A message to put: an id of `[A-Za-z0-9_.:/-]` that is unique in the topic, the content, and
    the priority (-100 to 100; higher ones are delivered first)."""

    id: str
    body: bytes
    priority: int = 0


class Lease(NamedTuple):
    """A message leased until `expires_at` (seconds since the epoch). `token` distinguishes this
    lease from other leases of the same message."""

    topic: str
    id: str
    token: str
    body: bytes
    deliveries: int
    expires_at: float


class Buried(NamedTuple):
    """A dead letter: a message that was delivered too often without being acknowledged, or that a
    worker has rejected."""

    topic: str
    id: str
    body: bytes
    deliveries: int
    buried_at: float


class Depth(NamedTuple):
    """The number of ready, leased and buried messages of a topic; ready ones include delayed ones.
    Some brokers return estimates."""

    ready: int
    leased: int
    buried: int


class Queue(Protocol):
    """The port; the module docstring lists the guarantees. Backends derive from this class, whose
    methods are the defaults for brokers that lack a function."""

    @property
    def url(self) -> str:
        """The URL for messages, without a password."""

    @property
    def largest(self) -> int | None:
        """Maximum size of a message's body in bytes; None if only aflow's own limit applies."""
        return None

    async def put(self, topic: str, messages: Sequence[Message]) -> None:
        """Add messages to the topic, all or none. A message whose id already exists is ignored.

        Args:
            topic: The topic, which need not exist.
            messages: The messages, with ids that are unique in the topic.
        """

    async def lease(
        self,
        topics: Sequence[str],
        limit: int,
        ttl: float,
        wait: float = 0.0,
        skip: Collection[str] = (),
    ) -> list[Lease]:
        """Lease messages, waiting for the first one if necessary.

        Args:
            topics: The topics, in order of preference.
            limit: Maximum number of messages.
            ttl: Duration of the leases in seconds, by the broker's clock.
            wait: Maximum number of seconds to wait for the first message.
            skip: Groups whose messages are not leased.

        Returns:
            The leases; empty if no message was available in time.
        """

    async def extend(self, leases: Sequence[Lease], ttl: float) -> list[Lease]:
        """Extend leases to `ttl` seconds from now.

        Args:
            leases: Leases of this queue, of any topics.
            ttl: Seconds from now, by the broker's clock.

        Returns:
            The leases with their new expiry.

        Raises:
            LeaseLost: If a lease has ended; the others are extended.
        """

    async def ack(self, leases: Sequence[Lease]) -> None:
        """Acknowledge messages: delete them.

        Args:
            leases: Leases of this queue, of any topics.

        Raises:
            LeaseLost: If a lease has ended; the other messages are deleted.
        """

    async def release(
        self, leases: Sequence[Lease], *, delay: float = 0.0, counted: bool = True
    ) -> None:
        """Make messages available for redelivery.

        Args:
            leases: Leases of this queue, of any topics.
            delay: Seconds until they are ready.
            counted: Whether this delivery counts towards `max_deliveries`.

        Raises:
            LeaseLost: If a lease has ended; the other messages are released.
        """

    async def bury(self, leases: Sequence[Lease]) -> None:
        """Bury messages that cannot be processed: keep them for inspection.

        Args:
            leases: Leases of this queue, of any topics.

        Raises:
            LeaseLost: If a lease has ended; the other messages are buried.
        """

    async def remove(self, topic: str, ids: Sequence[str], *, leased: bool = False) -> None:
        """Delete messages, including buried ones.

        Args:
            topic: The topic of the messages.
            ids: `Message.id` of each; unknown ids are ignored.
            leased: Whether leased messages are deleted too, which ends their leases.
        """

    async def known(self, topic: str, ids: Sequence[str]) -> set[str] | None:
        """Return which of these messages the topic has, whether ready, leased or buried; None if
        the broker does not support it.

        Args:
            topic: The topic of the messages.
            ids: `Message.id` of each.
        """
        return None

    async def drop(self, topic: str) -> None:
        """Delete the topic with all of its messages.

        Args:
            topic: The topic; it need not exist.
        """

    async def buried(self, topic: str, limit: int = 100) -> list[Buried]:
        """Return the buried messages of a topic, oldest first.

        Args:
            topic: The topic; it need not exist.
            limit: Maximum number of messages.
        """

    async def redrive(self, topic: str, ids: Sequence[str]) -> int:
        """Make buried messages ready again, with `deliveries` reset.

        Args:
            topic: The topic of the messages.
            ids: `Message.id` of each; those that are not buried are ignored.

        Returns:
            The number of messages that were buried.
        """

    async def peek(self, topic: str, limit: int = 100) -> list[Message] | None:
        """Return the ready messages in the order of delivery, without leasing them; their
        `priority` is always 0. None if the broker does not support it.

        Args:
            topic: The topic; it need not exist.
            limit: Maximum number of messages.
        """
        return None

    async def topics(self) -> list[str] | None:
        """Return the topics that have messages, sorted; None if the broker does not support it."""
        return None

    async def depth(self, topic: str) -> Depth:
        """Return the numbers of messages of the topic.

        Args:
            topic: The topic; it need not exist.
        """

    async def longest_wait(self, topic: str) -> float | None:
        """Return the seconds since the oldest ready message was put or became ready again, by the
        broker's clock. 0 if there is none, None if the broker does not support it.

        Args:
            topic: The topic; it need not exist.
        """
        return None

    async def announce(self, name: str, body: bytes, ttl: float) -> None:
        """Publish a record of a worker to all clients of the queue.

        Args:
            name: The worker's name, with the characters of a message's id.
            body: The record; empty to delete it.
            ttl: Seconds until the record expires, unless it is announced again.
        """

    async def announced(self) -> Mapping[str, bytes] | None:
        """Return unexpired records of workers, by name; None if the broker does not support it."""
        return None

    async def close(self) -> None:
        """Close connections. Leases are kept until they expire. Idempotent."""


def group_of(id: str) -> str:
    """Return the group of a message: the part of its id before the first `:`, or "" if there is
    none.

    Args:
        id: `Message.id` of the message.
    """
    group, colon, _ = id.partition(":")
    return group if colon else ""


def check_topic(topic: str) -> str:
    """Return the topic, if the name is allowed.

    Args:
        topic: The name to check.

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
    """Raise LeaseLost if leases have ended.

    Args:
        leases: The leases of a call.
        held: The tokens of the leases that the broker has found.
        extended: The extended leases, which the error carries.

    Raises:
        LeaseLost: If the token of a lease is not in `held`.
    """
    lost = [lease.id for lease in leases if lease.token not in held]
    if lost:
        raise LeaseLost.of(lost, extended)


async def released_if_cancelled(queue: Queue, taking: Coroutine[Any, Any, Taken]) -> Taken:
    """Await a call that leases messages; if the caller is cancelled, release what it has leased.

    Args:
        queue: The queue of the messages.
        taking: The call; the first element of its result are the leases.

    Returns:
        The result of the call.
    """
    call = asyncio.get_running_loop().create_task(taking)
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError:
        with suppress(QueueError, TimeoutError):  # a failure must not replace the cancellation
            async with asyncio.timeout(_GIVING_BACK):
                await queue.release((await call)[0], counted=False)
        raise


def check_messages(messages: Sequence[Message]) -> Sequence[Message]:
    """Return the messages, if their ids and priorities are allowed.

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
"""The backoff of calls to a queue while its broker is unreachable."""
