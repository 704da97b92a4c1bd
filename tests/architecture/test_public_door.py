"""`import aflow`: the public API is complete, sorted and cheap to import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import aflow
from tests.architecture.sources import tree_of

# What costs milliseconds to import, and that a program which only says `import aflow` never needs.
HEAVY = {
    "asyncio",
    "blake3",
    "click",
    "cloudpickle",
    "concurrent.futures",
    "importlib.metadata",
    "msgpack",
    "multiprocessing",
    "numpy",
    "rich",
    "sqlite3",
    "tempfile",
    "uvloop",
    "zstandard",
}


def test_the_public_names_are_sorted() -> None:
    def place(name: str) -> tuple[bool, bool, str]:
        return not name.isupper(), not name[0].isupper(), name  # constants, classes, functions

    assert sorted(aflow.__all__, key=place) == list(aflow.__all__)


def test_no_public_name_is_listed_twice() -> None:
    assert len(set(aflow.__all__)) == len(aflow.__all__)


@pytest.mark.parametrize("name", aflow.__all__)
def test_a_public_name_leads_to_something(name: str) -> None:
    assert getattr(aflow, name) is not None


def test_every_name_that_is_imported_for_types_is_public() -> None:
    typed = {
        alias.asname or alias.name
        for node in tree_of(Path("aflow/__init__.py")).body
        if isinstance(node, ast.If)
        for each in ast.walk(node)
        if isinstance(each, ast.ImportFrom) and (each.module or "").startswith("aflow")
        for alias in each.names
    }

    # `from aflow import *` would hide the standard library's queue.
    assert typed - {"queue"} <= set(aflow.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = aflow.no_such_name


def test_importing_aflow_imports_nothing_heavy() -> None:
    script = (
        "import sys; before = set(sys.modules); import aflow; print(*set(sys.modules) - before)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )

    assert set() == HEAVY & set(result.stdout.split())
