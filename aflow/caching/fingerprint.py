"""What the code of a step is: the functions, classes and values that it can reach by name.

A step's fingerprint maps names (`train.Flow.fit`, `utils.clean`) to digests: its own function, and
whatever of the flow's folder its code mentions, on and on. Code outside of the folder (installed
packages) counts as part of the environment. Digests are of compiled code, so comments, docstrings
and the lines that code stands on make no difference; a name that is only found at run time
(`getattr(utils, name)`) is not seen, unless the module is mentioned in no other way: then all of it
counts.
"""

from __future__ import annotations

import dis
import os
import sys
from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from aflow.storage.blobs import digest_of

if TYPE_CHECKING:
    from aflow.flow.definition import FlowDefinition, StepDefinition

Fingerprint = dict[str, str]
_DIGITS = 16  # hex digits of a digest: 64 bits tell versions of one function apart
_LOOKUPS = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "IMPORT_NAME"})
_PLAIN = (bool, int, float, complex, str, bytes, type(None))


def fingerprints(definition: FlowDefinition) -> dict[str, Fingerprint]:
    """The fingerprint of every step."""
    reader = _Reader(definition)
    return {name: reader.read(step) for name, step in definition.steps.items()}


class _Reader:
    """Reads steps; what several of them reach is digested once."""

    def __init__(self, definition: FlowDefinition) -> None:
        self._cls = definition.cls
        self._steps = definition.steps
        self._folder = os.path.dirname(os.path.abspath(definition.file)) + os.sep
        self._known: dict[int, tuple[str, list[tuple[str, Any]]]] = {}
        self._kept: list[Any] = []  # so that no id is given to another object meanwhile

    def read(self, step: StepDefinition) -> Fingerprint:
        found: Fingerprint = {}
        todo: list[tuple[str, Any]] = [(f"{self._cls.__name__}.{step.name}", step.function)]
        seen: set[int] = set()
        while todo:
            name, value = todo.pop()
            if id(value) in seen:
                continue
            seen.add(id(value))
            found[name], leads = self._digest(value)
            todo += leads
        return found

    def _digest(self, value: Any) -> tuple[str, list[tuple[str, Any]]]:
        known = self._known.get(id(value))
        if known is None:
            known = _short(b"".join(_parts(value))), list(self._leads(value))
            self._known[id(value)] = known
            self._kept.append(value)
        return known

    # ------------------------------------------------------------ what it leads to

    def _leads(self, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, FunctionType):
            yield from self._of_function(value)
        elif isinstance(value, type):
            for name, each in vars(value).items():
                function = _plain_function(each)
                if function is not None:
                    yield f"{_name(value)}.{name}", function
            for base in value.__bases__:
                if self._is_ours(base):
                    yield _name(base), base
        elif isinstance(value, ModuleType):
            for name, each in vars(value).items():
                if not name.startswith("__") and self._counts(each):
                    yield f"{value.__name__}.{name}", each

    def _of_function(self, function: FunctionType) -> Iterator[tuple[str, Any]]:
        mentioned, attributes = _mentions(function.__code__)
        for name in sorted(mentioned):
            if name in function.__globals__:
                yield from self._of_name(name, function.__globals__[name], attributes, function)
            elif name in sys.modules:
                yield from self._of_name(name, sys.modules[name], attributes, function)
        for name in sorted(attributes):
            method = _plain_function(getattr(self._cls, name, None))
            if method is not None and name not in self._steps and self._is_ours(method):
                yield f"{self._cls.__name__}.{name}", method
        for name, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=True
        ):
            try:
                value = cell.cell_contents
            except ValueError:  # not set yet: a function that refers to itself further down
                continue
            if self._counts(value):
                yield f"{_name(function)}.{name}", value

    def _of_name(
        self, name: str, value: Any, attributes: set[str], function: FunctionType
    ) -> Iterator[tuple[str, Any]]:
        if isinstance(value, ModuleType):
            if not self._is_ours(value):
                return
            used = [each for each in sorted(attributes) if each in vars(value)]
            for each in used:
                if self._counts(vars(value)[each]):
                    yield f"{value.__name__}.{each}", vars(value)[each]
            if not used:
                yield value.__name__, value
        elif self._counts(value) and value is not self._cls:
            yield _name_of(value, name, function), value

    def _counts(self, value: Any) -> bool:
        """Whether a value that code mentions is part of its fingerprint."""
        if isinstance(value, FunctionType | type | ModuleType):
            return self._is_ours(value)
        return _is_plain(value) or self._is_ours(type(value))

    def _is_ours(self, value: Any) -> bool:
        """Whether it was written in the flow's folder."""
        if isinstance(value, FunctionType):
            file: str | None = value.__code__.co_filename
        elif isinstance(value, ModuleType):
            file = getattr(value, "__file__", None)
        else:
            file = getattr(sys.modules.get(value.__module__), "__file__", None)
        if file is None:
            return False
        path = os.path.abspath(file)
        return path.startswith(self._folder) and "site-packages" not in path


# ------------------------------------------------------------------ names and digests


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}".removeprefix("__main__.")


def _name_of(value: Any, name: str, function: FunctionType) -> str:
    if isinstance(value, FunctionType | type):
        return _name(value)
    return f"{function.__module__}.{name}".removeprefix("__main__.")


def _plain_function(value: Any) -> FunctionType | None:
    """The function behind a member of a class; None where there is none."""
    if isinstance(value, staticmethod | classmethod):
        value = value.__func__
    elif isinstance(value, property):
        value = value.fget
    return value if isinstance(value, FunctionType) else None


def _is_plain(value: Any, depth: int = 4) -> bool:
    if isinstance(value, _PLAIN):
        return True
    if depth and isinstance(value, list | tuple | set | frozenset):
        return all(_is_plain(each, depth - 1) for each in value)
    if depth and isinstance(value, Mapping):
        return all(_is_plain(k, 0) and _is_plain(v, depth - 1) for k, v in value.items())
    return False


def _short(data: bytes) -> str:
    return digest_of([data])[:_DIGITS]


def _parts(value: Any) -> Iterator[bytes]:
    """The bytes that tell the value itself, without what it leads to."""
    if isinstance(value, FunctionType):
        yield from _of_code(value.__code__)
        yield _text(value.__defaults__).encode()
        yield _text(value.__kwdefaults__).encode()
    elif isinstance(value, type):
        for name, each in sorted(vars(value).items()):
            if not name.startswith("__") and _is_plain(each):
                yield f"{name}={_text(each)};".encode()
    elif isinstance(value, ModuleType):
        yield value.__name__.encode()
    elif _is_plain(value):
        yield _text(value).encode()
    else:
        state = getattr(value, "__dict__", {})
        plain = {name: each for name, each in state.items() if _is_plain(each)}
        yield f"{_name(type(value))}{_text(plain)}".encode()


def _of_code(code: CodeType) -> Iterator[bytes]:
    yield code.co_code
    yield repr((code.co_names, code.co_varnames, code.co_freevars, code.co_flags)).encode()
    # A docstring is the first constant, whether anything refers to it or not.
    document = code.co_consts[0] if code.co_consts else None
    for place, constant in enumerate(code.co_consts):
        if isinstance(constant, CodeType):
            yield from _of_code(constant)
        elif place or not isinstance(document, str):
            yield _text(constant).encode()


def _mentions(code: CodeType) -> tuple[set[str], set[str]]:
    """The names that code looks up in its module (or imports), and those that it looks up in
    other things."""
    mentioned: set[str] = set()
    attributes: set[str] = set()
    for each in _codes(code):
        for instruction in dis.get_instructions(each):
            if instruction.opname in _LOOKUPS:
                mentioned.add(instruction.argval)
            elif instruction.argval in each.co_names:
                attributes.add(instruction.argval)
    return mentioned, attributes


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _text(value: Any) -> str:
    """A text that is the same in every process: sets have no order of their own."""
    if isinstance(value, set | frozenset):
        return f"{{{','.join(sorted(map(_text, value)))}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_text, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{_text(k)}:{_text(v)}' for k, v in value.items())}}}"
    return repr(value) if isinstance(value, _PLAIN) else type(value).__qualname__
