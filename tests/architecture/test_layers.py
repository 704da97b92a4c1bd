"""Only upper layers import lower ones, there are no import cycles, and the core is pure."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

from tests.architecture.sources import python_files, tree_of


def test_the_import_contracts_of_pyproject_hold(repository: Path) -> None:
    command = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run(
        [command, "--no-logo", "--no-cache"], cwd=repository, capture_output=True, text=True
    )

    assert result.returncode == 0, result.stdout + result.stderr


def test_no_modules_import_each_other_in_a_circle() -> None:
    modules = {module_name(path): path for path in python_files("aflow")}
    graph = {
        name: set(imported_at_start(tree_of(path), set(modules))) for name, path in modules.items()
    }

    assert set(modules) == set(TopologicalSorter(graph).static_order())


def module_name(path: Path) -> str:
    """`aflow.flow.graph` for aflow/flow/graph.py, `aflow.flow` for its __init__.py."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_at_start(node: ast.AST, modules: set[str]) -> Iterator[str]:
    """Which of the modules are imported while this one is: not inside functions, not for types.

    `from package import module` needs the module, not what the package's own file defines.
    """
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from modules.intersection(alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module:
            for alias in child.names:
                inside = f"{child.module}.{alias.name}"
                yield from modules.intersection([inside if inside in modules else child.module])
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        elif not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imported_at_start(child, modules)
