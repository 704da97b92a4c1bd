"""Checks of a run's output: completeness, order and delays."""

from __future__ import annotations

import re
import time

from benchmarks.measure import Bench

LINE = re.compile(r"\bline (\d+) ([\d.]+)$")


def lines_in_order(output: str, n: int) -> None:
    """Exit with a message unless the output has lines 0 to n - 1, each once and in order."""
    seen = [int(found[1]) for found in map(LINE.search, output.splitlines()) if found]
    if seen != list(range(n)):
        first = next((i for i, each in enumerate(seen) if i != each), len(seen))
        raise SystemExit(f"{n} lines were printed, {len(seen)} came; the first fault: {first}.")


def delays(bench: Bench, script: str, rate: int, n: int) -> float:
    """Return the 99th percentile of the seconds from a print to the reader of the run's output.

    All processes use the machine's monotonic clock.
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
