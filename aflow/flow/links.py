"""Read the transitions of steps from the self.next() calls in their source."""

from __future__ import annotations

import ast
import linecache
import re
from collections.abc import Callable, Iterator, Mapping
from importlib.machinery import SourceFileLoader
from types import FunctionType
from typing import Any

from aflow._core.records import replace
from aflow.errors import InvalidFlow
from aflow.flow.graph import Kind, Node
from aflow.flow.names import shown

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef

_CONFIG_KEY = r"self\.\w+(\.\w+|\[[^\]]+\])+\Z"
_HOW = "foreach", "num_parallel", "condition"


class LinkReader:
    """Reads the only self.next() call of a step; errors are InvalidFlow, with file and line.

    `node` is the step without its transition; its kind is END if it is the last step.
    """

    def __init__(self, node: Node, tree: FunctionNode) -> None:
        self._node = node
        self._tree = tree
        arguments = [*tree.args.posonlyargs, *tree.args.args]
        self._self = arguments[0].arg if arguments else "self"

    def read(self) -> Node:
        """Return the step with its kind and next steps; the last step must have no self.next()."""
        calls = list(self._calls())
        if self._node.kind is Kind.END:
            if calls:
                raise self._fault(calls[0], "is the end of the flow: remove its self.next().")
            return self._node
        if not calls:
            raise self._fault(
                self._tree,
                "does not say which step follows: end it with self.next(self.<step>), or make it "
                "the end step.",
            )
        if len(calls) > 1:
            raise self._fault(
                calls[1], "calls self.next() more than once: keep one call, as its last statement."
            )
        self._check_last(calls[0])
        return self._linked(calls[0])

    def _calls(self) -> Iterator[ast.Call]:
        """Yield all calls of self.next in the function, in source order."""
        found = [
            node
            for node in self._own_nodes()
            if isinstance(node, ast.Call) and self._attribute(node.func) == "next"
        ]
        yield from sorted(found, key=lambda node: (node.lineno, node.col_offset))

    def _own_nodes(self) -> Iterator[ast.AST]:
        """Yield all nodes in which `self` is the flow.

        Skips inner functions that bind the name again.
        """
        todo: list[ast.AST] = list(ast.iter_child_nodes(self._tree))
        while todo:
            node = todo.pop()
            yield node
            if isinstance(node, FunctionNode | ast.Lambda) and self._rebinds(node):
                # Decorators and defaults are evaluated in the outer scope.
                todo += getattr(node, "decorator_list", ())
                todo += [each for each in (*node.args.defaults, *node.args.kw_defaults) if each]
            else:
                todo += ast.iter_child_nodes(node)

    def _rebinds(self, function: FunctionNode | ast.Lambda) -> bool:
        """Return whether the function binds the step's name for the flow (`self`) again."""
        arguments = function.args
        named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        named += [each for each in (arguments.vararg, arguments.kwarg) if each]
        if any(each.arg == self._self for each in named):
            return True
        body = function.body if isinstance(function.body, list) else [function.body]
        return any(
            isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id == self._self
            for statement in body
            for node in ast.walk(statement)
        )

    def _check_last(self, call: ast.Call) -> None:
        last = self._tree.body[-1]
        if not isinstance(last, ast.Expr) or last.value is not call:
            raise self._fault(
                call,
                "must call self.next() as its last statement, outside of any if, for, with or "
                "return.",
            )

    def _linked(self, call: ast.Call) -> Node:
        keywords = self._keywords(call)
        if not call.args:
            raise self._fault(
                call, "calls self.next() without a step: write self.next(self.<step>)."
            )
        if isinstance(call.args[0], ast.Dict) or "condition" in keywords:
            return self._switch(call, keywords)
        steps = tuple(self._target(argument) for argument in call.args)
        if not keywords:
            return self._plain(call, steps)
        ((keyword, value),) = keywords.items()
        if len(steps) != 1:
            raise self._fault(call, f"gives {keyword}= with {len(steps)} steps: name one step.")
        if keyword == "foreach":
            name = self._text(value, "foreach", "the name of the attribute to iterate over")
            return replace(self._node, kind=Kind.FOREACH, next=steps, foreach=name)
        self._check_gang(value)
        return replace(self._node, kind=Kind.PARALLEL, next=steps)

    def _keywords(self, call: ast.Call) -> dict[str, ast.expr]:
        keywords: dict[str, ast.expr] = {}
        for keyword in call.keywords:
            if keyword.arg not in _HOW:
                written = "**" if keyword.arg is None else f"{keyword.arg}="
                raise self._fault(
                    call, f"gives {written} to self.next(), which takes {'=, '.join(_HOW)}= alone."
                )
            keywords[keyword.arg] = keyword.value
        if len(keywords) > 1:
            raise self._fault(call, f"combines {' and '.join(keywords)}: use one of them.")
        return keywords

    def _plain(self, call: ast.Call, steps: tuple[str, ...]) -> Node:
        twice = next((step for step in steps if steps.count(step) > 1), None)
        if twice is not None:
            raise self._fault(call, f"leads to {twice!r} twice: name each step once.")
        kind = Kind.LINEAR if len(steps) == 1 else Kind.SPLIT
        return replace(self._node, kind=kind, next=steps)

    def _switch(self, call: ast.Call, keywords: dict[str, ast.expr]) -> Node:
        cases = call.args[0]
        if len(call.args) != 1 or not isinstance(cases, ast.Dict) or "condition" not in keywords:
            raise self._fault(
                call,
                'must write a switch as self.next({"a": self.x, "b": self.y}, condition="<name>").',
            )
        name = self._text(keywords["condition"], "condition", "the name of the attribute to read")
        found: dict[object, tuple[str, str]] = {}
        for key, value in zip(cases.keys, cases.values, strict=True):
            case = self._case(call, key)
            if case in found:
                raise self._fault(call, f"has the case {case!r} twice: keep one of them.")
            found[case] = (str(case), self._target(value))
        if len(found) < 2:
            raise self._fault(call, "is a switch with fewer than two cases: add one.")
        pairs = tuple(found.values())
        steps = tuple(dict.fromkeys(step for _, step in pairs))
        return replace(self._node, kind=Kind.SWITCH, next=steps, condition=name, cases=pairs)

    def _case(self, call: ast.Call, key: ast.expr | None) -> str | int | float | bool:
        value: object = None
        if key is not None:
            try:
                value = ast.literal_eval(key)
            except (ValueError, TypeError):  # TypeError: for example a set of lists
                value = None
        if value is None and key is not None and re.match(_CONFIG_KEY, ast.unparse(key)):
            return ast.unparse(key)  # evaluated when the values of the configs are known
        if not isinstance(value, str | int | float | bool):
            written = "**" if key is None else ast.unparse(key)
            raise self._fault(
                key or call, f"has the case {written}: a case is a text, a number, True or False."
            )
        return value

    def _target(self, argument: ast.expr) -> str:
        name = self._attribute(argument)
        if name is None:
            raise self._fault(
                argument,
                f"gives {shown(ast.unparse(argument))} to self.next(): name steps one by one, as "
                "in self.next(self.<step>).",
            )
        return name

    def _attribute(self, node: ast.AST) -> str | None:
        """Return `x` for the expression `self.x`; None for any other expression."""
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            return node.attr if node.value.id == self._self else None
        return None

    def _text(self, value: ast.expr, keyword: str, meaning: str) -> str:
        text = value.value if isinstance(value, ast.Constant) else None
        if not isinstance(text, str) or not text.isidentifier():
            raise self._fault(
                value,
                f"has {keyword}={shown(ast.unparse(value))}: {keyword} is {meaning}, as a text in "
                "quotes.",
            )
        return text

    def _check_gang(self, value: ast.expr) -> None:
        if isinstance(value, ast.Constant) and (type(value.value) is not int or value.value < 1):
            raise self._fault(
                value, f"has num_parallel={value.value!r}: it must be a whole number above 0."
            )

    def _fault(self, node: ast.AST, text: str) -> InvalidFlow:
        line = getattr(node, "lineno", self._tree.lineno)
        return InvalidFlow(f"Step {self._node.name!r} {text}", file=self._node.file, line=line)


# Find the source of steps: the graph is read from the source, without running the flow.


def parsed(text: str | bytes) -> ast.Module:
    """Return the syntax tree of Python source.

    CPython before 3.13 shares the counter of the parser's recursion depth between threads, so that
    parsing in several threads may raise SystemError. In that case the source is parsed again.

    Args:
        text: Python source, as text or as the bytes of a file with its encoding declaration.

    Raises:
        SyntaxError: If the source is invalid.
        ValueError: If the source contains a NUL character (before Python 3.12).
    """
    tries = 0
    while True:
        try:
            return ast.parse(text)
        except SystemError:  # not an error of the text
            tries += 1
            if tries == 20:
                raise


_BLOCKS = ("body", "orelse", "finalbody", "handlers", "cases")


class SourceFile:
    """The functions and classes of one file or notebook cell, with their first lines."""

    def __init__(self, text: str | bytes) -> None:
        self.functions: dict[tuple[str, int], FunctionNode] = {}
        self.classes: dict[str, int] = {}
        self._enter(parsed(text), "")

    def _enter(self, block: ast.AST, prefix: str) -> None:
        for node in _statements(block):
            inside = prefix
            if isinstance(node, ast.ClassDef):
                self.classes[prefix + node.name] = node.lineno
                inside = f"{prefix}{node.name}."
            elif isinstance(node, FunctionNode):
                # The first line of a code object is that of the first decorator.
                first = node.decorator_list[0].lineno if node.decorator_list else node.lineno
                self.functions[node.name, first] = node
                inside = f"{prefix}{node.name}.<locals>."
            self._enter(node, inside)


def _statements(block: ast.AST) -> Iterator[ast.AST]:
    """Yield the statements directly in a block, without those in nested blocks."""
    for name in _BLOCKS:
        yield from getattr(block, name, ())


def unwrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the original function below all decorators that set `__wrapped__`.

    Args:
        function: A function, or the result of a decorator.

    Raises:
        ValueError: If the chain of `__wrapped__` is a cycle.
    """
    if not hasattr(function, "__wrapped__"):
        return function
    from inspect import unwrap  # see aflow/_core/deferred.py

    inner: Callable[..., Any] = unwrap(function)
    return inner


class Sources:
    """The sources of the classes of one flow; each file is parsed once.

    Source that is not in a file, such as that of a notebook cell, is read through linecache.
    """

    def __init__(self, flow: str) -> None:
        self._flow = flow
        self._files: dict[str, SourceFile] = {}

    def function(self, function: Callable[..., Any]) -> FunctionNode:
        """Return the syntax tree of a step's function, below decorators that set `__wrapped__`.

        Args:
            function: The attribute of the class: a function, or the result of a decorator.

        Raises:
            InvalidFlow: If the source cannot be read, or has changed since it was imported.
        """
        inner = unwrapped(function)
        if not isinstance(inner, FunctionType):
            raise InvalidFlow(
                f"A step of flow {self._flow} is {inner!r}, which is not a function with a source: "
                "put @step on a method that is written in the class."
            )
        code = inner.__code__
        file, line = code.co_filename, code.co_firstlineno
        source = self._parsed(file, inner.__globals__)
        tree = None if source is None else source.functions.get((code.co_name, line))
        # Since Python 3.13, linecache has the text of `python -c` as the source of "<string>".
        if source is None or (tree is None and file == "<string>"):
            raise InvalidFlow(
                f"The source of step {code.co_name!r} of flow {self._flow} cannot be read, and the "
                "graph is read from it: write the flow into a file or a notebook cell.",
                file=file,
                line=line,
            )
        if tree is None:
            raise InvalidFlow(
                f"The source of step {code.co_name!r} of flow {self._flow} is not where it was "
                "when it was imported: the file has changed since. Start again.",
                file=file,
                line=line,
            )
        return tree

    def class_line(self, file: str, qualname: str) -> int:
        """Return the first line of a class; 0 if it is not known.

        Args:
            file: The path as in `co_filename`; the result is 0 if it is empty.
            qualname: The `__qualname__` of the class.
        """
        source = self._parsed(file, {})
        return source.classes.get(qualname, 0) if source else 0

    def _parsed(self, file: str, module: dict[str, Any]) -> SourceFile | None:
        """Return the parsed file; None if there is no source.

        Raises InvalidFlow if the file has been changed and is no longer valid Python.
        """
        source = self._files.get(file)
        if source is None:
            text = _text_of(file, module)
            if not text:
                return None
            source = self._files[file] = self._parse(file, text)
        return source

    def _parse(self, file: str, text: str | bytes) -> SourceFile:
        try:
            return SourceFile(text)
        except (SyntaxError, ValueError) as error:  # the latter for a NUL, before Python 3.12
            raise InvalidFlow(
                f"The source of flow {self._flow} is no longer Python: "
                f"{getattr(error, 'msg', error)}. Correct it and start again.",
                file=file,
                line=getattr(error, "lineno", None),
            ) from error


def _text_of(file: str, module: dict[str, Any]) -> str | bytes:
    try:
        with open(file, "rb") as opened:  # faster than linecache, which imports tokenize
            return opened.read()
    except (OSError, ValueError):
        linecache.checkcache(file)
        return _in_archive(file, module) or "".join(linecache.getlines(file, module))


def _in_archive(file: str, module: Mapping[str, Any]) -> str | None:
    """Return the source of a module that was loaded from an archive; None for other modules.

    linecache would pass the current name of the module to the loader: `__main__` for a program.
    """
    spec = module.get("__spec__")
    loader: Any = getattr(spec, "loader", None)
    is_file = loader is None or isinstance(loader, SourceFileLoader)
    if spec is None or is_file or spec.origin != file or not hasattr(loader, "get_source"):
        return None
    text: str | None = loader.get_source(spec.name)
    return text
