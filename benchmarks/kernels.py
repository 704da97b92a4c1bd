"""Benchmarks of single components: programs of this folder that print JSON lines of name, value,
unit."""

from __future__ import annotations

from benchmarks.measure import Bench
from benchmarks.rows import Row, at_least, at_most

# Limits by the figure's name; figures without one are for information only.
AT_MOST = {
    "machine.microseconds_per_event": 15.0,
    "machine.bytes_per_finished_task": 300.0,
    "slots.microseconds_per_task": 20.0,
    "save_memory_over_array": 100.0,
    "save_durable_memory_over_array": 100.0,
    "load_and_change_memory_over_array": 100.0,
    "load_to_first_element": 20.0,
    "client.list_1000_runs": 300.0,
    "client.first_task_of_many": 300.0,
    "client.list_100000_tasks_memory": 100.0,
    "column_added_bytes_over_the_column": 4096.0,
}
AT_LEAST = {
    "save": 0.8,
    "save_durable": 0.5,
}


def rows_of(case: str, figures: dict[str, tuple[float, str]]) -> list[Row]:
    """Return a row for each figure, with its limit if it has one."""
    rows = []
    for name, (value, unit) in figures.items():
        if name in AT_MOST:
            rows.append(at_most(case, name, value, unit, AT_MOST[name]))
        elif name in AT_LEAST:
            rows.append(at_least(case, name, value, unit, AT_LEAST[name]))
        else:
            rows.append(Row(case, name, value, unit))
    return rows


def machine(bench: Bench) -> list[Row]:
    """The scheduler alone."""
    tasks = bench.size(1_000_000, 100_000)
    return rows_of("machine", bench.json_lines("machine.py", tasks))


def slots(bench: Bench) -> list[Row]:
    """Admission to the slots of a machine alone."""
    return rows_of("slots", bench.json_lines("slots.py", bench.size(100_000, 20_000)))


def artifacts(bench: Bench) -> list[Row]:
    """Arrays and tables, stored and loaded without a run."""
    size, rounds = bench.size(1024, 256), bench.size(3, 1)
    folder = bench.folder / "artifacts"
    options = ("--megabytes", size, "--rounds", rounds, "--folder", folder)
    return rows_of("artifacts", bench.json_lines("artifacts.py", *options))


def metadata(bench: Bench) -> list[Row]:
    """The cost of a commit per task."""
    options = ("--tasks", bench.size(4000, 800), "--folder", bench.folder / "metadata")
    return rows_of("metadata", bench.json_lines("metadata.py", *options))


def client(bench: Bench) -> list[Row]:
    """Lists of runs and tasks, read with the client."""
    options = ("--tasks", bench.size(100_000, 20_000), "--folder", bench.folder / "client")
    return rows_of("client", bench.json_lines("client.py", *options))
