"""The queues that the contract tests run on.

A backend is a function that opens the queue (each call is another client of the same queue), and
the shortest lease of the backend in seconds.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from aflow.queue.base import Queue
from aflow.queue.sqlite import SqliteQueue
from tests.support.servers import Server, new_database, redis_server

MAX_DELIVERIES = 3


@dataclass(frozen=True)
class Backend:
    """An existing queue; `open` returns another client of it."""

    open: Callable[[], Queue]
    shortest: float = 0.05
    strict: bool = True  # whether it has ids and exact counts; SQS has not
    many: int = 1000  # messages in a test with many


@contextmanager
def _memory(folder: Path) -> Iterator[Backend]:
    queue = SqliteQueue(None, MAX_DELIVERIES)
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


@contextmanager
def sqs(server: Server) -> Iterator[Backend]:
    """Queues with unique names on the stand-in for AWS, whose leases are whole seconds."""
    from aflow.queue.sqs import SqsQueue

    prefix = f"test-{uuid.uuid4().hex[:8]}"
    url = f"sqs+http://127.0.0.1:{server.port}/{prefix}?region=us-east-1"
    yield Backend(lambda: SqsQueue(url, MAX_DELIVERIES), shortest=1.0, strict=False, many=100)


BACKENDS = {"memory": _memory, "sqlite": _sqlite, "redis": _redis}
