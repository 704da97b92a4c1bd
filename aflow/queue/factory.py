"""Opens queues by URL. A backend is imported when a URL requires it (see aflow/_core/lazy.py),
since some need packages of an extra.

memory:                         queue.sqlite, in memory
sqlite:////path/queue.db        queue.sqlite
redis://host:6379/0             queue.redis; redis+sentinel://host:26379/name for a primary
                                that sentinels know
postgresql://host/database      queue.postgres
sqs://region/prefix             queue.sqs; sqs+http(s)://host/prefix for services other than AWS
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import aflow.queue as queues  # `aflow.queue` is the decorator, too
from aflow._core.settings import path_at
from aflow.errors import InvalidSetting
from aflow.storage.factory import open_store

if TYPE_CHECKING:
    from aflow.queue.base import Queue


def open_queue(url: str) -> Queue:
    """Open a queue, for use in a single event loop.

    Args:
        url: A URL of one of the kinds in the module docstring.

    Returns:
        The queue, which is not connected yet.

    Raises:
        InvalidSetting: If the kind of URL is unknown, or the URL is invalid.
    """
    scheme = url.partition(":")[0]
    if scheme == "memory":
        return queues.sqlite.SqliteQueue()
    if scheme == "sqlite":
        return queues.sqlite.SqliteQueue(path_at(url))
    if scheme in ("redis", "rediss", "redis+sentinel"):
        return queues.redis.RedisQueue(url)
    if scheme in ("postgresql", "postgres"):
        return queues.postgres.PostgresQueue(url)
    if scheme in ("sqs", "sqs+http", "sqs+https"):
        return queues.sqs.SqsQueue(url, open_store=open_store)
    raise InvalidSetting(
        f"{scheme!r} is not a kind of queue that aflow knows: use sqlite:///path, redis://host, "
        "postgresql://host/database, sqs://region/prefix or memory:."
    )
