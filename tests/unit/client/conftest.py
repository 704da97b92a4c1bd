"""A client on records in memory, which are dropped after each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from aflow import client
from tests.unit.client.recorded import Records


@pytest.fixture(autouse=True)
def _no_choices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    client.default_metadata()
    client.default_namespace()
    yield
    client.default_metadata()
    client.default_namespace()


@pytest.fixture
def records() -> Records:
    """Empty stores for the client."""
    records = Records()
    client.connect_to(records.metadata, records.store)
    return records
