"""The cost of an idle server, and how soon a run whose coordinator was killed is taken over.

    python -m benchmarks.server [--tasks 1000] [--seconds 20] [broker]

prints one JSON object per line: {"name", "value", "unit"}. A run has many tasks in flight on a
worker (coroutines that wait); its coordinator is killed with SIGKILL, and its lease is expired.
`takeover` is the time from the start of `aflow recover` until it reports that the run continues,
when it waits for all tasks; `takeover_by_server` is the time from the start of an `aflow server`
until one of its coordinators has acquired the lease. Both include the start-up of interpreters.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from benchmarks import queues
from benchmarks.measure import Bench
from benchmarks.queued import tell

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("broker", nargs="?", choices=[*queues.BACKENDS], default="redis")
    options = parser.parse_args()
    broker = queues.BACKENDS[options.broker]
    with tempfile.TemporaryDirectory() as folder, broker(Path(folder)) as url:
        bench = Bench(Path(folder) / "work", quick=False)
        idle(bench, options.seconds)
        takeover(bench, url, options.tasks)


def aflow(bench: Bench, *words: str, heard: bool = False) -> subprocess.Popen[str]:
    """Start `aflow WORDS`; its output is piped to the caller or discarded."""
    return subprocess.Popen(
        [sys.executable, "-m", "aflow", *words],
        cwd=bench.folder,
        env=bench.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if heard else subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def line_of(process: subprocess.Popen[str], words: str) -> str:
    """Return the first line that contains these words."""
    assert process.stdout is not None
    for line in process.stdout:
        if words in line:
            return line
    raise SystemExit(f"Nothing said {words!r}.")


def idle(bench: Bench, seconds: float) -> None:
    """Measure memory and processor time of a server that has just started."""
    server = aflow(bench, "server", "--port", "0", heard=True)
    line_of(server, "Server on")
    time.sleep(2.0)  # exclude the end of the start-up
    before = processor(server.pid)
    time.sleep(seconds)
    tell("server.idle_cpu", (processor(server.pid) - before) / seconds * 100, "%")
    tell("server.idle_rss", resident(server.pid), "MB")
    server.terminate()
    server.wait()


def processor(pid: int) -> float:
    """Return the processor time of a process in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> float:
    """Return the resident memory of a process in MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) * 1024 / 1e6


def takeover(bench: Bench, url: str, tasks: int) -> None:
    """Measure how soon a run with tasks on workers is taken over."""
    worker = aflow(bench, "worker", "--queue", url, "--slots", str(tasks))
    flow = str(HERE / "flows" / "held.py")
    bench.environment.update(AFLOW_EXECUTOR="queue", AFLOW_QUEUE=url, AFLOW_HOLDER_KIND="server")
    limits = ("--max-workers", str(tasks + 10), "--max-num-splits", str(tasks))
    run = aflow(bench, "run", flow, "--n", str(tasks), *limits, "--quiet")
    database = bench.folder / ".aflow" / "metadata.db"
    try:
        until(database, "SELECT count(*) FROM attempts WHERE state = 'running'", tasks)
        kill(run)
        name = one(database, "SELECT flow || '/' || run FROM runs")
        give_up(database)
        began = time.perf_counter()
        run = aflow(bench, "recover", str(name), heard=True)
        line_of(run, "Going on")
        tell("server.takeover", time.perf_counter() - began, "s")
        kill(run)
        give_up(database)
        recovered = int(str(one(database, ADOPTED)))
        began = time.perf_counter()
        server = aflow(bench, "server", "--port", "0")
        until(database, ADOPTED, recovered + 1)
        tell("server.takeover_by_server", time.perf_counter() - began, "s")
        server.send_signal(signal.SIGTERM)
        server.send_signal(signal.SIGINT)
        server.wait()
    finally:
        kill(run)
        worker.kill()
        worker.wait()


ADOPTED = "SELECT count(*) FROM metadata WHERE field = 'adopted_by'"


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a process with SIGKILL."""
    if process.returncode is None:
        process.kill()
        process.communicate()


def one(database: Path, query: str) -> object:
    """Return the single value of a query; None if the table does not exist yet."""
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            return connection.execute(query).fetchone()[0]
    except sqlite3.OperationalError:
        return None


def until(database: Path, query: str, least: int) -> None:
    """Wait until a query returns this value."""
    give_up_at = time.monotonic() + 120
    while int(str(one(database, query) or 0)) < least:
        if time.monotonic() > give_up_at:
            raise SystemExit(f"There are not {least} of: {query}")
        time.sleep(0.01)


def give_up(database: Path) -> None:
    """Expire the lease of the run."""
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE leases SET until = until - 3600")


if __name__ == "__main__":
    main()
