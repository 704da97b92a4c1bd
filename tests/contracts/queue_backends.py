"""The queues that the promises of the port are tested on.

A backend is how to open it (again and again: each time another user of the same queue), and how
short a lease can be there, in seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from aflow.queue.base import Queue
from aflow.queue.memory import MemoryQueue
from aflow.queue.sqlite import SqliteQueue
from tests.support.servers import Server, new_database, redis_server

MAX_DELIVERIES = 3


@dataclass(frozen=True)
class Backend:
    """One queue that exists; `open` gives one more user of it."""

    open: Callable[[], Queue]
    shortest: float = 0.05
    shares: bool = True  # whether several users may open it


@contextmanager
def _memory(folder: Path) -> Iterator[Backend]:
    queue = MemoryQueue(MAX_DELIVERIES)
    yield Backend(lambda: queue)


@contextmanager
def _sqlite(folder: Path) -> Iterator[Backend]:
    yield Backend(lambda: SqliteQueue(folder / "a folder" / "queue.db", MAX_DELIVERIES))


@contextmanager
def _redis(folder: Path) -> Iterator[Backend]:
    from aflow.queue.redis import RedisQueue

    server = redis_server(folder)
    try:
        url = f"redis://127.0.0.1:{server.port}/0"
        yield Backend(lambda: RedisQueue(url, MAX_DELIVERIES))
    finally:
        server.kill()


@contextmanager
def postgres(server: Server) -> Iterator[Backend]:
    from aflow.queue.postgres import PostgresQueue

    with new_database(server) as url:
        yield Backend(lambda: PostgresQueue(url, MAX_DELIVERIES))


BACKENDS = {"memory": _memory, "sqlite": _sqlite, "redis": _redis}
