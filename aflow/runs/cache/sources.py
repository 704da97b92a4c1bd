"""Static analysis of the user's modules: which files are theirs, what they import, and which
statements have side effects at import. Nothing is imported here.

A user's file is one that belongs neither to Python, nor to an installed package, nor to aflow.
"""

from __future__ import annotations

import ast
import importlib.machinery
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, cached_property
from importlib.util import resolve_name
from types import CodeType, ModuleType
from typing import Any

from aflow._core import modules
from aflow._core.private_folders import read_regular
from aflow._core.records import NamedTuple
from aflow.flow.links import parsed
from aflow.storage.blobs import digest_of
from aflow.task.program import library_folders

_PACKAGES = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_AFLOW = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))) + os.sep
# Suffixes of files in the flow's folder that a step may execute, in other processes too.
_CODE = frozenset({".py", ".pyx", ".so", ".sh", ".r", ".jl", ".pl", ".sql", ".ipynb"})
_NOT_CODE = frozenset({"__pycache__", "node_modules", "venv"})
_MOST_FILES = 5_000

Import = tuple[str, int, tuple[str, ...]]  # module, level, names


class Body(NamedTuple):
    """The statements of a module that have side effects when it is imported: digest and code."""

    digest: str
    code: CodeType


@cache
def _not_of_the_user() -> tuple[str, ...]:
    return (_AFLOW, *library_folders())


@cache
def is_of_the_user(file: str) -> bool:
    """Return whether a file is the user's: not part of Python, an installed package or aflow.

    Args:
        file: The path of the file, which may no longer exist.
    """
    path = os.path.abspath(file)
    if any(each in path for each in _PACKAGES):
        return False
    own = _not_of_the_user()
    return not path.startswith(own) and not os.path.realpath(path).startswith(own)


def is_theirs(module: ModuleType) -> bool:
    """Return whether a module is the user's. A module without a file may be (from a notebook).

    Args:
        module: A loaded module.
    """
    file = modules.file_of(module)
    if file is not None:
        return is_of_the_user(file)
    name = modules.stated(module, "__name__")
    if isinstance(name, str) and name.partition(".")[0] in sys.stdlib_module_names:
        return name == "__main__"
    places = modules.stated(module, "__path__")  # a namespace package
    return places is None or any(is_of_the_user(os.path.join(each, "_")) for each in places)


def is_library(name: str | None) -> bool:
    """Return whether a module of this name is loaded and is not the user's.

    Args:
        name: The full name of a module; False for None.
    """
    module = sys.modules.get(name or "")
    return module is not None and not is_theirs(module)


def library_version(name: str) -> str | None:
    """Return the version of the installed package that a module belongs to; None for Python's own.

    Args:
        name: The full name of a module.
    """
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names or top == "aflow":
        return None
    return _version_of(top)


@cache
def _version_of(top: str) -> str:
    stated = modules.stated(sys.modules.get(top), "__version__")
    if isinstance(stated, str):
        return stated
    from importlib import metadata  # lazy: takes 6 ms, and most libraries have a __version__

    try:
        return metadata.version(top)
    except metadata.PackageNotFoundError:
        # The distribution has another name (python-dotenv), or several share a module (google).
        names = sorted(set(_packages_by_module(tuple(sys.path)).get(top, ())))
        return " ".join(f"{each} {metadata.version(each)}" for each in names) or "of no version"


@cache
def _packages_by_module(path: tuple[str, ...]) -> Mapping[str, list[str]]:
    """Return the installed packages by module, for this sys.path. Slow: reads all their records."""
    from importlib import metadata  # lazy, as above

    return metadata.packages_distributions()


class ModuleText:
    """The source of one user module."""

    def __init__(self, name: str, file: str) -> None:
        """`name` is the full name of the module. Raises OSError if the file cannot be read."""
        self.name = name
        self.is_package = os.path.basename(file).startswith("__init__.")
        data = read_regular(file)
        self.tree: ast.Module | None = None
        if file.endswith((".py", ".pyw")):
            try:
                self.tree = parsed(data)
            except (SyntaxError, ValueError):  # treated as data; an import will raise the error
                pass
        self.raw_digest = str(digest_of([data], len(data)))

    @cached_property
    def digest(self) -> str:
        """The digest of the source; for Python without comments and docstrings."""
        return self.raw_digest if self.tree is None else _digest_of_tree(self.tree)

    @property
    def code(self) -> CodeType | None:
        """The compiled module; None if it is not Python source."""
        return None if self.tree is None else _compiled(self.tree)

    @cached_property
    def imported_at_once(self) -> list[str]:
        """The full names of the modules that it imports at import time, outside of functions."""
        return [*self.imports(anywhere=False)]

    def imports(self, *, anywhere: bool) -> Iterator[str]:
        """Return the full names of all modules that it may import. Some may not be modules: in
        `from a import b`, `a.b` may be any object.

        Args:
            anywhere: Whether to include imports inside of functions.
        """
        for node in _nodes(self.tree, anywhere=anywhere):
            if isinstance(node, ast.Import):
                for each in node.names:
                    yield from names_of((each.name, 0, ()), self.package)
            elif isinstance(node, ast.ImportFrom):
                names = tuple(each.name for each in node.names)
                yield from names_of((node.module or "", node.level, names), self.package)

    def members_of_classes(self) -> Iterator[set[str]]:
        """Yield the names of the methods and attributes of each class, without inherited ones."""
        for node in _nodes(self.tree, anywhere=True):
            if isinstance(node, ast.ClassDef):
                yield set(_bound_by(ast.Module(node.body, [])))

    @property
    def package(self) -> str:
        """The package to which its relative imports are relative."""
        return self.name if self.is_package else self.name.rpartition(".")[0]

    def body(self, namespace: dict[str, Any]) -> Body | None:
        """Return the top-level statements with side effects, that is, all except imports,
        definitions and assignments of values to names; None if there are none.

        Args:
            namespace: The globals of the imported module.
        """
        if self.tree is None:
            return None
        # If a name is bound several times, only its last value is still available.
        bound = Counter(_bound_by(self.tree))
        values = {name: value for name, value in namespace.items() if bound[name] == 1}
        kept = [each for each in self.tree.body if _has_effect(each, values)]
        if not kept:
            return None
        tree = ast.Module(kept, [])
        return Body(_digest_of_tree(tree), _compiled(tree))


def names_of(what: Import, package: str) -> Iterator[str]:
    """Return the full names of the modules that an import may load, including parent packages and
    submodules that are imported by name.

    Args:
        what: An import statement: the module, the number of leading dots, and the imported names.
        package: The name of the package, for relative imports.
    """
    module, level, names = what
    try:
        full = resolve_name("." * level + module, package) if level else module
    except ImportError:  # beyond the top-level package: the import will fail
        return
    parts = full.split(".")
    for count in range(1, len(parts) + 1):
        yield ".".join(parts[:count])
    for name in names:
        if name != "*":
            yield f"{full}.{name}"


def file_of(name: str, folder: str) -> str | None:
    """Return the file of a module, loaded or not, without importing anything; "" if it has no file
    (a namespace package), None if it is not found.

    Args:
        name: The full name of the module.
        folder: The folder of the program, which is searched first.
    """
    module = sys.modules.get(name)
    if module is not None and modules.stated(module, "__spec__") is not None:
        return modules.file_of(module) or ""
    places: Iterable[str] | None = None
    spec: importlib.machinery.ModuleSpec | None = None
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        spec = _spec(".".join(parts[:count]), places, folder)
        if spec is None:
            return None
        places = spec.submodule_search_locations
        if places is None and count < len(parts):
            return None
    return (spec.origin or "") if spec is not None and spec.has_location else ""


def _spec(
    name: str, places: Iterable[str] | None, folder: str
) -> importlib.machinery.ModuleSpec | None:
    if places is None:  # the flow's folder takes precedence, as in the processes of its tasks
        found = importlib.machinery.PathFinder.find_spec(name, [folder])
        if found is not None:
            return found
    for finder in sys.meta_path:
        try:
            found = finder.find_spec(name, None if places is None else list(places))
        except Exception:  # noqa: BLE001, S112 -- a third-party finder fails: try the next one
            continue
        if found is not None:
            return found
    return None


def folder_digest(folder: str) -> str:
    """Return the digest of all code in a folder, recursively; "" if there are too many files.

    Args:
        folder: The path of the folder; hidden folders and virtual environments in it are skipped.
    """
    found: list[bytes] = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(
            each
            for each in folders
            if not each.startswith(".")
            and each not in _NOT_CODE
            and not os.path.exists(os.path.join(place, each, "pyvenv.cfg"))
        )
        for name in sorted(files):
            if os.path.splitext(name)[1].lower() in _CODE:
                path = os.path.join(place, name)
                try:
                    data = read_regular(path)
                except OSError:
                    continue
                found += [os.path.relpath(path, folder).encode(), digest_of([data]).encode()]
        if len(found) > 2 * _MOST_FILES:
            return ""
    return str(digest_of(found))


# ------------------------------------------------------------------ trees


def _compiled(tree: ast.Module) -> CodeType:
    compiled: CodeType = compile(tree, "<of a module>", "exec", dont_inherit=True)
    return compiled


def _digest_of_tree(tree: ast.Module) -> str:
    return str(digest_of([ast.dump(_without_documents(tree)).encode("utf-8", "surrogatepass")]))


def _without_documents(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
            and isinstance(body[0].value.value, str)
        ):
            body[0].value.value = ""
    return tree


def _nodes(tree: ast.AST | None, *, anywhere: bool) -> Iterator[ast.AST]:
    """Yield all nodes; unless `anywhere`, without those inside functions."""
    todo = [] if tree is None else [tree]
    while todo:
        node = todo.pop()
        yield node
        if anywhere or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            todo += ast.iter_child_nodes(node)


_DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.Pass)


def _bound_by(tree: ast.Module) -> Iterator[str]:
    """Yield the names that a module binds outside of functions, once for each binding."""
    for node in _nodes(tree, anywhere=False):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name


def _has_effect(node: ast.stmt, namespace: dict[str, Any] | None) -> bool:
    """Return whether a top-level statement does more than bind names to values. (Such values are
    part of the fingerprints of the steps that use them.) `namespace` has the values of the names;
    None for the body of a class."""
    if isinstance(node, _DEFINITIONS):
        return False
    if isinstance(node, ast.ClassDef):
        return any(_has_effect(each, None) for each in node.body)
    if isinstance(node, ast.Expr):
        return not isinstance(node.value, ast.Constant)
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if not all(isinstance(each, ast.Name) for each in targets):
            return True
        if namespace is None:
            return False
        # A call that returned None was made for its side effects.
        nothing = any(namespace.get(each.id) is None for each in targets)  # type: ignore[attr-defined]
        return nothing and node.value is not None and _calls(node.value)
    if isinstance(node, ast.If):
        inside = [*node.body, *node.orelse]
        return _calls(node.test) or any(_has_effect(each, namespace) for each in inside)
    if isinstance(node, ast.Try):
        handlers = [each for handler in node.handlers for each in handler.body]
        inside = [*node.body, *handlers, *node.orelse, *node.finalbody]
        return any(_has_effect(each, namespace) for each in inside)
    return True


def _calls(node: ast.AST) -> bool:
    return any(isinstance(each, ast.Call) for each in ast.walk(node))
