"""What a run printed: whether all of it is there, and how soon it was."""

from __future__ import annotations

import re
import time

from benchmarks.measure import Bench

LINE = re.compile(r"\bline (\d+) ([\d.]+)$")


def lines_in_order(output: str, n: int) -> None:
    """Leaves with a message unless lines 0 to n - 1 are there, each once, in order."""
    seen = [int(found[1]) for found in map(LINE.search, output.splitlines()) if found]
    if seen != list(range(n)):
        first = next((i for i, each in enumerate(seen) if i != each), len(seen))
        raise SystemExit(f"{n} lines were printed, {len(seen)} came; the first fault: {first}.")


def delays(bench: Bench, script: str, rate: int, n: int) -> float:
    """Seconds from print to the reader of the run's output that 99 of 100 lines keep within.

    The clock is the machine's monotonic one, the same in all processes.
    """
    process = bench.start(script, "--no-pylint", "run", "--n", n, "--rate", rate)
    assert process.stdout is not None
    late = []
    for line in process.stdout:
        found = LINE.search(line.rstrip("\n"))
        if found:
            late.append(time.monotonic() - float(found[2]))
    if process.wait() or len(late) != n:
        raise SystemExit(f"{script} printed {len(late)} of {n} lines, exit code {process.wait()}.")
    return sorted(late)[int(n * 0.99)]
