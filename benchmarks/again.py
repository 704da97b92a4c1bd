"""The cost of reusing results and of starting up, measured with complete commands."""

from __future__ import annotations

from statistics import median

from benchmarks.cases import fan_command
from benchmarks.measure import Bench, interleaved
from benchmarks.rows import Row, at_most

MILLI = 1e3
WIDE = ("--max-workers", 2, "--max-num-splits", 1_000_000, "--isolation", "worker")


def resume(bench: Bench) -> list[Row]:
    """A resume that reuses all tasks except the last one."""
    tasks = bench.size(1000, 200)
    bench.run(*fan_command("worker", tasks))
    command = ("flows/fan.py", "--no-pylint", "resume", "end", "--max-num-splits", 1_000_000)
    seconds = median(bench.run(*command).seconds for _ in range(bench.rounds))
    return [at_most("resume", f"resume of {tasks:,} tasks, whole command", seconds, "s", 0.5)]


def cached(bench: Bench) -> list[Row]:
    """A cached run in which nothing has changed."""
    tasks = bench.size(1000, 200)
    command = (*fan_command("worker", tasks), "--cache")
    first = bench.run(*command).seconds
    seconds = median(bench.run(*command).seconds for _ in range(bench.rounds))
    what = f"cached run of {tasks:,} tasks, whole command"
    return [at_most("cached", what, seconds, "s", 1, first, "the run that computed them")]


def beginnings(bench: Bench) -> list[Row]:
    """The cost before anything happens."""
    taken = interleaved(
        bench.rounds,
        {
            "python": lambda: bench.run("flows/nothing.py").seconds,
            "import": lambda: bench.run("flows/only_import.py").seconds,
            "help": lambda: bench.run("flows/fan.py", "--help").seconds,
            "metaflow": lambda: bench.run("peers/metaflow_fan.py", "--help").seconds,
        },
    )
    imported = (taken["import"] - taken["python"]) * MILLI
    both = taken["help"] * MILLI, taken["metaflow"] * MILLI
    return [
        at_most("beginnings", "import aflow", imported, "ms", 60),
        at_most("beginnings", "python flow.py --help", both[0], "ms", 250, both[1], "metaflow"),
    ]


def garbage(bench: Bench) -> list[Row]:
    """Deleting runs of many tasks, each with a separate blob and log."""
    tasks = bench.size(10_000, 1000)
    bench.run("flows/blobs.py", "--no-pylint", "run", *WIDE, "--n", tasks)
    began = bench.run("flows/gc_all.py").seconds
    return [at_most("gc", f"gc of {tasks:,} tasks with a blob each", began, "s", 10)]
