"""The repository's Python files as syntax trees, parsed once for all architecture tests."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


@cache
def tracked(*suffixes: str) -> tuple[Path, ...]:
    """Return the repository's files with these suffixes, relative to its root."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        check=True,
    ).stdout.decode()
    paths = (Path(name) for name in listed.split("\0") if name.endswith(suffixes))
    return tuple(sorted(path for path in paths if (REPOSITORY / path).is_file()))


def python_files(*folders: str) -> tuple[Path, ...]:
    """Return the Python files under these folders, relative to the root."""
    return tuple(path for path in tracked(".py") if path.parts[0] in folders)


@cache
def text_of(path: Path) -> str:
    """Return the text of a file, by its path relative to the root."""
    return (REPOSITORY / path).read_text(encoding="utf-8")


@cache
def tree_of(path: Path) -> ast.Module:
    """Return the syntax tree of a Python file, by its path relative to the root."""
    return ast.parse(text_of(path), filename=str(path))


@cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    """Return all nodes of a Python file's syntax tree. They are cached: a dozen tests use them, and
    walking the tree is slower than the tests."""
    return tuple(ast.walk(tree_of(path)))


def violations(
    paths: Iterable[Path], found_in: Callable[[Path], Sequence[object]]
) -> dict[str, Sequence[object]]:
    """What is found that should not be there, by file; empty where all is well.

    One test looks at all files: as a test for each file the thousands of them cost a minute."""
    return {str(path): found for path in paths if (found := found_in(path))}


def dotted(node: ast.AST) -> str:
    """Return `a.b.c` for an attribute or a name, otherwise an empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return f"{before}.{node.attr}" if before else ""
    return ""


def uses(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything from a module that the file names.

    Names are followed through `import x as y` and `from x import y`, so that
    `from time import time as now; now()` is seen as `time.time`.
    """
    nodes = nodes_of(path)
    meant: dict[str, str] = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                meant[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                meant[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in nodes:
        if not isinstance(node, ast.Name | ast.Attribute):
            continue
        name = dotted(node)
        first, dot, rest = name.partition(".")
        if first in meant:
            yield node.lineno, meant[first] + dot + rest
