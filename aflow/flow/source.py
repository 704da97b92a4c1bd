"""Finds the source of steps: the graph of a flow is read from it, not from running it."""

from __future__ import annotations

import ast
import linecache
from collections.abc import Callable, Iterator
from inspect import unwrap
from types import FunctionType
from typing import Any

from aflow.errors import InvalidFlow
from aflow.flow.links import FunctionNode

_BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")


class SourceFile:
    """The functions and classes of one file (or notebook cell), by where they begin."""

    def __init__(self, text: str) -> None:
        self.functions: dict[tuple[str, int], FunctionNode] = {}
        self.classes: dict[str, int] = {}
        self._enter(ast.parse(text), "")

    def _enter(self, block: ast.AST, prefix: str) -> None:
        for node in _statements(block):
            inside = prefix
            if isinstance(node, ast.ClassDef):
                self.classes[prefix + node.name] = node.lineno
                inside = f"{prefix}{node.name}."
            elif isinstance(node, FunctionNode):
                # Code objects begin at the first decorator.
                first = node.decorator_list[0].lineno if node.decorator_list else node.lineno
                self.functions[node.name, first] = node
                inside = f"{prefix}{node.name}.<locals>."
            self._enter(node, inside)


def _statements(block: ast.AST) -> Iterator[ast.AST]:
    """The statements directly in a block; expressions are not looked at."""
    for name in _BLOCKS:
        yield from getattr(block, name, ())


class Sources:
    """The sources of one flow's classes; every file is parsed once.

    They come through linecache, so that classes made in a notebook have theirs too.
    """

    def __init__(self, flow: str) -> None:
        self._flow = flow
        self._files: dict[str, SourceFile] = {}

    def function(self, function: Callable[..., Any]) -> tuple[str, FunctionNode]:
        """File and syntax tree of a step's function, through decorators that keep `__wrapped__`.

        Raises InvalidFlow where there is no source, or it is not the one that was imported.
        """
        inner = unwrap(function)
        if not isinstance(inner, FunctionType):
            raise InvalidFlow(
                f"A step of flow {self._flow} is {inner!r}, which is no function with a source: "
                "put @step on a method that is written in the class."
            )
        code = inner.__code__
        file, line = code.co_filename, code.co_firstlineno
        source = self._parsed(file, inner.__globals__)
        if source is None:
            raise InvalidFlow(
                f"The source of step {code.co_name!r} of flow {self._flow} cannot be read, and the "
                "graph is read from it: write the flow into a file or a notebook cell.",
                file=file,
                line=line,
            )
        tree = source.functions.get((code.co_name, line))
        if tree is None:
            raise InvalidFlow(
                f"The source of step {code.co_name!r} of flow {self._flow} is not where it was "
                "when it was imported: the file has changed since. Start again.",
                file=file,
                line=line,
            )
        return file, tree

    def class_line(self, file: str, qualname: str) -> int:
        """The line on which the class begins; 0 where it is not known."""
        source = self._parsed(file, {})
        return source.classes.get(qualname, 0) if source else 0

    def _parsed(self, file: str, module: dict[str, Any]) -> SourceFile | None:
        """The file, parsed; None where it has no source. Raises InvalidFlow if it is not Python
        any more."""
        source = self._files.get(file)
        if source is None:
            linecache.checkcache(file)
            lines = linecache.getlines(file, module)
            if not lines:
                return None
            source = self._files[file] = self._parse(file, "".join(lines))
        return source

    def _parse(self, file: str, text: str) -> SourceFile:
        try:
            return SourceFile(text)
        except SyntaxError as error:
            raise InvalidFlow(
                f"The source of flow {self._flow} is no longer Python: {error.msg}. "
                "Correct it and start again.",
                file=file,
                line=error.lineno,
            ) from error
