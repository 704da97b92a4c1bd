"""A plugin of pytest that measures the coverage of the pure packages by their unit tests.

It works within a run of all tests, in each worker of pytest-xdist, but measures only the unit tests
of these packages: measuring all tests would be slower and hide lines that no unit test covers.
`-p tests.support.measured` imports this module before anything imports aflow; `scripts/coverage`
reports the results.
"""

from __future__ import annotations

import fnmatch
import importlib
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from coverage import Coverage

ROOT = Path(__file__).resolve().parents[2]
PURE = (
    "aflow/flow/*",
    "aflow/scheduler/*",
    "aflow/_core/cron.py",
    "aflow/step_functions/machine.py",
    "aflow/step_functions/names.py",
    "aflow/step_functions/plan.py",
    "aflow/step_functions/spec.py",
    "aflow/step_functions/tasks.py",
)
SHOWN_BY = (
    "tests/unit/core/test_cron.py",
    "tests/unit/flow/",
    "tests/unit/scheduler/",
    "tests/unit/step_functions/",
)

_coverage = Coverage(
    data_file=os.environ.get("COVERAGE_OF_PURE", str(ROOT / "build" / "coverage" / "pure")),
    data_suffix=True,
    include=[str(ROOT / each) for each in PURE],
    config_file=False,
)


def _import_all() -> None:
    """Import the measured modules, since most are imported before their tests run."""
    for file in sorted(ROOT.glob("aflow/**/*.py")):
        name = file.relative_to(ROOT).as_posix()
        if any(fnmatch.fnmatchcase(name, each) for each in PURE):
            module = name.removesuffix(".py").removesuffix("/__init__")
            importlib.import_module(module.replace("/", "."))


_coverage.start()
_import_all()
_coverage.stop()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Measure the tests of the pure packages, except those of hypothesis: they cover lines by
    chance, and take the most time."""
    if not item.nodeid.startswith(SHOWN_BY) or item.get_closest_marker("hypothesis"):
        return (yield)
    _coverage.start()
    try:
        return (yield)
    finally:
        _coverage.stop()


def pytest_sessionfinish() -> None:
    """Save the coverage data."""
    _coverage.save()
