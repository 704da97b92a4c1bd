"""Measures the line coverage of aflow by all tests, including all processes that they start, and
compares each package with its figure in docs/coverage.md: `scripts/coverage --all`.

    --record   write the figures to docs/coverage.md
    --report   measure nothing: report the results of the last run in build/coverage
    ...        other arguments are passed to pytest (-n 4, tests/unit)

Tests take about twice as long as without measurement. Some fail, since measured processes differ
from normal ones: these tests compare tracebacks, signals, or imported modules. They are listed, and
the lines that they executed count.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from coverage import Coverage, CoverageData

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "coverage"
PAGE = ROOT / "docs" / "coverage.md"
# The tolerance for lower figures, in percent: race conditions make the coverage vary between runs.
FLUTTER = 0.5
SHOWN = 30  # number of listed modules, those with the most uncovered lines
OMITTED = ["aflow/cli/tutorials/**/*.py"]  # example flows, which are copied before they are run

# Processes of tasks are forked, exit by os._exit, call exec, and are terminated by signals.
SETTINGS = """\
[run]
data_file = {folder}/data
include = {root}/aflow/*
omit = {omitted}
parallel = true
sigterm = true
patch =
    subprocess
    fork
    _exit
    execv

[report]
exclude_also = case _:\\n\\s+assert_never\\(
"""


class Lines(NamedTuple):
    """The number of lines, and the number of executed lines."""

    all: int
    run: int

    @property
    def figure(self) -> float:
        """The coverage in percent, rounded down to a tenth."""
        return int(1000 * self.run / self.all) / 10 if self.all else 100.0


def measure(arguments: list[str]) -> int:
    """Run the tests with measurement, and return the exit code of pytest."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for old in FOLDER.glob("data*"):
        old.unlink()
    environment = {**os.environ, "COVERAGE_PROCESS_START": str(settings())}
    arguments = arguments or ["-n", "4"]
    command = [sys.executable, "-m", "pytest", "-q", "--dist", "loadgroup", "-o", "timeout=600"]
    return subprocess.run([*command, *arguments], cwd=ROOT, env=environment, check=False).returncode


def settings() -> Path:
    """Write the settings of coverage with absolute paths, since processes run in other folders."""
    file = FOLDER / "settings"
    omitted = "\n    ".join(str(ROOT / each) for each in OMITTED)
    file.write_text(SETTINGS.format(folder=FOLDER, root=ROOT, omitted=omitted))
    return file


def modules() -> dict[str, Lines]:
    """Return the lines of each module, including those that no test has imported."""
    with tempfile.TemporaryDirectory() as folder:
        combined = Path(folder) / "data"
        coverage = Coverage(config_file=str(settings()), data_file=str(combined))
        # A process that is killed while it writes leaves an unreadable file, which is skipped.
        coverage.combine([str(FOLDER)], keep=True)
        coverage.save()
        data = CoverageData(str(combined))
        data.read()
        omitted = {file for each in OMITTED for file in ROOT.glob(each)}
        files = [each for each in sorted(ROOT.glob("aflow/**/*.py")) if each not in omitted]
        data.touch_files([str(each) for each in files])
        coverage = Coverage(config_file=str(settings()), data_file=str(combined))
        coverage.load()
        found = {}
        for file in files:
            _, statements, _, missing, _ = coverage.analysis2(str(file))
            lines = Lines(len(statements), len(statements) - len(missing))
            found[file.relative_to(ROOT).as_posix()] = lines
        return found


def packages(of: Mapping[str, Lines]) -> dict[str, Lines]:
    """Return the lines of each package on the first level below aflow/. The modules on this level
    count as one package."""
    found: dict[str, Lines] = {}
    for name, lines in of.items():
        parts = name.split("/")
        package = "/".join(parts[:2]) if len(parts) > 2 else "aflow/*.py"
        before = found.get(package, Lines(0, 0))
        found[package] = Lines(before.all + lines.all, before.run + lines.run)
    return dict(sorted(found.items()))


ROW = re.compile(r"^\| `([\w/.*]+)` \| ([\d,]+) \| ([\d.]+) \|$", re.MULTILINE)


def recorded() -> dict[str, float]:
    """Return the figures in docs/coverage.md."""
    return {name: float(figure) for name, _, figure in ROW.findall(PAGE.read_text())}


def record(found: Mapping[str, Lines]) -> None:
    """Replace the figures in docs/coverage.md."""
    page = PAGE.read_text()
    rows = "\n".join(
        f"| `{name}` | {lines.all:,} | {lines.figure:.1f} |" for name, lines in found.items()
    )
    places = [each.span() for each in ROW.finditer(page)]
    PAGE.write_text(page[: places[0][0]] + rows + page[places[-1][1] :])


def main(arguments: list[str]) -> int:
    """Run the command, and return its exit code."""
    recording, reporting = "--record" in arguments, "--report" in arguments
    rest = [each for each in arguments if each not in ("--record", "--report")]
    tested = 0 if reporting else measure(rest)
    each = modules()
    found = packages(each)
    total = Lines(sum(lines.all for lines in each.values()), sum(x.run for x in each.values()))
    found["all"] = total
    before = recorded()
    print(f"\n{'package':24} {'lines':>7} {'run':>6} {'before':>7}")
    for name, lines in found.items():
        print(f"{name:24} {lines.all:7,} {lines.figure:6.1f} {before.get(name, 0.0):7.1f}")
    print(f"\nThe {SHOWN} modules with the most lines that no test runs:")
    worst = sorted(each.items(), key=lambda item: item[1].run - item[1].all)
    for name, lines in worst[:SHOWN]:
        print(f"{name:48} {lines.all - lines.run:5} of {lines.all:5}  {lines.figure:5.1f}")
    if recording:
        record(found)
        return 0
    fallen = [
        name
        for name, figure in before.items()
        if found.get(name, Lines(0, 0)).figure < figure - FLUTTER
    ]
    if fallen:
        print(f"\nFewer lines than before are run: {', '.join(fallen)}.", file=sys.stderr)
    if tested not in (0, 1):
        print("\nThe tests could not be run; see above.", file=sys.stderr)
    return 1 if fallen or tested not in (0, 1) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
