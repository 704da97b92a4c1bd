"""Coordinators within the test's own process, and the flow that they run."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from aflow.coordinator import Coordinator, RunHandle
from aflow.flow.spec import FlowSpec
from aflow.runs.events import LogLine

FILES = Path(__file__).parent / "flow_files"
FILE = FILES / "embedded.py"


@contextmanager
def loaded(name: str) -> Iterator[Any]:
    """Load a file of `flow_files` as a separate module."""
    spec = importlib.util.spec_from_file_location(f"{name}_flow_file", FILES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def flow() -> Iterator[type[FlowSpec]]:
    """The flow's class, from a separate module."""
    with loaded("embedded") as module:
        yield module.EmbeddedFlow


def coordinator(folder: Path, **options: Any) -> Coordinator:
    """Return a coordinator whose runs are recorded in the folder."""
    return Coordinator(
        storage=folder.as_uri(), metadata=f"sqlite:///{folder}/metadata.db", **options
    )


async def at_work(run: RunHandle) -> None:
    """Wait until a task of the run has printed something."""
    async for event in run.events():
        if isinstance(event, LogLine):
            return
