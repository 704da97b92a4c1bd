"""Limits for the size of files and functions.

Modules are as long as their subject, and functions as long as is readable: these limits only catch
files that contain two subjects. Do not split code only to satisfy them.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.architecture.sources import python_files, text_of, tree_of, violations

LONGEST_FILE = 1100
LONGEST_FUNCTION = 100

FILES = python_files("aflow", "benchmarks", "examples", "tests")


def functions(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Return the name and the number of lines, without docstring, of every function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if ast.get_docstring(node) is not None:
                first = node.body[0]
                lines -= (first.end_lineno or first.lineno) - first.lineno + 1
            yield node.name, lines


def length(path: Path) -> int:
    """Return the number of lines of a file, without docstrings of functions, as in `functions`:
    long explanations are not a second subject."""
    of_functions = sum(
        (node.body[0].end_lineno or node.body[0].lineno) - node.body[0].lineno + 1
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and ast.get_docstring(node) is not None
    )
    return text_of(path).count("\n") - of_functions


def test_no_file_is_longer_than_1100_lines() -> None:
    lengths = {path: length(path) for path in FILES}

    assert {} == {str(path): each for path, each in lengths.items() if each > LONGEST_FILE}


def test_no_function_is_longer_than_100_lines() -> None:
    def too_long(path: Path) -> list[tuple[str, int]]:
        return [each for each in functions(tree_of(path)) if each[1] > LONGEST_FUNCTION]

    assert {} == violations(FILES, too_long)
