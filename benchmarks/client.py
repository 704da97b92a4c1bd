"""The cost of listing runs and tasks with the client.

    python benchmarks/client.py [--runs 1000] [--tasks 100000] [--folder .bench/client]

prints one JSON object per line: {"name", "value", "unit"}. Runs and tasks are records like those of
real runs. Memory is the peak of Python's allocations while iterating over a list.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from aflow.client import Flow, Run, Step, connect_to, namespace
from aflow.metadata.base import AttemptRecord, Batch, RunRecord, TaskRecord
from aflow.metadata.sqlite import SqliteMetadata
from aflow.scheduler.states import AttemptState, RunState
from aflow.storage.artifacts import Entry, Manifest
from aflow.storage.memory import MemoryStore

BATCH = 1000
GRAPH = {"start": "start", "end": "end", "nodes": {}}
MANIFEST = Manifest(
    "work", {name: Entry("pickle5", 40, "int", {"repr": "1"}, bytes(40)) for name in "abcdef"}
).encode()


def main() -> None:
    options = arguments()
    shutil.rmtree(options.folder, ignore_errors=True)
    store = SqliteMetadata(options.folder / "metadata.db", durability="process")
    try:
        fill(store, options.runs, options.tasks)
        connect_to(store, MemoryStore())
        namespace(None)
        measure(options)
    finally:
        store.close()
        shutil.rmtree(options.folder, ignore_errors=True)


def measure(options: argparse.Namespace) -> None:
    """Measure typical queries."""
    wide = f"Wide/{options.runs}"
    report(f"client.list_{options.runs}_runs", lambda: sum(1 for _ in Flow("Wide").runs()))
    report("client.latest_run", lambda: Flow("Wide").latest_run)
    report("client.show_run_of_many_tasks", lambda: Run(wide)._repr_html_())
    report("client.first_task_of_many", lambda: next(iter(Step(f"{wide}/work"))))
    every = f"client.list_{options.tasks}_tasks"
    report(every, lambda: sum(task.successful for task in Step(f"{wide}/work")))
    tracemalloc.start()
    sum(1 for _ in Step(f"{wide}/work"))
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    write(f"{every}_memory", peak, "MB")


def report(name: str, look: Callable[[], object]) -> None:
    """Print the time of the fastest of three queries."""
    taken = []
    for _ in range(3):
        begun = time.perf_counter()
        look()
        taken.append(time.perf_counter() - begun)
    write(name, min(taken) * 1e3, "ms")


def write(name: str, value: float, unit: str) -> None:
    print(json.dumps({"name": name, "value": round(value, 2), "unit": unit}), flush=True)


def fill(store: SqliteMetadata, runs: int, tasks: int) -> None:
    """Create runs of a flow, the last of them with many tasks of one step."""
    for number in range(1, runs + 1):
        record = RunRecord(
            0, "Wide", str(number), RunState.SUCCEEDED, "ann", float(number), number + 1.0, 0,
            (f"tag{number}", "mine"), ("runtime:dev", "user:ann"), GRAPH,
            {"storage": "memory:", "script": "/home/ann/flow.py", "max_workers": 16},
        )  # fmt: skip
        made = store.create_run(record, Manifest("_parameters").encode())
    for version, first in enumerate(range(1, tasks + 1, BATCH)):
        numbers = range(first, min(first + BATCH, tasks + 1))
        store.commit(made.key, version, batch_of(numbers))


def batch_of(numbers: range) -> Batch:
    """Return a batch of succeeded tasks."""
    done = AttemptState.SUCCEEDED
    return Batch(
        tasks=[TaskRecord(number, "work", 1.0, 0, number) for number in numbers],
        attempts=[
            AttemptRecord(number, 0, done, 1.0, 2.0, manifest=MANIFEST, host="here", pid=9)
            for number in numbers
        ],
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, default=Path(".bench/client"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
