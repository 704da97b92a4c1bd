"""Docstrings of public functions describe all arguments, results and errors by name.

A function is public if neither its name nor the name of an enclosing class begins with an
underscore. Private and nested functions need no docstring; if they have one that lists arguments,
the list must be correct as well.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tests.architecture.sources import dotted, python_files, tree_of, violations

AFLOW = python_files("aflow")

# Packages whose docstrings are not held yet.
NOT_HELD: frozenset[str] = frozenset()
Function = ast.FunctionDef | ast.AsyncFunctionDef

# A decorator of click makes its function a command or a group: the docstring is its help text.
_OF_CLICK = {"command", "group", "callback"}
_PROPERTIES = {"property", "cached_property", "setter", "deleter"}
# Such a first sentence describes the result; a Returns section would repeat it.
_SAYS_RETURN = re.compile(r"(?:Return|Yield)s?\b")
# The same function of another class, a coroutine here, is documented there.
_SAYS_WHERE = re.compile(r"See `?[A-Z]\w+\.\w+`?\.$")
# Programs for users to read and run.
_TUTORIALS = Path("aflow/cli/tutorials")
# No value, one that callers ignore, and a context manager that gives none.
_NOTHING = {
    "None", "NoReturn", "Never", "object", "Iterator[None]", "AsyncIterator[None]",
    "Generator[None, None, None]",
}  # fmt: skip
_SECTION = re.compile(r"(Args|Returns|Yields|Raises):$")
_ENTRY = re.compile(r"    (?:\*{0,2})(\w+(?:, \*{0,2}\w+)*): ")


class Defined(NamedTuple):
    """A function, its file, and the class that it is a method of."""

    path: Path
    owner: ast.ClassDef | None
    node: Function

    @property
    def name(self) -> str:
        return f"{self.owner.name}.{self.node.name}" if self.owner else self.node.name


def defined(path: Path) -> Iterator[Defined]:
    """Yield the public functions of a module, and the public methods of its public classes."""

    def inside(body: list[ast.stmt], owner: ast.ClassDef | None) -> Iterator[Defined]:
        for node in body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield from inside(node.body, node)
            elif isinstance(node, Function) and not node.name.startswith("_"):
                yield Defined(path, owner, node)
            elif isinstance(node, ast.If):
                yield from inside([*node.body, *node.orelse], owner)

    yield from inside(tree_of(path).body, None)


def parameters(node: Function) -> list[str]:
    """Return the names of the parameters, without `self`, `cls` and unused ones (`_...`)."""
    given = node.args
    every = [*given.posonlyargs, *given.args, given.vararg, *given.kwonlyargs, given.kwarg]
    names = [each.arg for each in every if each is not None]
    return [name for name in names if name not in ("self", "cls") and not name.startswith("_")]


def decorators(node: Function) -> set[str]:
    """Return the last part of the name of each decorator."""
    return {
        dotted(each.func if isinstance(each, ast.Call) else each).rpartition(".")[2]
        for each in node.decorator_list
    }


def own_nodes(node: Function) -> Iterator[ast.AST]:
    """Yield the nodes of the function itself, without those of nested functions."""
    waiting: list[ast.AST] = list(node.body)
    while waiting:
        each = waiting.pop()
        if isinstance(each, Function | ast.ClassDef | ast.Lambda):
            continue
        yield each
        waiting.extend(ast.iter_child_nodes(each))


@cache
def errors_of_aflow() -> frozenset[str]:
    """Return the names of the classes in aflow/errors.py."""
    tree = tree_of(Path("aflow/errors.py"))
    return frozenset(each.name for each in tree.body if isinstance(each, ast.ClassDef))


def raised(node: Function) -> set[str]:
    """The errors of aflow that `raise` statements of the function itself name.

    What a `try` of the function catches again is not distinguished from what it lets through: those
    few are worth a word as well."""
    return {
        name
        for each in own_nodes(node)
        if isinstance(each, ast.Raise) and each.exc is not None
        for name in [
            dotted(each.exc.func if isinstance(each.exc, ast.Call) else each.exc).rpartition(".")[2]
        ]
        if name in errors_of_aflow()
    }


@cache
def ports() -> dict[str, list[tuple[bool, list[str]]]]:
    """Return the documented methods of aflow's protocols and base classes, by name: whether it is a
    protocol, and the parameters. Implementations need not repeat the docstring."""
    found: dict[str, list[tuple[bool, list[str]]]] = {}
    for path in AFLOW:
        for each in ast.walk(tree_of(path)):
            if isinstance(each, ast.ClassDef):
                for node in each.body:
                    if (
                        isinstance(node, Function)
                        and ast.get_docstring(node)
                        and bases(each) & {"Protocol", "ABC"}
                    ):
                        promise = "Protocol" in bases(each), parameters(node)
                        found.setdefault(node.name, []).append(promise)
    return found


def bases(node: ast.ClassDef) -> set[str]:
    """Return the last part of the name of each base class."""
    return {
        dotted(each.value if isinstance(each, ast.Subscript) else each).rpartition(".")[2]
        for each in node.bases
    }


@cache
def methods_of_classes() -> dict[str, tuple[set[str], set[str]]]:
    """Return the documented methods and the names of the bases, by the name of the class."""
    found: dict[str, tuple[set[str], set[str]]] = {}
    for path in AFLOW:
        for each in ast.walk(tree_of(path)):
            if isinstance(each, ast.ClassDef):
                methods, above = found.setdefault(each.name, (set(), set()))
                methods |= {
                    node.name
                    for node in each.body
                    if isinstance(node, Function) and ast.get_docstring(node)
                }
                above |= bases(each)
    return found


def overrides(each: Defined) -> bool:
    """Return whether a method implements a documented method of a base class or of a port."""
    if each.owner is None:
        return False
    own = bases(each.owner)
    if "Protocol" not in own and any(
        names == parameters(each.node) and (is_protocol or "ABC" not in own)
        for is_protocol, names in ports().get(each.node.name, ())
    ):
        return True
    known = methods_of_classes()
    seen: set[str] = set()
    waiting = list(own)
    while waiting:
        name = waiting.pop()
        if name in known and name not in seen:
            seen.add(name)
            if each.node.name in known[name][0]:
                return True
            waiting.extend(known[name][1])
    # Methods that the standard library or a dependency calls are documented there.
    return bool(own & FOREIGN)


# Classes of other projects, whose methods are documented there.
FOREIGN = {
    "Group", "Command", "Context", "ParamType", "Option", "HelpFormatter", "HTMLParser", "Handler",
    "BaseHTTPRequestHandler", "MetaPathFinder", "Loader", "DatagramProtocol", "Popen",
    "BufferedProtocol", "BufferedIOBase", "RawIOBase", "TextIOBase", "NodeVisitor", "Pickler",
    "Unpickler", "Connection", "ThreadingHTTPServer",
}  # fmt: skip


def exempt(each: Defined) -> bool:
    """Return whether a function needs no sections: it is documented elsewhere, its docstring is a
    text for users, or it takes no arguments and reads like an attribute."""
    names = decorators(each.node)
    return bool(
        names & (_OF_CLICK | _PROPERTIES | {"overload", "override"})
        or any("click" in ast.unparse(decorator) for decorator in each.node.decorator_list)
        or overrides(each)
        or is_handler(each.node)
        or is_command(each.node)
        or _SAYS_WHERE.match(ast.get_docstring(each.node) or "")
        or _TUTORIALS in each.path.parents
    )


def is_command(node: Function) -> bool:
    """Return whether a function is the body of a command: its parameters are options, which have
    help texts."""
    given = node.args.args
    return bool(given) and ast.unparse(given[0].annotation or ast.Constant("")) == "Session"


def is_handler(node: Function) -> bool:
    """Return whether a function handles HTTP requests: its docstring is the text of its operation
    in the OpenAPI document, and aiohttp defines its parameter and result."""
    given = [*node.args.posonlyargs, *node.args.args]
    kinds = [ast.unparse(each.annotation) for each in given if each.annotation is not None]
    returned = ast.unparse(node.returns or ast.Constant(""))
    return ("web.Request" in kinds and returned in ("web.Response", "web.StreamResponse")) or (
        "Asked" in kinds and returned in ("JsonResponse", "Listing", "Listing | JsonResponse")
    )


def sections(text: str) -> dict[str, list[str]]:
    """Return the sections of a docstring, with the names of their entries in order."""
    found: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in text.splitlines():
        if header := _SECTION.match(line):
            current = found.setdefault(header[1], [])
        elif line and not line.startswith(" "):
            current = None
        elif current is not None and (entry := _ENTRY.match(line)):
            current.extend(each.strip(" *") for each in entry[1].split(","))
    return found


def returns_something(node: Function) -> bool:
    """Return whether the annotation says that a value is returned."""
    return node.returns is not None and ast.unparse(node.returns).strip("'\"") not in _NOTHING


def missing(each: Defined) -> list[str]:
    """Return what the docstring of a function lacks or states wrongly."""
    node = each.node
    text = ast.get_docstring(node) or ""
    said = sections(text)
    wanted = parameters(node)
    found = []
    if not text:
        found.append("has no docstring")
    if said.get("Args", []) != wanted and set(said.get("Args", [])) != set(wanted):
        found.append(f"Args names {said.get('Args', [])} instead of {wanted}")
    if (
        returns_something(node)
        and not said.keys() & {"Returns", "Yields"}
        and not _SAYS_RETURN.match(text)
    ):
        found.append("does not say what it returns")
    silent = raised(node) - set(said.get("Raises", []))
    if silent:
        found.append(f"Raises does not name {', '.join(sorted(silent))}")
    return found


def package_of(path: Path) -> str:
    """Return the package directly under aflow/ that a module belongs to, or the module itself."""
    return path.parts[1].removesuffix(".py")


def test_public_functions_say_what_they_take_return_and_raise() -> None:
    def silent(path: Path) -> list[str]:
        if package_of(path) in NOT_HELD:
            return []
        return [
            f"{each.node.lineno}: {each.name} {fault}"
            for each in defined(path)
            if not exempt(each)
            for fault in missing(each)
        ]

    assert {} == violations(AFLOW, silent)


def test_no_list_of_arguments_is_out_of_date() -> None:
    def wrong(path: Path) -> list[str]:
        return [
            f"{node.lineno}: {node.name} {said['Args']}"
            for node in ast.walk(tree_of(path))
            if isinstance(node, Function)
            for said in [sections(ast.get_docstring(node) or "")]
            if "Args" in said and not set(said["Args"]) <= set(parameters(node))
        ]

    assert {} == violations(AFLOW, wrong)


def test_every_package_that_is_not_held_exists() -> None:
    assert NOT_HELD <= {package_of(path) for path in AFLOW}
