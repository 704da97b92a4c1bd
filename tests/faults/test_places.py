"""Machines with unusual folders, without a home folder, with few descriptors."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from aflow.testing.chaos import Fleet, check
from tests.faults.conftest import Undisturbed
from tests.faults.test_brokers import SQUARES

pytestmark = [pytest.mark.xdist_group("faults"), pytest.mark.timeout(300)]


def test_folders_may_have_any_name_and_there_may_be_no_home(
    tmp_path: Path, undisturbed: Undisturbed
) -> None:
    expected = undisturbed(SQUARES)
    # Names of 255 bytes are the longest that there are; databases put some letters behind theirs.
    folder = tmp_path / "a place, 100% odd: é 世界 'x' #1?" / ("long" * 60)
    folder.mkdir(parents=True)
    fleet = Fleet(
        folder,
        f"sqlite:///{quote(str(folder))}/metadata.db",
        f"sqlite:///{quote(str(folder))}/queue.db",
        AFLOW_DATASTORE_SYSROOT_LOCAL=str(folder / "store"),
        HOME="/proc/no-home",
        XDG_CONFIG_HOME="",
        AFLOW_HOME="/proc/no-home/aflow",
    )
    try:
        fleet.write(SQUARES)
        fleet.start_worker("--slots", "2")

        assert 0 == fleet.ends(fleet.begin("--isolation", "worker")), fleet.output()
        check(fleet, expected)
    finally:
        fleet.close()


@contextmanager
def open_files_limited(most: int) -> Iterator[None]:
    """Limit the open files of the processes that are started within the block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_few_descriptors_are_enough(fleet: Fleet, undisturbed: Undisturbed) -> None:
    expected = undisturbed(SQUARES)
    fleet.write(SQUARES)
    with open_files_limited(128):
        fleet.start_worker("--slots", "4")
        run = fleet.begin("--max-workers", "50")

    assert 0 == fleet.ends(run), fleet.output()
    check(fleet, expected)
