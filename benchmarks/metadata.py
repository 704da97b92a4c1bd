"""The cost of committing a task to the metadata, without a run.

    python benchmarks/metadata.py [--tasks 4000] [--folder .bench/metadata]

prints one JSON object per line: {"name", "value", "unit"}. A task is one record, one attempt with a
manifest of typical size, and its part of the journal; a batch is the tasks of one commit. The
figures of durability `power` are mostly those of the disk: each commit waits for it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

from aflow.metadata.base import AttemptRecord, Batch, RunRecord, TaskRecord
from aflow.metadata.sqlite import SqliteMetadata
from aflow.scheduler.states import AttemptState, RunState

BATCHES = (1, 20, 100)
MANIFEST = bytes(300)
EVENTS = bytes(25)  # each task's part of the journal
INPUTS = bytes(4)


def main() -> None:
    options = arguments()
    try:
        for durability in ("power", "process"):
            for size in BATCHES:
                report(options, durability, size)
    finally:
        shutil.rmtree(options.folder, ignore_errors=True)


def report(options: argparse.Namespace, durability: str, size: int) -> None:
    """Commit tasks in batches of one size, and print the cost per task."""
    batches = batches_of(size, options.tasks if durability == "process" else options.tasks // 4)
    store = SqliteMetadata(options.folder / f"{durability}-{size}.db", durability=durability)
    run = store.create_run(
        RunRecord(0, "Flow", "1", RunState.RUNNING, "ann", 1.0, None, 0, (), (), {}, {}), b""
    )
    begun = time.perf_counter()
    for version, batch in enumerate(batches):
        store.commit(run.key, version, batch)
    seconds = time.perf_counter() - begun
    store.close()
    value = round(seconds / (len(batches) * size) * 1e6, 1)
    name = f"metadata.commit_{durability}_{size}"
    print(json.dumps({"name": name, "value": value, "unit": "microseconds/task"}), flush=True)


def batches_of(size: int, tasks: int) -> list[Batch]:
    """Return the batches of a foreach."""
    return [
        Batch(
            EVENTS * size,
            [TaskRecord(task, "work", 1.0, 1, task, INPUTS) for task in range(first, first + size)],
            [
                AttemptRecord(
                    task, 0, AttemptState.SUCCEEDED, 1.0, 2.0, manifest=MANIFEST, host="host", pid=9
                )
                for task in range(first, first + size)
            ],
        )
        for first in range(1, 1 + max(size, tasks), size)
    ]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=4000)
    parser.add_argument("--folder", type=Path, default=Path(".bench/metadata"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
