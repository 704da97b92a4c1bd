"""A queue in Redis: five keys a topic, a script a call, and a list of bells for those who wait.

For each topic `{prefix:topic}` there are `body`, `count` (deliveries) and `token` (hashes by id),
`ready` (a sorted set of ids by their number), `timed` (leased and delayed ids by when that ends),
`buried` (ids by when), and `bell`, a list on which a put leaves something for each message, so that
who waits blocks in Redis and looks again when there is news. Scripts run one after the other inside
of the server, by its clock. What was put survives what Redis survives: with `appendfsync always` a
power cut, by default the loss of the last second.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit, urlunsplit

from aflow.errors import InvalidSetting, LeaseLost, MissingExtra, QueueUnavailable
from aflow.queue.base import (
    MAX_DELIVERIES,
    Buried,
    Depth,
    Lease,
    Message,
    check_messages,
    check_topic,
)

try:
    import redis.asyncio as redis
    from redis.exceptions import AuthenticationError, NoPermissionError, RedisError
except ImportError as error:
    raise MissingExtra(
        "A queue in Redis needs the package redis: install aflow-runtime[redis]."
    ) from error

PREFIX = "aflow"
LONGEST_WAIT = 20.0  # seconds of one blocking call: some networks drop connections that are quiet
_PATIENCE = LONGEST_WAIT + 10  # seconds until a call has failed
_BELLS = 1000  # that are kept at most

_NAMES = """
local function key(name) return KEYS[1] .. name end
local function now() local t = redis.call('TIME') return t[1] + t[2] / 1000000 end
local function come_back(id, limit)
  redis.call('HDEL', key('token'), id)
  if tonumber(redis.call('HGET', key('count'), id) or 0) >= limit then
    redis.call('ZADD', key('buried'), now(), id)
  else
    redis.call('ZADD', key('ready'), redis.call('INCR', key('number')), id)
    redis.call('RPUSH', key('bell'), '1')
    redis.call('LTRIM', key('bell'), -BELLS, -1)
  end
end
local function settle(limit)
  local due = redis.call('ZRANGEBYSCORE', key('timed'), '-inf', now(), 'LIMIT', 0, 1000)
  for _, id in ipairs(due) do
    redis.call('ZREM', key('timed'), id)
    come_back(id, limit)
  end
end
""".replace("BELLS", str(_BELLS))

_PUT = """
local news = 0
for i = 1, #ARGV, 2 do
  if redis.call('HSETNX', key('body'), ARGV[i], ARGV[i + 1]) == 1 then
    redis.call('ZADD', key('ready'), redis.call('INCR', key('number')), ARGV[i])
    news = news + 1
  end
end
for i = 1, math.min(news, BELLS) do redis.call('RPUSH', key('bell'), '1') end
redis.call('LTRIM', key('bell'), -BELLS, -1)
return news
""".replace("BELLS", str(_BELLS))

# limit of deliveries, messages, ttl, token -> leases, and when the next one is due
_LEASE = """
settle(tonumber(ARGV[1]))
local found = {}
local due = now() + tonumber(ARGV[3])
local ids = redis.call('ZPOPMIN', key('ready'), ARGV[2])
for i = 1, #ids, 2 do
  local id = ids[i]
  local token = ARGV[4] .. i
  redis.call('HSET', key('token'), id, token)
  redis.call('ZADD', key('timed'), due, id)
  local count = redis.call('HINCRBY', key('count'), id, 1)
  found[#found + 1] = {id, token, redis.call('HGET', key('body'), id), count, tostring(due)}
end
local next_due = redis.call('ZRANGE', key('timed'), 0, 0, 'WITHSCORES')[2]
if next_due then next_due = tostring(next_due - now()) end
return {found, next_due or false}
"""

_TIDY = """
if redis.call('EXISTS', key('body')) == 0 then redis.call('DEL', key('number'), key('bell')) end
"""
_HELD = """
settle(tonumber(ARGV[1]))
local lost = {}
local function each(first, act)
  for i = first, #ARGV, 2 do
    if redis.call('HGET', key('token'), ARGV[i]) == ARGV[i + 1] then act(ARGV[i])
    else lost[#lost + 1] = ARGV[i] end
  end
end
"""
_EXTEND = f"""{_HELD}
local due = now() + tonumber(ARGV[2])
each(3, function(id) redis.call('ZADD', key('timed'), due, id) end)
return {{lost, tostring(due)}}
"""
_ACK = f"""{_HELD}
each(2, function(id)
  redis.call('ZREM', key('timed'), id)
  for _, name in ipairs({{'body', 'count', 'token'}}) do redis.call('HDEL', key(name), id) end
end)
{_TIDY}
return lost
"""
_RELEASE = f"""{_HELD}
each(4, function(id)
  redis.call('ZREM', key('timed'), id)
  redis.call('HDEL', key('token'), id)
  local count = redis.call('HINCRBY', key('count'), id, ARGV[3])
  if tonumber(ARGV[2]) > 0 and count < tonumber(ARGV[1]) then
    redis.call('ZADD', key('timed'), now() + tonumber(ARGV[2]), id)
  else come_back(id, tonumber(ARGV[1])) end
end)
return lost
"""
_REMOVE = f"""
settle(tonumber(ARGV[1]))
for i = 2, #ARGV do
  if redis.call('HEXISTS', key('token'), ARGV[i]) == 0 then
    for _, name in ipairs({{'ready', 'timed', 'buried'}}) do
      redis.call('ZREM', key(name), ARGV[i])
    end
    for _, name in ipairs({{'body', 'count'}}) do redis.call('HDEL', key(name), ARGV[i]) end
  end
end
{_TIDY}
return 0
"""
_BURIED = """
settle(tonumber(ARGV[1]))
local found = {}
local ids = redis.call('ZRANGE', key('buried'), 0, tonumber(ARGV[2]) - 1, 'WITHSCORES')
for i = 1, #ids, 2 do
  found[#found + 1] = {ids[i], redis.call('HGET', key('body'), ids[i]),
                       redis.call('HGET', key('count'), ids[i]), ids[i + 1]}
end
return found
"""
_DEPTH = """
settle(tonumber(ARGV[1]))
local all = redis.call('HLEN', key('body'))
local leased = redis.call('HLEN', key('token'))
local buried = redis.call('ZCARD', key('buried'))
return {all - leased - buried, leased, buried}
"""


class RedisQueue:
    """The queue at `redis://[:password@]host[:port][/db][?prefix=aflow]` (`rediss`: with TLS)."""

    def __init__(self, url: str, max_deliveries: int = MAX_DELIVERIES) -> None:
        parts = urlsplit(url)
        options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        self._prefix = options.pop("prefix", PREFIX)
        if options or not parts.hostname:
            raise InvalidSetting(
                f"{self._shown(url)} is no place of a queue: use redis://host:port/db?prefix=name."
            )
        self._url = self._shown(url)
        self._max_deliveries = max_deliveries
        bare = urlunsplit(parts._replace(query=""))
        self._redis: Any = redis.from_url(
            bare,
            socket_connect_timeout=10,
            # Calls have a limit of their own (_PATIENCE). With this one redis-py writes by
            # asyncio.wait_for, which loses cancellations in Python 3.11.
            socket_timeout=None,
            socket_keepalive=True,
            health_check_interval=30,
        )
        self._scripts: dict[str, Any] = {}

    @staticmethod
    def _shown(url: str) -> str:
        parts = urlsplit(url)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))

    @property
    def url(self) -> str:
        """Where it is, without user and password."""
        return self._url

    # ------------------------------------------------------------------ calls

    async def put(self, topic: str, messages: Sequence[Message]) -> None:
        """Add messages; see the port."""
        check_topic(topic)
        pairs = [each for message in check_messages(messages) for each in message]
        if pairs:
            await self._run(_PUT, topic, *pairs)

    async def lease(
        self, topics: Sequence[str], limit: int, ttl: float, wait: float = 0.0
    ) -> list[Lease]:
        """Up to `limit` messages; see the port."""
        for topic in topics:
            check_topic(topic)
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + wait
        while True:
            taken, due = await self._take(topics, limit, ttl)
            left = give_up_at - loop.time()
            if taken or left <= 0:
                return taken
            await self._wait(topics, min(left, LONGEST_WAIT, *due))

    async def _take(
        self, topics: Sequence[str], limit: int, ttl: float
    ) -> tuple[list[Lease], list[float]]:
        """Leases, and in how many seconds there may be more."""
        taken: list[Lease] = []
        due: list[float] = []
        for topic in topics:
            token = f"{uuid.uuid4().hex}-"
            found, next_due = await self._run(_LEASE, topic, limit - len(taken), ttl, token)
            taken += [
                Lease(topic, id.decode(), token.decode(), body, count, float(until))
                for id, token, body, count, until in found
            ]
            if len(taken) >= limit:
                break
            if next_due:
                due.append(max(float(next_due), 0.0))
        return taken, due

    async def _wait(self, topics: Sequence[str], seconds: float) -> None:
        """Wait for a bell of one of the topics."""
        bells = [f"{self._key(topic)}bell" for topic in topics]
        async with self._errors_named():
            # Redis waits for ever if it is asked to wait for no time.
            await self._redis.blpop(bells, timeout=max(seconds, 0.01))

    async def extend(self, leases: Sequence[Lease], ttl: float) -> list[Lease]:
        """Keep leases for longer; see the port."""
        extended: list[Lease] = []
        lost: list[str] = []
        for topic, group in _by_topic(leases):
            gone, due = await self._run(_EXTEND, topic, ttl, *_pairs(group))
            names = {each.decode() for each in gone}
            lost += names
            extended += [
                each._replace(expires_at=float(due)) for each in group if each.id not in names
            ]
        if lost:
            raise LeaseLost.of(lost, extended)
        return extended

    async def ack(self, leases: Sequence[Lease]) -> None:
        """The messages are done with; see the port."""
        await self._end(leases, _ACK)

    async def release(
        self, leases: Sequence[Lease], *, delay: float = 0.0, counted: bool = True
    ) -> None:
        """Give messages back; see the port."""
        await self._end(leases, _RELEASE, delay, 0 if counted else -1)

    async def _end(self, leases: Sequence[Lease], script: str, *values: float) -> None:
        lost: list[str] = []
        for topic, group in _by_topic(leases):
            gone = await self._run(script, topic, *values, *_pairs(group))
            lost += [each.decode() for each in gone]
        if lost:
            raise LeaseLost.of(lost)

    async def remove(self, topic: str, ids: Sequence[str]) -> None:
        """Forget messages; see the port."""
        if ids:
            await self._run(_REMOVE, topic, *ids)

    async def buried(self, topic: str, limit: int = 100) -> list[Buried]:
        """The buried messages; see the port."""
        return [
            Buried(topic, id.decode(), body, int(count), float(at))
            for id, body, count, at in await self._run(_BURIED, topic, limit)
        ]

    async def depth(self, topic: str) -> Depth:
        """How many messages the topic has; see the port."""
        return Depth(*await self._run(_DEPTH, topic))

    async def close(self) -> None:
        """Let go of connections; see the port."""
        await self._redis.aclose()

    # ------------------------------------------------------------------ the server

    def _key(self, topic: str) -> str:
        return f"{{{self._prefix}:{topic}}}:"

    async def _run(self, source: str, topic: str, *values: Any) -> Any:
        script = self._scripts.get(source)
        if script is None:
            script = self._scripts[source] = self._redis.register_script(_NAMES + source)
        limited = () if source is _PUT else (self._max_deliveries,)
        async with self._errors_named():
            return await script(keys=[self._key(topic)], args=[*limited, *values])

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
            raise QueueUnavailable(
                f"The queue {self._url} does not answer ({error}): see whether the server runs, "
                "and has room."
            ) from error


def _by_topic(leases: Sequence[Lease]) -> list[tuple[str, list[Lease]]]:
    groups: dict[str, list[Lease]] = {}
    for lease in leases:
        groups.setdefault(lease.topic, []).append(lease)
    return [*groups.items()]


def _pairs(leases: Sequence[Lease]) -> list[str]:
    return [each for lease in leases for each in (lease.id, lease.token)]
