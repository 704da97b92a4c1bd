"""Run and time programs: complete commands, slopes, medians of interleaved rounds."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Finished:
    """A program that has succeeded. `peak_mb` is the peak memory of its first process."""

    seconds: float
    output: str
    peak_mb: float

    def figure(self, name: str) -> float:
        """Return the number that the program printed after `name`."""
        found = re.search(rf"\b{name} ([0-9.eE+-]+)", self.output)
        if found is None:
            raise SystemExit(f"The program printed no {name!r}:\n{self.output[-2000:]}")
        return float(found[1])


class Bench:
    """The environment of measured programs: a scratch folder, and no settings of the user."""

    def __init__(self, folder: Path, quick: bool) -> None:
        self.quick = quick
        self.rounds = 3 if quick else 7
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("AFLOW_", "METAFLOW_", "RAY_", "DASK_"))
        }
        self.environment = {
            **kept,
            "USER": "bench",
            "METAFLOW_USER": "bench",
            "AFLOW_USER": "bench",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "PYTHONWARNINGS": "ignore",
        }

    def size(self, full: int, quick: int) -> int:
        """Return the size of a benchmark: `full`, or `quick` with --quick."""
        return quick if self.quick else full

    def start(
        self, *arguments: object, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start a Python program of benchmarks/."""
        script, *rest = arguments
        return self._start(sys.executable, HERE / str(script), *rest, env=env)

    def _start(
        self, *command: object, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*map(str, command)],
            cwd=self.folder,
            env={**self.environment, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: object, env: Mapping[str, str] | None = None) -> Finished:
        """Run a Python program of benchmarks/; if it fails, exit with its output."""
        script, *rest = arguments
        return self.run_command(sys.executable, HERE / str(script), *rest, env=env)

    def run_command(self, *command: object, env: Mapping[str, str] | None = None) -> Finished:
        """Run a command; if it fails, exit with its output."""
        began = time.perf_counter()
        process = self._start(*command, env=env)
        peak = Peak(process.pid)
        output, _ = process.communicate()
        seconds = time.perf_counter() - began
        peak_mb = peak.stop()
        if process.returncode:
            said = output[-3000:]
            raise SystemExit(f"{' '.join(map(str, command))} failed:\n{said}")
        return Finished(seconds, output, peak_mb)

    def json_lines(self, *arguments: object) -> dict[str, tuple[float, str]]:
        """Run a program that prints JSON lines, and return value and unit by name."""
        figures = {}
        for line in self.run(*arguments).output.splitlines():
            if line.startswith("{"):
                read = json.loads(line)
                figures[read["name"]] = (read["value"], read["unit"])
        return figures


class Peak:
    """Monitors the peak memory of a process by polling the maximum that the kernel maintains."""

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self._peak = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            try:
                found = re.search(r"VmHWM:\s+(\d+) kB", self._status.read_text())
            except (FileNotFoundError, ProcessLookupError):
                return
            if found:
                self._peak = max(self._peak, int(found[1]) / 1024)

    def stop(self) -> float:
        """Stop polling, and return the peak in MB."""
        self._over.set()
        self._thread.join()
        return self._peak


Measurement = Callable[[], float]


def interleaved(rounds: int, measurements: Mapping[str, Measurement]) -> dict[str, float]:
    """Return the median of each measurement over rounds that take each once, in turn (A B A B).

    So other load on the machine affects all of them equally.
    """
    taken: dict[str, list[float]] = {name: [] for name in measurements}
    for _ in range(rounds):
        for name, measure in measurements.items():
            taken[name].append(measure())
    return {name: median(values) for name, values in taken.items()}


def slope(cost: Callable[[int], float], small: int, large: int) -> float:
    """Return the cost per item: the difference of the times divided by the difference of the sizes.

    Start-up is part of both times and cancels out.
    """
    return (cost(large) - cost(small)) / (large - small)
