"""Running programs and taking their time: whole commands, slopes, medians of interleaved rounds."""

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
    """A program that has ended well. `peak_mb` is the peak memory of its first process."""

    seconds: float
    output: str
    peak_mb: float

    def figure(self, name: str) -> float:
        """The number that the program printed after `name`."""
        found = re.search(rf"\b{name} ([0-9.eE+-]+)", self.output)
        if found is None:
            raise SystemExit(f"The program printed no {name!r}:\n{self.output[-2000:]}")
        return float(found[1])


class Bench:
    """Where programs are run: a scratch folder, its own environment, no settings from outside."""

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
        """How much to do: `full`, or `quick` where somebody is in a hurry."""
        return quick if self.quick else full

    def start(
        self, *arguments: object, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """A Python program of benchmarks/ that has just been started."""
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
        """Run a Python program of benchmarks/ to its end; leaves with its output if it fails."""
        script, *rest = arguments
        return self.run_command(sys.executable, HERE / str(script), *rest, env=env)

    def run_command(self, *command: object, env: Mapping[str, str] | None = None) -> Finished:
        """Run a command to its end; leaves with its output if it fails."""
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
        """Run a program that prints JSON lines: value and unit by name."""
        figures = {}
        for line in self.run(*arguments).output.splitlines():
            if line.startswith("{"):
                read = json.loads(line)
                figures[read["name"]] = (read["value"], read["unit"])
        return figures


class Peak:
    """Watches the peak memory of a process: the kernel keeps it, so a look now and then will do."""

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
        """Stop watching; the peak in MB."""
        self._over.set()
        self._thread.join()
        return self._peak


Measurement = Callable[[], float]


def interleaved(rounds: int, measurements: Mapping[str, Measurement]) -> dict[str, float]:
    """The median of each measurement over rounds in which each is taken once, in turn (A B A B).

    So whatever else the machine does hits all of them alike.
    """
    taken: dict[str, list[float]] = {name: [] for name in measurements}
    for _ in range(rounds):
        for name, measure in measurements.items():
            taken[name].append(measure())
    return {name: median(values) for name, values in taken.items()}


def slope(cost: Callable[[int], float], small: int, large: int) -> float:
    """What one more costs: (large - small) in seconds over their difference.

    Start-up is in both and falls out.
    """
    return (cost(large) - cost(small)) / (large - small)
