"""Shared by all tests: hypothesis settings, hooks of pytest, and isolation from user settings."""

from __future__ import annotations

import gc
import itertools
import os
import re
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.aws.clients import close_clients
from tests.support.aws.furnished import aws, aws_account  # noqa: F401 -- fixtures of all tests
from tests.support.budget import BUDGET, over_budget
from tests.support.kubernetes import kubernetes, kubernetes_server  # noqa: F401 -- the same
from tests.support.s3 import (  # noqa: F401 -- the same
    s3_bucket,
    s3_server,
    strict_bucket,
    strict_s3_server,
)
from tests.support.servers import postgres_server  # noqa: F401 -- the same
from tests.support.slurm import slurm, slurm_server  # noqa: F401 -- the same

# With a deadline, correct tests would fail on slow machines.
settings.register_profile(
    "aflow", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("aflow")

REPOSITORY = Path(__file__).resolve().parent.parent

# Most tests in these folders are slow, and the others share their servers: all are marked `slow`.
# In other folders slow tests are marked individually.
SLOW_FOLDERS = (
    "tests/batch/",
    "tests/docker/",
    "tests/faults/",
    "tests/kubernetes/",
    "tests/slurm/",
    "tests/step_functions/",
    "tests/ui/",
)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Exclude the million objects that collecting the tests creates from garbage collection, during
    the collection and in the tests: they are never freed. Then collect less often than by default:
    the default takes a fifth of the time of tests with many objects."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)
        gc.callbacks.append(_full_collections.measure)


class _FullCollections:
    """Measures the processor time of the last full garbage collection.

    Tests import libraries and load service descriptions that are never freed either. Without
    freezing them, a full collection would take most of a second, and each test that counts
    descriptors makes one.
    """

    SLOW = 0.03  # seconds

    def __init__(self) -> None:
        self._began = 0.0
        self.took = 0.0

    def measure(self, phase: str, info: dict[str, int]) -> None:
        """Measure a collection. A callback of the collector, at its start and stop."""
        if info["generation"] == 2:
            if phase == "start":
                self._began = time.thread_time()
            else:
                self.took = time.thread_time() - self._began


_full_collections = _FullCollections()


def pytest_runtest_logfinish() -> None:
    """Freeze all existing objects if full collections have become slow. This is done between tests,
    since objects of a running test would never be freed."""
    if _full_collections.took > _full_collections.SLOW:
        gc.collect()
        gc.freeze()
        _full_collections.took = 0.0


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests in the slow folders, and assign tests of a file that share a server or a run to
    the same worker of pytest-xdist.

    Tests without a group are distributed one by one. Each worker would then set up the fixtures of
    wider scope in their file, and the architecture tests would parse hundreds of files in each
    worker.
    """
    for item in items:
        if item.nodeid.startswith(SLOW_FOLDERS):
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("xdist_group") is None and (group := _group_of(item)):
            item.add_marker(pytest.mark.xdist_group(group))


@pytest.hookimpl(wrapper=True, tryfirst=True)  # runs after the summary of pytest
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter,
) -> Generator[None, object, object]:
    """List the tests that took longer than their budget. They do not fail the session."""
    result = yield
    every = itertools.chain.from_iterable(terminalreporter.stats.values())
    if lines := over_budget(each for each in every if isinstance(each, pytest.TestReport)):
        terminalreporter.section(f"OVER BUDGET: more than {BUDGET:.0f} s", yellow=True)
        for line in lines:
            terminalreporter.line(line)
    return result


def _group_of(item: pytest.Item) -> str | None:
    file = item.nodeid.partition("::")[0]
    if file.startswith("tests/architecture/"):
        return "architecture"
    fixtures = getattr(item, "_fixtureinfo", None)
    for definitions in fixtures.name2fixturedefs.values() if fixtures else ():
        made = definitions[-1]
        if made.baseid == file and made.scope != "function":
            # Each parameter has a separate fixture value: they may be on different workers.
            of = getattr(item, "callspec", None)
            which = of.indices.get(made.argname, 0) if of else 0
            return re.sub(r"\W", "_", f"{file.removeprefix('tests/')} {made.argname} {which}")
    return None


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session", autouse=True)
def _own_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hide the settings of the user's shell and home from tests, fixtures of wider scope and the
    processes that they start."""
    with pytest.MonkeyPatch.context() as patch:
        _forget_settings(patch, tmp_path_factory)
        yield
    close_clients()


@pytest.fixture(autouse=True)
def _own_world(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Reset the settings before each test."""
    _forget_settings(monkeypatch, tmp_path_factory)


def _forget_settings(patch: pytest.MonkeyPatch, folders: pytest.TempPathFactory) -> None:
    for name in os.environ:
        if name.startswith(("AFLOW_", "METAFLOW_", "AWS_")):
            patch.delenv(name)
    patch.setenv("AFLOW_USER", "tester")
    patch.setenv("AFLOW_HOME", str(folders.getbasetemp() / "no-home"))
