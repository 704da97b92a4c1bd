"""The benchmark cases; each returns rows for the table.

Costs per task are slopes: (time of many - time of few) / (many - few), so that they do not include
start-up.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.measure import HERE, Bench, Finished, interleaved, slope
from benchmarks.output import delays, lines_in_order
from benchmarks.rows import Row, at_least, at_most

MILLI = 1e3


def fan(bench: Bench, isolation: str) -> Callable[[int], float]:
    """Return the seconds of a complete foreach run of trivial tasks."""
    return lambda n: bench.run(*fan_command(isolation, n)).seconds


def fan_command(isolation: str, n: int) -> tuple[object, ...]:
    """Return the command line of a foreach run with two workers."""
    options = ("--max-workers", 2, "--max-num-splits", 1_000_000, "--isolation", isolation)
    return ("flows/fan.py", "--no-pylint", "run", *options, "--n", n)


def printed(bench: Bench, script: str) -> Callable[[int], float]:
    """Return the seconds that a peer's program reports for its work."""
    return lambda n: bench.run(script, n).figure("run_seconds")


def start(bench: Bench) -> list[Row]:
    """A complete command: the two-step flow, started in both ways."""
    script = sys.executable
    ours, theirs = "flows/two_steps.py", "peers/metaflow_two_steps.py"
    commands = {
        "aflow": (str(Path(script).with_name("aflow")), "run", HERE / ours, "--no-pylint"),
        "python": (script, HERE / ours, "--no-pylint", "run"),
        "metaflow": (script, HERE / theirs, "--no-pylint", "run"),
    }
    for command in commands.values():
        bench.run_command(*command)  # warm up: the store exists, the files are in memory

    def seconds(command: tuple[object, ...]) -> float:
        return bench.run_command(*command).seconds

    taken = interleaved(
        bench.size(25, 5), {name: partial(seconds, each) for name, each in commands.items()}
    )
    whole = taken["metaflow"]
    return [
        Row(
            "start", f"two-step flow, {words}", taken[name], "s", whole, "metaflow",
            f"{bar}x faster", whole / taken[name] >= bar,
        )
        for name, words, bar in (("aflow", "aflow run", 8), ("python", "python flow.py run", 6))
    ]  # fmt: skip


def foreach_task(bench: Bench) -> list[Row]:
    """One process per task, compared with Metaflow and a bare fork."""

    def metaflow(n: int) -> float:
        options = ("--max-workers", 2, "--max-num-splits", 1000, "--n", n)
        return bench.run("peers/metaflow_fan.py", "--no-pylint", "run", *options).seconds

    few, many = 100, bench.size(2100, 600)
    taken = interleaved(
        bench.size(5, 2),
        {
            "aflow": lambda: slope(fan(bench, "task"), few, many),
            "fork": lambda: slope(printed(bench, "peers/fork.py"), few, many),
            "metaflow": lambda: slope(metaflow, 2, bench.size(22, 8)),
        },
    )
    what = "foreach, isolation task, 2 workers: a task"
    ours = taken["aflow"] * MILLI
    return [
        at_most("foreach-task", what, ours, "ms", 3, taken["metaflow"] * MILLI, "metaflow"),
        Row("foreach-task", what, ours, "ms", taken["fork"] * MILLI, "bare fork and exit"),
    ]


def foreach_worker(bench: Bench) -> list[Row]:
    """Many tasks per process, durability `power`. The peers Ray and Dask store nothing."""
    few, many = 1000, bench.size(11_000, 4000)
    taken = interleaved(
        bench.size(5, 2),
        {
            "aflow": lambda: slope(fan(bench, "worker"), few, many),
            "ray": lambda: slope(printed(bench, "peers/ray_fan.py"), few, many),
            "dask": lambda: slope(printed(bench, "peers/dask_fan.py"), few, many),
        },
    )
    what = "foreach, isolation worker, 2 workers: a task"
    ours = taken["aflow"] * MILLI
    return [
        at_most("foreach-worker", what, ours, "ms", 0.1, taken["ray"] * MILLI, "ray"),
        Row("foreach-worker", what, ours, "ms", taken["dask"] * MILLI, "dask"),
    ]


def wide(bench: Bench) -> list[Row]:
    """A hundred thousand tasks and their join: the cost per task must equal that of a thousand."""
    tasks = bench.size(100_000, 20_000)
    last: list[Finished] = []

    def far(n: int) -> float:
        last.append(bench.run(*fan_command("worker", n)))
        return last[-1].seconds

    taken = interleaved(
        bench.size(3, 1),
        {
            "near": lambda: slope(fan(bench, "worker"), 20, 2000),
            "far": lambda: slope(far, 20, tasks),
        },
    )
    big = max(last, key=lambda each: each.seconds)
    ratio = taken["far"] / taken["near"]
    return [
        at_most("wide", f"cost a task at {tasks:,} over that at 2,000", ratio, "x", 1.3),
        at_most("wide", f"peak memory of the coordinator, {tasks:,} tasks", big.peak_mb, "MB", 250),
        at_most("wide", f"sum over {tasks:,} inputs", big.figure("join_seconds"), "s", 5),
        Row("wide", f"whole command, {tasks:,} tasks", big.seconds, "s"),
    ]


def coroutines(bench: Bench) -> list[Row]:
    """Ten thousand coroutines that wait for a second."""
    tasks = bench.size(10_000, 2000)
    floor = bench.run("peers/asyncio_waiting.py", tasks)
    options = ("--max-workers", tasks, "--max-num-splits", tasks, "--n", tasks)
    ours = bench.run("flows/waiting.py", "--no-pylint", "run", *options)
    what = f"{tasks:,} async tasks of 1 s, whole command"
    return [
        at_most("async", what, ours.seconds, "s", 6, floor.seconds, "asyncio, nothing stored"),
        at_most("async", "processes that ran them", ours.figure("processes"), "", 1),
    ]


def array(bench: Bench) -> list[Row]:
    """An array that is passed from one task to the next, compared with Metaflow."""
    mb = bench.size(256, 64)
    both = {"aflow": "flows/large_array.py", "metaflow": "peers/metaflow_array.py"}
    done = {
        name: bench.run(script, "--no-pylint", "run", "--mb", mb) for name, script in both.items()
    }
    rows = []
    for figure, what in (
        ("save_seconds", "end of the step to start of the next"),
        ("load_seconds", "first element of the array"),
    ):
        ours, theirs = done["aflow"].figure(figure), done["metaflow"].figure(figure)
        rows.append(Row("array", f"{mb} MB array: {what}", ours, "s", theirs, "metaflow"))
    return rows


def lines(bench: Bench) -> list[Row]:
    """Printed lines: none lost, none out of order, throughput, delay until displayed."""
    few, many = 1000, bench.size(100_000, 20_000)
    both = {"aflow": "flows/lines.py", "metaflow": "peers/metaflow_lines.py"}

    def seconds(script: str, n: int) -> float:
        finished = bench.run(script, "--no-pylint", "run", "--n", n)
        lines_in_order(finished.output, n)
        return finished.seconds

    taken = interleaved(
        bench.size(3, 1),
        {
            name: partial(slope, partial(seconds, script), few, many)
            for name, script in both.items()
        },
    )
    rate = {name: 1 / cost for name, cost in taken.items()}
    last = {
        name: delays(bench, script, 100, bench.size(1000, 300)) * MILLI
        for name, script in both.items()
    }
    return [
        at_least(
            "lines", f"{many:,} lines of one task, all there, in order", rate["aflow"],
            "lines/s", 50_000, rate["metaflow"], "metaflow",
        ),
        at_most(
            "lines", "print to screen at 100 lines/s, p99", last["aflow"], "ms", 100,
            last["metaflow"], "metaflow",
        ),
    ]  # fmt: skip
