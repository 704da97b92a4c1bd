"""Fixtures: the processes that read the records of Metaflow and aflow."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.compat.peer import PEER, Forks, Reader


@pytest.fixture(scope="session")
def readers() -> Iterator[dict[str, Reader]]:
    """One reader for each system."""
    with closing(Reader(PEER)) as theirs, closing(Reader(sys.executable, "ours")) as ours:
        yield {"theirs": theirs, "ours": ours}


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """The process that runs flows on Metaflow."""
    with closing(Forks()) as made:
        yield made
