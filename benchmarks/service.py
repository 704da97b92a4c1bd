"""The cost of registrations in the metadata service.

    python -m benchmarks.service [--quick] [sqlite] [postgres]

prints one JSON object per line: {"name", "value", "unit"}. `bulk` are the registrations of
Metaflow's clients for tasks, a hundred metadata records or artifacts per request, eight requests at
a time; `tasks` are tasks, one per request. `p99` is the latency of 200 requests per second, a
typical mix, each sent on time even if earlier ones have no response yet. `page` are the pages of
500 for a list of 100,000 tasks, and `own_page` those of aflow's client. The service is a separate
process; PostgreSQL is a private server, started as in tests.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp

from aflow._core.clock import SystemClock
from aflow.metadata.base import AttemptRecord, Batch, RunRecord, TaskRecord
from aflow.metadata.http import ServiceMetadata
from aflow.scheduler.states import AttemptState, RunState
from aflow.server.metaflow.database import open_database, sql
from tests.support.servers import new_database, postgres_for_one

AT_ONCE = 8
LIST = 100
RATE = 200
PAGE = 500
WHO = {"user_name": "ada", "tags": [], "system_tags": []}


@contextmanager
def sqlite(folder: Path) -> Iterator[str]:
    yield f"sqlite:///{folder}/metadata.db"


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    with postgres_for_one() as server, new_database(server) as url:
        yield url


DATABASES = {each.__name__: each for each in (sqlite, postgres)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    parser.add_argument("databases", nargs="*", choices=[*DATABASES, []])
    options = parser.parse_args()
    size = 10_000 if options.quick else 100_000
    for name in options.databases or DATABASES:
        with (
            tempfile.TemporaryDirectory() as folder,
            DATABASES[name](Path(folder)) as database,
            service(database) as url,
        ):
            asyncio.run(measure(name, database, url, size))
            tell_pages(f"service.{name}_own_page", own_pages(url, size))


@contextmanager
def service(database: str) -> Iterator[str]:
    """Run a service with the database, and yield its URL."""
    command = [sys.executable, "-m", "aflow", "metadata-service", "--port", "0"]
    with subprocess.Popen(
        [*command, "--metadata", database], stdout=subprocess.PIPE, text=True, env=os.environ
    ) as process:
        try:
            yield process.stdout.readline().split()[-1]
        finally:
            process.send_signal(signal.SIGTERM)


def fill(database: str, task: str, count: int) -> None:
    """Add tasks to the step of a task, as the service does."""
    opened = open_database(database)
    run, step = task.split("/")[4:7:2]
    rows = [(int(run), step, None, "ada", 1) for _ in range(count)]
    statement = sql()["add_task"].removesuffix("RETURNING task_id")
    opened.write(lambda session: session.change_many(statement, rows))
    opened.close()


async def measure(name: str, database: str, url: str, size: int) -> None:
    """Print all figures of the routes of Metaflow's service."""
    async with aiohttp.ClientSession(url) as http:
        step = await begin(http)
        await rate_of(lambda: get(http, "/flows"), 200)  # warm up the connections
        seconds = await latencies(http, step, size // 10_000)
        for part in (0.5, 0.99):
            value = seconds[int(len(seconds) * part)] * 1e3
            tell(f"service.{name}_p{part * 100:.0f}", value, "ms")
        step = await begin(http)
        task = f"{step}/tasks/{(await post(http, f'{step}/task'))['task_id']}"
        records = [{"field_name": f"f{n}", "value": "v", "type": "t"} for n in range(LIST)]
        numbers = iter(range(1_000_000))

        async def artifacts() -> None:
            first = next(numbers) * LIST
            body = [{"name": f"a{first + n}", "sha": "0" * 40, **ARTIFACT} for n in range(LIST)]
            await post(http, f"{task}/artifact", body)

        count = size // 5 // LIST
        rate = await rate_of(lambda: post(http, f"{task}/metadata", records), count)
        tell(f"service.{name}_bulk_metadata", rate * LIST, "registrations/s")
        tell(
            f"service.{name}_bulk_artifacts",
            await rate_of(artifacts, count) * LIST,
            "registrations/s",
        )
        rate = await rate_of(lambda: post(http, f"{step}/task"), size // 20)
        tell(f"service.{name}_tasks", rate, "registrations/s")
        fill(database, task, size - size // 20)
        tell_pages(f"service.{name}_page", await pages(http, f"{step}/tasks"))


ARTIFACT = {
    "location": "s3://bucket/flow/data/00/" + "0" * 40, "ds_type": "s3",
    "type": "metaflow.artifact", "content_type": "gzip+pickle-v4", "attempt_id": 0, **WHO,
}  # fmt: skip


async def begin(http: aiohttp.ClientSession) -> str:
    """Create a run with a step, and return the path of the step."""
    async with http.post("/flows/F", json=WHO):
        run = (await post(http, "/flows/F/run"))["run_number"]
    step = f"/flows/F/runs/{run}/steps/work"
    await post(http, f"{step}/step")
    return step


async def post(http: aiohttp.ClientSession, path: str, body: Any = WHO) -> Any:
    async with http.post(path, json=body) as answer:
        answer.raise_for_status()
        return await answer.json(content_type=None)


async def get(http: aiohttp.ClientSession, path: str) -> Any:
    async with http.get(path) as answer:
        answer.raise_for_status()
        return await answer.json(content_type=None)


async def rate_of(call: Callable[[], Awaitable[Any]], count: int) -> float:
    """Return the calls per second, with AT_ONCE concurrent calls."""
    left = iter(range(count))

    async def caller() -> None:
        for _ in left:
            await call()

    begun = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(caller())
    return count / (time.perf_counter() - begun)


async def pages(http: aiohttp.ClientSession, path: str) -> list[float]:
    """Return the seconds of each page of a list."""
    seconds, query = [], f"?_limit={PAGE}"
    while True:
        begun = time.perf_counter()
        async with http.get(path + query) as answer:
            answer.raise_for_status()
            await answer.read()
            seconds.append(time.perf_counter() - begun)
            cursor = answer.headers.get("X-Next-Cursor")
        if cursor is None:
            return seconds
        query = f"?_limit={PAGE}&_cursor={cursor}"


async def latencies(http: aiohttp.ClientSession, step: str, seconds: int) -> list[float]:
    """Return the seconds from the scheduled time of each request to its response, sorted."""
    run = step.partition("/steps/")[0]
    task = f"{step}/tasks/{(await post(http, f'{step}/task'))['task_id']}"
    said = [{"field_name": "attempt", "value": "0", "type": "attempt"}] * 5
    artifacts = [{"name": f"a{n}", "sha": "0" * 40, **ARTIFACT} for n in range(5)]
    mix: list[Callable[[], Awaitable[Any]]] = [
        lambda: post(http, f"{step}/task"),
        lambda: post(http, f"{task}/metadata", said),
        lambda: post(http, f"{task}/artifact", artifacts),
        lambda: post(http, f"{task}/heartbeat", {}),
        lambda: get(http, run),
        lambda: get(http, task),
        lambda: get(http, f"{task}/metadata?_limit=20"),
        lambda: post(http, f"{run}/heartbeat", {}),
    ]
    taken: list[float] = []
    start = time.perf_counter() + 0.1

    async def one(number: int) -> None:
        at = start + number / RATE
        await asyncio.sleep(max(0.0, at - time.perf_counter()))
        await mix[number % len(mix)]()
        taken.append(time.perf_counter() - at)

    async with asyncio.TaskGroup() as group:
        for number in range(RATE * seconds):
            group.create_task(one(number))
    return sorted(taken)


def own_pages(url: str, size: int) -> list[float]:
    """Return the seconds of each page of the tasks of one of aflow's runs."""
    store = ServiceMetadata(url, {}, SystemClock())
    run = store.create_run(
        RunRecord(0, "Own", "1", RunState.RUNNING, "ann", 1.0, None, 0, (), (), {}, {}), b""
    )
    for version, first in enumerate(range(1, size + 1, 1000)):
        numbers = range(first, first + 1000)
        tasks = [TaskRecord(number, "work", 1.0, None, None, b"none") for number in numbers]
        attempts = [
            AttemptRecord(number, 0, AttemptState.SUCCEEDED, 1.0, 2.0, manifest=bytes(300))
            for number in numbers
        ]
        store.commit(run.key, version, Batch(b"events", tasks, attempts))
    seconds, last, found = [], 0, 0
    while True:
        begun = time.perf_counter()
        page = list(store.tasks(run.key, after=last, limit=PAGE, light=True))
        seconds.append(time.perf_counter() - begun)
        found += len(page)
        if len(page) < PAGE:
            break
        last = page[-1].task.task
    store.close()
    assert found == size, f"{found} tasks instead of {size}"
    return seconds


def tell_pages(name: str, seconds: list[float]) -> None:
    tell(f"{name}_p50", median(seconds) * 1e3, "ms")
    tell(f"{name}_p99", sorted(seconds)[int(len(seconds) * 0.99)] * 1e3, "ms")
    tell(f"{name}_max", max(seconds) * 1e3, "ms")


def tell(name: str, value: float, unit: str) -> None:
    print(json.dumps({"name": name, "value": round(value, 2), "unit": unit}), flush=True)


if __name__ == "__main__":
    main()
