"""The cost of messages in each kind of queue, and how soon a waiting call is woken.

    python -m benchmarks.queues [--messages 5000] [backend...]

prints one JSON object per line: {"name", "value", "unit"}. `put`, `lease` and `ack` are calls with
a hundred messages each; `single` leases and acknowledges one message after the other, as a worker
with one slot does; `wake` is the median time from a put to the return of a waiting lease call. The
servers are private and started as in tests; SQS is moto, which is slow itself and gets fewer
messages.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from aflow.queue.base import Message, Queue
from aflow.queue.factory import open_queue
from tests.support.s3 import ACCESS
from tests.support.servers import moto_server, new_database, postgres_for_one, redis_server

BATCH = 100
BODY = bytes(500)
LONG = 600.0
WAKES = 50
_SQS_MESSAGES = 300


@contextmanager
def memory(folder: Path) -> Iterator[str]:
    yield "memory:"


@contextmanager
def sqlite(folder: Path) -> Iterator[str]:
    yield f"sqlite:///{folder}/queue.db"


@contextmanager
def redis(folder: Path) -> Iterator[str]:
    server = redis_server(folder, "--appendfsync", "everysec")
    try:
        yield f"redis://127.0.0.1:{server.port}/0"
    finally:
        server.kill()


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    with postgres_for_one() as server, new_database(server) as url:
        yield url


@contextmanager
def sqs(folder: Path) -> Iterator[str]:
    os.environ.update(ACCESS)
    server = moto_server(folder)
    try:
        yield f"sqs+http://127.0.0.1:{server.port}/bench?region=us-east-1"
    finally:
        server.kill()


BACKENDS = {each.__name__: each for each in (memory, sqlite, redis, postgres, sqs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=5000)
    parser.add_argument("backends", nargs="*", choices=[*BACKENDS, []])
    options = parser.parse_args()
    for name in options.backends or BACKENDS:
        count = min(options.messages, _SQS_MESSAGES) if name == "sqs" else options.messages
        with tempfile.TemporaryDirectory() as folder, BACKENDS[name](Path(folder)) as url:
            asyncio.run(measure(name, url, count))


async def measure(name: str, url: str, count: int) -> None:
    """Print all figures of one queue."""
    queue = open_queue(url)
    other = queue if name == "memory" else open_queue(url)
    for what, value in {
        **await rates(queue, count),
        "single": await singles(queue, min(count, 1000)),
    }.items():
        tell(f"queue.{name}_{what}", value, "messages/s")
    tell(f"queue.{name}_wake", await wake(queue, other) * 1e3, "ms")
    await queue.close()
    if other is not queue:
        await other.close()


def messages(count: int) -> list[Message]:
    return [Message(uuid.uuid4().hex, BODY) for _ in range(count)]


async def rates(queue: Queue, count: int) -> dict[str, float]:
    """Return the messages per second of put, lease and ack, in calls of a hundred."""
    stopwatch = Stopwatch(count)
    await queue.lease(["t"], 1, LONG)  # warm up: creates connections and tables
    waiting = messages(count)
    with stopwatch("put"):
        for first in range(0, count, BATCH):
            await queue.put("t", waiting[first : first + BATCH])
    leases = []
    with stopwatch("lease"):
        while found := await queue.lease(["t"], BATCH, LONG):
            leases += found
    with stopwatch("ack"):
        for first in range(0, count, BATCH):
            await queue.ack(leases[first : first + BATCH])
    return stopwatch.rates


async def singles(queue: Queue, count: int) -> float:
    """Return the messages per second that one client leases and acknowledges one by one."""
    await queue.put("t", messages(count))
    stopwatch = Stopwatch(count)
    with stopwatch("single"):
        for _ in range(count):
            await queue.ack(await queue.lease(["t"], 1, LONG))
    return stopwatch.rates["single"]


async def wake(queue: Queue, other: Queue) -> float:
    """Return the seconds from a put to the return of a waiting lease call."""
    times = []
    for _ in range(WAKES):
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(other.lease(["w"], 1, LONG, 20.0))
            await asyncio.sleep(0.05)  # until the lease call is waiting
            begun = time.perf_counter()
            await queue.put("w", messages(1))
            leases = await waiting
            times.append(time.perf_counter() - begun)
        await other.ack(leases)
    return median(times)


class Stopwatch:
    """Measures the message rates of code blocks."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.rates: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.rates[name] = self.count / (time.perf_counter() - begun)


def tell(name: str, value: float, unit: str) -> None:
    print(json.dumps({"name": name, "value": round(value, 2), "unit": unit}), flush=True)


if __name__ == "__main__":
    main()
