"""A queue in Redis: a few keys per topic, a script per call, and a list that wakes waiters.

The keys of a topic begin with `{prefix:topic}`. `body`, `count` (deliveries), `token` and
`priority` (if not 0) are hashes by id. `ready` is a sorted set of ids by priority and turn, `since`
one of the same ids by the time at which they became ready. `turn` is a hash with the turn of the
last message of each group. `timed` contains leased and delayed ids by the end of the lease or
delay, `buried` ids by time. `bell` is a list to which `put` appends an element per message: waiters
block on it, and look for messages when they receive one. The server executes scripts one after
another, and its clock is used.

Messages are as durable as Redis: with `appendfsync always` they survive a power failure; by
default, those of the last second may be lost. Messages that were evicted or lost in a restart are
not delivered; senders detect that with `known`.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit, urlunsplit

from aflow._core.secret import as_mentioned, revealed, sealed, without_account
from aflow._core.statements import statements_in
from aflow.errors import InvalidSetting, LeaseLost, MissingExtra, QueueUnavailable
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
    released_if_cancelled,
)

try:
    import redis.asyncio as redis
    from redis import exceptions as faults
    from redis.asyncio.sentinel import Sentinel
    from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError
except ImportError as error:
    raise MissingExtra(
        "A queue in Redis needs the package redis: install aflow-runtime[redis]."
    ) from error

PREFIX = "aflow"
LONGEST_WAIT = 20.0  # seconds of one blocking call, since some networks drop idle connections
LOOK_AGAIN = 1.0  # seconds until a client that was woken by messages that it skips waits again
_PATIENCE = LONGEST_WAIT + 10  # timeout of a call in seconds
_OPTIONS: dict[str, Any] = {
    "socket_connect_timeout": 10,
    # Calls have a timeout of their own (_PATIENCE). With this one, redis-py would write with
    # asyncio.wait_for, which loses cancellations in Python 3.11.
    "socket_timeout": None,
    "socket_keepalive": True,
    "health_check_interval": 30,
}
# Responses of a server that is not a primary: no longer, or not yet.
_NOT_PRIMARY = (faults.ReadOnlyError, faults.BusyLoadingError, faults.MasterDownError)
_NOT_PRIMARY_WORDS = ("UNBLOCKED", "NOREPLICAS", "READONLY")
_OF_A_CLUSTER = (faults.ClusterError, faults.AskError, faults.ClusterDownError)
_log = logging.getLogger("aflow.queue")
_SCRIPTS = statements_in(Path(__file__).parent / "queries" / "redis.lua")

_BRACKETS = str.maketrans("", "", "[]")  # around addresses of IPv6
_WORKERS = "@workers"  # no topic has this name


class _Sentinel(Sentinel):
    """Queries the sentinels for one call at a time, since the library reorders their list."""

    def __init__(self, places: Sequence[tuple[str, int]], **options: Any) -> None:
        super().__init__([*places], **options)  # type: ignore[no-untyped-call]
        self._asking = asyncio.Lock()

    async def discover_master(self, service_name: str) -> Any:
        """Return the address of the primary."""
        async with self._asking:
            return await super().discover_master(service_name)


class RedisQueue(Queue):
    """The queue at `redis://[:password@]host[:port][/db][?prefix=aflow]` (`rediss`: with TLS), or
    at `redis+sentinel://[:password@]host:26379,host:26379/name[/db]`: the primary of that name, for
    which the sentinels are queried for every new connection."""

    def __init__(self, url: str, max_deliveries: int = MAX_DELIVERIES) -> None:
        url = sealed(url)
        self._url = str(url)
        self._sentinel: _Sentinel | None = None
        self._prefix, self._redis = self._opened(url)
        self._max_deliveries = max_deliveries
        self._scripts: dict[str, Any] = {}
        self._is_checked = False

    def _opened(self, url: str) -> tuple[str, Any]:
        refused = InvalidSetting(
            f"{as_mentioned(self._url)} is not a place of a queue: use "
            "redis://host:port/db?prefix=name, or redis+sentinel://host:port,host:port/name/db; db "
            "is a number."
        )
        try:
            parts = urlsplit(revealed(url))
        except ValueError:  # an unclosed bracket
            raise refused from None
        self._url = without_account(url)
        options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        prefix = options.pop("prefix", PREFIX)
        path = [each for each in parts.path.split("/") if each]
        name = path.pop(0) if parts.scheme == "redis+sentinel" and path else None
        if options or len(path) > 1 or not all(each.isdecimal() for each in path):
            raise refused
        if parts.scheme != "redis+sentinel":
            try:
                if not parts.hostname or parts.port == 0:
                    raise refused
            except ValueError:  # the port is not a number, or out of range
                raise refused from None
            return prefix, redis.from_url(urlunsplit(parts._replace(query="")), **_OPTIONS)
        account, _, hosts = parts.netloc.rpartition("@")
        user, _, password = account.partition(":")
        places = [each.rpartition(":") for each in hosts.translate(_BRACKETS).split(",")]
        if name is None or not all(host and port.isdecimal() for host, _, port in places):
            raise refused
        sentinel = self._sentinel = _Sentinel(
            [(host, int(port)) for host, _, port in places], **_OPTIONS
        )
        return prefix, sentinel.master_for(
            name,
            db=int(path[0]) if path else 0,
            username=unquote(user) or None,
            password=unquote(password) or None,
            **_OPTIONS,
        )

    @property
    def url(self) -> str:
        """The URL for messages, without user and password."""
        return self._url

    # ------------------------------------------------------------------ calls

    async def put(self, topic: str, messages: Sequence[Message]) -> None:
        """Add messages; see the port."""
        check_topic(topic)
        values = [each for message in check_messages(messages) for each in message]
        if values:
            await self._run("put", topic, *values)

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
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + wait
        woken_by: bytes | None = None
        while True:
            taking = self._take(topics, limit, ttl, skip)
            taken, due, has_skipped = await released_if_cancelled(self, taking)
            if woken_by is not None and has_skipped and not taken:
                # The message may be one that only other clients lease: wake the next of them.
                async with self._errors_named():
                    await self._redis.rpush(woken_by, "1")
            left = give_up_at - loop.time()
            if taken or left <= 0:
                return taken
            if woken_by is not None and has_skipped:
                # Otherwise this client, if no other waits, would wake itself again and again.
                await asyncio.sleep(min(left, LOOK_AGAIN, *due))
                left = give_up_at - loop.time()
            woken_by = await self._wait(topics, min(left, LONGEST_WAIT, *due))

    async def _take(
        self, topics: Sequence[str], limit: int, ttl: float, skip: Collection[str]
    ) -> tuple[list[Lease], list[float], bool]:
        """Return the leases, the seconds until leased or delayed messages become ready, and whether
        ready messages were skipped."""
        taken: list[Lease] = []
        due: list[float] = []
        has_skipped = False
        for topic in topics:
            token = f"{uuid.uuid4().hex}-"
            found, next_due, skipped = await self._run(
                "lease", topic, limit - len(taken), ttl, token, *skip
            )
            has_skipped = has_skipped or skipped > 0
            taken += [
                Lease(
                    topic=topic,
                    id=id.decode(),
                    token=token.decode(),
                    body=body,
                    deliveries=count,
                    expires_at=float(until),
                )
                for id, token, body, count, until in found
            ]
            if len(taken) >= limit:
                break
            if next_due:
                due.append(max(float(next_due), 0.0))
        return taken, due, has_skipped

    async def _wait(self, topics: Sequence[str], seconds: float) -> bytes | None:
        """Wait until one of the topics has new messages; return the key of its bell."""
        bells = [f"{self._key(topic)}bell" for topic in topics]
        async with self._errors_named():
            # A timeout of 0 would make Redis wait forever.
            rung = await self._redis.blpop(bells, timeout=max(seconds, 0.01))
        return rung[0] if rung else None

    async def extend(self, leases: Sequence[Lease], ttl: float) -> list[Lease]:
        """Extend leases; see the port."""
        extended: list[Lease] = []
        for topic, group in _by_topic(leases):
            gone, due = await self._run("extend", topic, ttl, *_pairs(group))
            lost = {each.decode() for each in gone}
            extended += [
                each._replace(expires_at=float(due)) for each in group if each.id not in lost
            ]
        check_held(leases, {each.token for each in extended}, extended)
        return extended

    async def ack(self, leases: Sequence[Lease]) -> None:
        """Delete messages; see the port."""
        await self._end(leases, "ack")

    async def release(
        self, leases: Sequence[Lease], *, delay: float = 0.0, counted: bool = True
    ) -> None:
        """Make messages available for redelivery; see the port."""
        await self._end(leases, "release", delay, 0 if counted else -1)

    async def _end(self, leases: Sequence[Lease], script: str, *values: float) -> None:
        lost: list[str] = []
        for topic, group in _by_topic(leases):
            gone = await self._run(script, topic, *values, *_pairs(group))
            lost += [each.decode() for each in gone]
        if lost:
            raise LeaseLost.of(lost)

    async def bury(self, leases: Sequence[Lease]) -> None:
        """Keep messages for inspection; see the port."""
        await self._end(leases, "bury")

    async def remove(self, topic: str, ids: Sequence[str], *, leased: bool = False) -> None:
        """Delete messages; see the port."""
        if ids:
            await self._run("remove", topic, int(leased), *ids)

    async def known(self, topic: str, ids: Sequence[str]) -> set[str] | None:
        """Return which of these messages exist; see the port."""
        return {each.decode() for each in await self._run("known", topic, *ids)} if ids else set()

    async def drop(self, topic: str) -> None:
        """Delete the topic; see the port."""
        await self._run("drop", topic)

    async def buried(self, topic: str, limit: int = 100) -> list[Buried]:
        """Return the buried messages; see the port."""
        return [
            Buried(topic, id.decode(), body, int(count), float(at))
            for id, body, count, at in await self._run("buried", topic, limit)
        ]

    async def redrive(self, topic: str, ids: Sequence[str]) -> int:
        """Make buried messages ready; see the port."""
        return int(await self._run("redrive", topic, *ids)) if ids else 0

    async def peek(self, topic: str, limit: int = 100) -> list[Message] | None:
        """Return the ready messages; see the port."""
        return [Message(id.decode(), body) for id, body in await self._run("peek", topic, limit)]

    async def topics(self) -> list[str] | None:
        """Return the topics that have messages; see the port."""
        start, end = "{" + self._prefix + ":", "}:body"
        pattern = "".join(f"\\{each}" if each in "*?[]\\" else each for each in start) + "*" + end
        found: set[str] = set()
        async with self._errors_named():
            async for key in self._redis.scan_iter(match=pattern, count=1000):
                found.add(key.decode().removeprefix(start).removesuffix(end))
        return sorted(found - {_WORKERS})

    async def depth(self, topic: str) -> Depth:
        """Return the numbers of messages of the topic; see the port."""
        return Depth(*await self._run("depth", topic))

    async def longest_wait(self, topic: str) -> float | None:
        """Return the waiting time of the oldest ready message; see the port."""
        return max(float(await self._run("longest_wait", topic)), 0.0)

    async def announce(self, name: str, body: bytes, ttl: float) -> None:
        """Publish a record of a worker; see the port."""
        await self._run("announce", _WORKERS, name, body, ttl)

    async def announced(self) -> Mapping[str, bytes] | None:
        """Return the unexpired records of workers; see the port."""
        found = await self._run("announced", _WORKERS)
        return {name.decode(): body for name, body in zip(found[::2], found[1::2], strict=True)}

    async def close(self) -> None:
        """Close connections; see the port."""
        await self._redis.aclose()
        if self._sentinel is not None:
            await self._redis.connection_pool.disconnect()
            for each in {*self._sentinel.sentinels}:
                await each.aclose()

    # ------------------------------------------------------------------ the server

    def _key(self, topic: str) -> str:
        return f"{{{self._prefix}:{topic}}}:"

    async def _run(self, name: str, topic: str, *values: Any) -> Any:
        script = self._scripts.get(name)
        if script is None:
            script = self._scripts[name] = self._redis.register_script(_SCRIPTS[name])
        limited = () if name == "put" else (self._max_deliveries,)
        async with self._errors_named():
            if not self._is_checked:
                await self._check()
            return await script(keys=[self._key(topic)], args=[*limited, *values])

    async def _check(self) -> None:
        """Warn, once, if the server may evict messages."""
        try:
            policy = (await self._redis.info("memory")).get("maxmemory_policy", "noeviction")
        except ResponseError:  # INFO is not allowed: assume the default
            policy = "noeviction"
        self._is_checked = True
        if policy.startswith("allkeys"):
            _log.warning(
                "The queue %s may forget messages when its memory is full: set maxmemory-policy "
                "to noeviction there (it is %s).",
                self._url,
                policy,
            )

    @asynccontextmanager
    async def _errors_named(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(_PATIENCE):
                yield
        except TimeoutError as error:
            raise QueueUnavailable(
                f"The queue {self._url} did not answer within {_PATIENCE:g} s: see whether the "
                "server and the network to it work."
            ) from error
        except (AuthenticationError, NoPermissionError) as error:
            raise QueueUnavailable(
                f"The queue {self._url} refuses us ({error}): correct user and password in its URL."
            ) from error
        except (RedisError, OSError) as error:
            detail = str(error).partition(" : ")[0]  # the rest describes objects of the library
            if isinstance(error, _NOT_PRIMARY) or detail.startswith(_NOT_PRIMARY_WORDS):
                # Idle connections are closed, so that the next call finds the new primary. Calls in
                # progress get the same error from the server, and end here as well.
                await self._redis.connection_pool.disconnect(inuse_connections=False)
                raise QueueUnavailable(
                    f"The queue {self._url} is a replica, or is being made one ({detail}): it is "
                    "asked again, which finds the primary where the address leads to it."
                ) from error
            raise QueueUnavailable(f"The queue {self._url} {_advice(error, detail)}") from error


def _advice(error: Exception, detail: str) -> str:
    """Return the meaning of an error of Redis, and a remedy."""
    if isinstance(error, _OF_A_CLUSTER):
        return (
            "is a Redis Cluster, which aflow does not support: use a single primary, with "
            "sentinels (redis+sentinel://) for failover."
        )
    if "DB index is out of range" in detail or "invalid DB index" in detail:
        return (
            f"has no database of that number ({detail}): correct the one behind the last slash of "
            "its URL, or raise `databases` of the server."
        )
    if isinstance(error, faults.OutOfMemoryError) or "maxmemory" in detail:
        return f"is full ({detail}): raise its maxmemory, or delete messages."
    return f"does not answer ({detail}): see whether the server runs there, and has room."


def _by_topic(leases: Sequence[Lease]) -> list[tuple[str, list[Lease]]]:
    groups: dict[str, list[Lease]] = {}
    for lease in leases:
        groups.setdefault(lease.topic, []).append(lease)
    return [*groups.items()]


def _pairs(leases: Sequence[Lease]) -> list[str]:
    return [each for lease in leases for each in (lease.id, lease.token)]
