"""Small files, small functions: the guard of the tail."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture.sources import python_files, text_of, tree_of

LONGEST_FILE = 600
LONGEST_FUNCTION = 60

FILES = python_files("aflow", "benchmarks", "examples", "tests")


def functions(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Name and number of lines, docstring left out, of every function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if ast.get_docstring(node) is not None:
                first = node.body[0]
                lines -= (first.end_lineno or first.lineno) - first.lineno + 1
            yield node.name, lines


@pytest.mark.parametrize("path", FILES, ids=str)
def test_no_file_is_longer_than_600_lines(path: Path) -> None:
    assert text_of(path).count("\n") <= LONGEST_FILE


@pytest.mark.parametrize("path", FILES, ids=str)
def test_no_function_is_longer_than_60_lines(path: Path) -> None:
    assert [] == [each for each in functions(tree_of(path)) if each[1] > LONGEST_FUNCTION]
