"""Tasks that workers take from a queue: their throughput, and how soon one starts.

    python -m benchmarks.queued [--tasks 3000] [backend...]

prints one JSON object per line: {"name", "value", "unit"}. One worker process with two slots, one
coordinator and private brokers, all on this machine. `tasks` is a slope: (time of many - time of
few) / (many - few), so that it does not include start-up. `begin` is the median time from the
moment when a task is ready to its start, in a flow of consecutive tasks.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from benchmarks import queues
from benchmarks.measure import Bench, slope

FEW = 200
BROKERS = ("redis", "postgres", "sqlite", "sqs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", type=int, default=3000)
    parser.add_argument("--isolation", choices=["worker", "task"], default="worker")
    parser.add_argument("brokers", nargs="*", choices=[*BROKERS, []])
    options = parser.parse_args()
    for name in options.brokers or BROKERS:
        tasks = FEW + 300 if name == "sqs" else options.tasks
        with tempfile.TemporaryDirectory() as folder, queues.BACKENDS[name](Path(folder)) as url:
            measure(name, url, Path(folder), tasks, options.isolation)


def measure(name: str, url: str, folder: Path, tasks: int, isolation: str) -> None:
    """Print the figures of one broker."""
    bench = Bench(folder / "work", quick=False)
    bench.environment.update({k: v for k, v in os.environ.items() if k.startswith("AWS_")})
    remote = ("run", "--executor", "queue", "--queue", url, "--isolation", isolation)

    def fan(n: int) -> float:
        limits = ("--max-workers", 10_000, "--max-num-splits", 1_000_000)
        return bench.run("flows/fan.py", "--no-pylint", *remote, *limits, "--n", n).seconds

    with worker(bench, url):
        fan(10)  # warm up: the zygote has started, the store exists
        cost = slope(fan, FEW, tasks)
        tell(f"queued.{name}_tasks", 1 / cost, "tasks/s")
        bench.run("flows/chain.py", "--no-pylint", *remote)
        tell(f"queued.{name}_begin", begin(bench.folder) * 1e3, "ms")


@contextmanager
def worker(bench: Bench, url: str) -> Iterator[None]:
    """Run a worker with two slots."""
    command = [sys.executable, "-m", "aflow", "worker", "--queue", url, "--slots", "2"]
    with (bench.folder / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=bench.folder, env=bench.environment, stdout=log, stderr=log
        )
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def begin(folder: Path) -> float:
    """Return the median time from ready to running of the tasks of the latest chain."""
    database = sqlite3.connect(folder / ".aflow" / "metadata.db")
    rows = database.execute(
        "SELECT attempts.started_at - tasks.created_at FROM attempts JOIN tasks"
        " USING (run_key, task) JOIN runs ON runs.key = run_key WHERE flow = 'ChainFlow'"
        " AND attempts.started_at IS NOT NULL AND step NOT IN ('_parameters', 'start')"
    )
    return float(median(value for (value,) in rows))


def tell(name: str, value: float, unit: str) -> None:
    print(json.dumps({"name": name, "value": round(value, 3), "unit": unit}), flush=True)


if __name__ == "__main__":
    main()
