"""The speed of storing and loading artifacts, without a run.

    python benchmarks/artifacts.py [--megabytes 1024] [--folder .bench/artifacts] [--rounds 3]

prints one JSON object per line: {"name", "value", "unit"}. Saves are the median of the rounds, each
with new random floats that are in memory before the clock starts; durable saves include fsync.
Every measurement runs in a new process, so that its peak memory is separate.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from aflow.storage.artifacts import ArtifactReader, ArtifactWriter, Manifest
from aflow.storage.blobs import BlobStore
from aflow.storage.local import LocalStore
from aflow.storage.logs import LineSplitter, LogBuffer

MEGA = 1 << 20


def main() -> None:
    options = arguments()
    if options.one:
        print(json.dumps(ONE[options.one](options)))
        return
    try:
        for name, unit in MEASURES:
            report(options, name, unit)
    finally:
        shutil.rmtree(options.folder, ignore_errors=True)


def report(options: argparse.Namespace, one: str, units: dict[str, str]) -> None:
    rounds = [in_a_fresh_process(options, one, number) for number in range(options.rounds)]
    for name, unit in units.items():
        value = statistics.median(each[name] for each in rounds)
        print(json.dumps({"name": name, "value": round(value, 3), "unit": unit}), flush=True)


def in_a_fresh_process(options: argparse.Namespace, one: str, number: int) -> dict[str, float]:
    shutil.rmtree(options.folder, ignore_errors=True)
    command = [sys.executable, __file__, "--one", one, "--folder", str(options.folder)]
    command += ["--megabytes", str(options.megabytes), "--seed", str(number)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--folder", type=Path, default=Path(".bench/artifacts"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--one", choices=list(ONE), help=argparse.SUPPRESS)
    return parser.parse_args()


# ------------------------------------------------------------------ measurements, one per process


def random_floats(options: argparse.Namespace) -> Any:
    import numpy as np

    return np.random.default_rng(options.seed).random(options.megabytes * MEGA // 8)


def peak() -> float:
    """Return the peak memory of this process in MB (ru_maxrss is in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def save(options: argparse.Namespace, durable: bool, name: str) -> dict[str, float]:
    array = random_floats(options)
    blobs = BlobStore(LocalStore(options.folder), durable)
    before = peak()
    began = time.perf_counter()
    ArtifactWriter(blobs).save("array", array)
    took = time.perf_counter() - began
    over = peak() - before
    return {
        name: array.nbytes / 1e9 / took,
        f"{name}_memory_over_array": over,
        f"{name}_plain_write": array.nbytes / 1e9 / plain_write(options, array, durable),
    }


def plain_write(options: argparse.Namespace, array: Any, durable: bool) -> float:
    """Return the seconds of a plain write of the same bytes in the same process: on a virtual
    machine the page cache alone varies more than aflow's own time."""
    rest = memoryview(array).cast("B")
    began = time.perf_counter()
    with open(options.folder / "plain", "wb", buffering=0) as file:
        while rest:
            rest = rest[file.write(rest[: 8 * MEGA]) :]
        if durable:
            os.fsync(file.fileno())
    return time.perf_counter() - began


def load(options: argparse.Namespace) -> dict[str, float]:
    blobs = BlobStore(LocalStore(options.folder))
    array = random_floats(options)
    size, first, total = array.nbytes, array[0], array.sum()
    entry = ArtifactWriter(blobs).save("array", array)
    del array
    reader = ArtifactReader(BlobStore(LocalStore(options.folder)))
    began = time.perf_counter()
    value = reader.load("array", entry)
    assert value[0] == first
    first_element = time.perf_counter() - began
    began = time.perf_counter()
    reader.start_verification()
    assert value.sum() == total
    reader.verify_pending()
    verified = time.perf_counter() - began
    return {"load_to_first_element": first_element * 1e3, "sum_and_verify": size / 1e9 / verified}


def peak_of_load(options: argparse.Namespace) -> dict[str, float]:
    blobs = BlobStore(LocalStore(options.folder))
    entry = ArtifactWriter(blobs).save("array", random_floats(options))
    manifest = Manifest(step="start", artifacts={"array": entry}).encode()
    code = (
        "import sys, resource, numpy; from pathlib import Path\n"
        "from aflow.storage.artifacts import *; from aflow.storage.local import LocalStore\n"
        "from aflow.storage.artifacts import Manifest\n"
        "entry = Manifest.decode(sys.stdin.buffer.read()).artifacts['array']\n"
        "reader = ArtifactReader(BlobStore(LocalStore(Path(sys.argv[1]))))\n"
        "value = reader.load('array', entry); reader.start_verification(); value += 1\n"
        "reader.verify_pending()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - value.nbytes / 2**20)"
    )
    command = [sys.executable, "-c", code, str(options.folder)]
    done = subprocess.run(command, input=manifest, check=True, stdout=subprocess.PIPE)
    return {"load_and_change_memory_over_array": float(done.stdout)}


def unchanged(options: argparse.Namespace) -> dict[str, float]:
    blobs = BlobStore(LocalStore(options.folder))
    writer = ArtifactWriter(blobs)
    value = ArtifactReader(blobs).load("array", writer.save("array", random_floats(options)))
    value.sum()
    began = time.perf_counter()
    writer.save("array", value)
    return {"save_of_an_array_that_was_only_read": (time.perf_counter() - began) * 1e3}


def column(options: argparse.Namespace) -> dict[str, float]:
    import pandas as pd

    blobs = BlobStore(LocalStore(options.folder))
    columns = random_floats(options).reshape(16, -1)
    table = pd.DataFrame({f"c{number}": values for number, values in enumerate(columns)})
    entry = ArtifactWriter(blobs).save("table", table)
    before = stored(blobs)
    table = ArtifactReader(blobs).load("table", entry)
    table["new"] = table["c0"] * 2
    began = time.perf_counter()
    ArtifactWriter(blobs).save("table", table)
    took = time.perf_counter() - began
    over = stored(blobs) - before - table["new"].to_numpy().nbytes
    return {
        "column_added_bytes_stored": stored(blobs) - before,
        "column_added_bytes_over_the_column": over,
        "column_added_save": took * 1e3,
    }


def stored(blobs: BlobStore) -> int:
    return sum(blobs.store.size(name) or 0 for name in blobs.store.list("blobs/"))


def small(options: argparse.Namespace) -> dict[str, float]:
    writer = ArtifactWriter(BlobStore(LocalStore(options.folder)), inline_total=1 << 40)
    count = 100_000
    began = time.perf_counter()
    for number in range(count):
        writer.save("number", number)
    return {"save_of_a_small_int": (time.perf_counter() - began) / count * 1e6}


def lines(options: argparse.Namespace) -> dict[str, float]:
    line, count = b"a line of some sixty characters, as tasks like to print them\n", 300_000
    splitter, buffer = LineSplitter(), LogBuffer(1 << 40)
    began = time.perf_counter()
    for _ in range(count // 1000):
        for text, whole in splitter.feed(line * 1000):
            buffer.add(began, 0, text, whole)
    return {"log_lines": count / (time.perf_counter() - began)}


ONE = {
    "save_process": lambda options: save(options, False, "save"),
    "save_power": lambda options: save(options, True, "save_durable"),
    "load": load,
    "peak_of_load": peak_of_load,
    "unchanged": unchanged,
    "column": column,
    "small": small,
    "lines": lines,
}
MEASURES: list[tuple[str, dict[str, str]]] = [
    (
        "save_process",
        {"save": "GB/s", "save_plain_write": "GB/s", "save_memory_over_array": "MB"},
    ),
    (
        "save_power",
        {
            "save_durable": "GB/s",
            "save_durable_plain_write": "GB/s",
            "save_durable_memory_over_array": "MB",
        },
    ),
    ("load", {"load_to_first_element": "ms", "sum_and_verify": "GB/s"}),
    ("peak_of_load", {"load_and_change_memory_over_array": "MB"}),
    ("unchanged", {"save_of_an_array_that_was_only_read": "ms"}),
    (
        "column",
        {
            "column_added_bytes_stored": "bytes",
            "column_added_bytes_over_the_column": "bytes",
            "column_added_save": "ms",
        },
    ),
    ("small", {"save_of_a_small_int": "us"}),
    ("lines", {"log_lines": "lines/s"}),
]

if __name__ == "__main__":
    main()
