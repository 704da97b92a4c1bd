"""Compares aflow with its peers and prints a table. `scripts/bench` creates the environment for it.

    scripts/bench                    everything; takes a while
    scripts/bench start foreach-task
    scripts/bench --quick            smaller and fewer rounds: a first look

All are measured on the same machine and in the same run, as medians of interleaved rounds (A B A B
...). Costs per task are slopes: (time of many - time of few) / (many - few), so that they do not
include start-up. The table is saved as JSON next to the scratch folder (`--json`).
"""

from __future__ import annotations

import argparse
import traceback
from collections.abc import Callable
from pathlib import Path

from benchmarks import again, cases, kernels, s3
from benchmarks.measure import Bench
from benchmarks.rows import Row, save, table


def pages(bench: Bench) -> list[Row]:
    """The time that a browser takes to show a run."""
    from benchmarks import ui  # lazy: needs selenium, unlike all other cases

    return ui.of_bench(bench)


CASES: dict[str, Callable[[Bench], list[Row]]] = {
    "start": cases.start,
    "foreach-task": cases.foreach_task,
    "foreach-worker": cases.foreach_worker,
    "wide": cases.wide,
    "async": cases.coroutines,
    "lines": cases.lines,
    "array": cases.array,
    "resume": again.resume,
    "cached": again.cached,
    "beginnings": again.beginnings,
    "gc": again.garbage,
    "machine": kernels.machine,
    "slots": kernels.slots,
    "artifacts": kernels.artifacts,
    "metadata": kernels.metadata,
    "client": kernels.client,
    "s3": s3.objects,
    "ui": pages,
}


def arguments() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(CASES)}")
    parser.add_argument("--quick", action="store_true", help="smaller and fewer rounds")
    parser.add_argument("--folder", type=Path, default=Path(".bench/work"), help="scratch folder")
    parser.add_argument("--json", type=Path, default=Path(".bench/results.json"))
    read = parser.parse_args()
    unknown = [name for name in read.names if name not in CASES]
    if unknown:
        parser.error(f"no such case: {', '.join(unknown)}; there are {', '.join(CASES)}")
    return read


def main() -> None:
    read = arguments()
    bench = Bench(read.folder.resolve(), read.quick)
    rows: list[Row] = []
    unmeasured: dict[str, str] = {}
    for name in read.names or CASES:
        print(f"measuring {name} ...", flush=True)
        try:
            rows += CASES[name](bench)
        except (SystemExit, Exception) as error:  # noqa: BLE001 -- it is printed
            # A case that fails, or cannot run here (missing server or library), must not prevent
            # the other cases.
            if not isinstance(error, SystemExit | OSError | ModuleNotFoundError):
                traceback.print_exc()
            unmeasured[name] = f"{type(error).__name__}: {error}"
    print("\n" + table(rows))
    save(read.json, rows, read.quick)
    missed = sum(row.met is False for row in rows)
    print(f"\n{sum(row.met is True for row in rows)} bars met, {missed} missed; see {read.json}")
    for name, reason in unmeasured.items():
        print(f"not measured: {name}: {reason}")
    if unmeasured:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
