"""Fingerprint the code of a step: the functions, classes and values that it can reach.

A step's fingerprint maps names (`train.Flow.fit`, `utils.clean`) to digests: of its own function,
and of all user code and values that are reachable from it. Installed packages are included as their
versions. The rules, from fine to coarse:

- A function is hashed by its compiled code (without comments, docstrings and line numbers), its
  defaults and its closure, and reaches what its code refers to. `utils.clean` reaches only `clean`.
- A class is hashed with all its attributes, and reaches its bases.
- A value is hashed by its content (`storage/identity.py`), and reaches the functions and classes in
  it.
- Statements with side effects at the top level of the modules that the flow imports (seeds,
  settings of libraries, monkey patches) are included for every step.
- An artifact from another step may be an instance of any user class. Included are the classes that
  define an operator, or an attribute with a name that the step refers to; for modules that are only
  imported inside of functions, their source.
- For a value that cannot be hashed by its content (a connection, a lock), a module that is used as
  an object, and a module that is imported inside a function, the source of the module and of all
  its imports is hashed. Code that finds other code by a string (`exec`, `import_module`,
  subprocesses) reaches all code in the flow's folder.
- If there is no source either, the digest is NOT_TELLABLE, and the step cannot be cached.

A rule that is too coarse runs a step unnecessarily; one that is too fine returns an outdated
result. In doubt, the rules are coarse.
"""

from __future__ import annotations

import dis
import enum
import inspect
import os
import re
import sys
import types
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from aflow._core.modules import file_of
from aflow._core.records import NamedTuple
from aflow.flow.parameters import JSONType, Parameter
from aflow.flow.spec import FlowSpec
from aflow.runs.cache import sources
from aflow.storage.blobs import digest_of
from aflow.storage.identity import CACHING, Contents, NotTellable

if TYPE_CHECKING:
    from aflow.flow.definition import FlowDefinition, StepDefinition

Fingerprint = dict[str, str]
NOT_TELLABLE = ""  # the digest of something that cannot be hashed

_DIGITS = 16  # hex digits of a digest: 64 bits are enough to distinguish versions of a function
_GLOBALS = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})
_ATTRIBUTES = frozenset({"LOAD_ATTR", "LOAD_METHOD"})

# Names with which code looks up attributes, functions or modules by a string.
_REFLECTION = frozenset({
    "getattr", "setattr", "delattr", "hasattr", "vars", "globals", "locals", "dir", "eval", "exec",
    "compile",
})  # fmt: skip
_REFLECTIVE_ATTRIBUTES = frozenset({"__dict__", "__getattribute__"})
_WHOLE_MODULE = frozenset({"globals", "locals", "vars", "eval", "exec", "compile"})
_ANY_CODE = frozenset({"__import__", "eval", "exec", "compile"})
_ANY_CODE_MODULES = frozenset({"importlib", "runpy", "pkgutil", "imp", "subprocess", "ctypes"})
_OF_OPERATOR = ("", "attrgetter", "methodcaller")
_OF_SYS = ("", "modules", "_getframe")
# By library: how the names of its functions begin that run programs.
_PROGRAMS = {
    **dict.fromkeys(("os", "posix"), ("system", "popen", "exec", "spawn", "posix_spawn")),
    "asyncio": ("create_subprocess", "subprocess"),
}
_FIELD = re.compile(r"\{[^{}]*\}")  # a field of a format string: "{0.name}", "{x.name!r}"
_ATTRIBUTE = re.compile(r"\.([A-Za-z_]\w*)")

# Attributes that Python sets on every module or class; they are not user code.
_OF_MODULES = frozenset({
    "__name__", "__file__", "__spec__", "__loader__", "__package__", "__builtins__", "__path__",
    "__cached__", "__doc__", "__annotations__", "__annotate__",
})  # fmt: skip
_OF_CLASSES = frozenset({
    "__module__", "__doc__", "__dict__", "__weakref__", "__qualname__", "__firstlineno__",
    "__static_attributes__", "_abc_impl", "__annotate__", "__annotate_func__",
    "__annotations_cache__", "_member_map_", "_value2member_map_", "_unhashable_values_",
    "_hashable_values_", "_unhashable_values_map_",
})  # fmt: skip
# Attributes that are not used on an instance that was unpickled.
_OF_MAKING = frozenset({
    "__init__", "__new__", "__post_init__", "__init_subclass__", "__class_getitem__",
    "__set_name__", "__orig_bases__", "__parameters__", "__annotations__", "__slots__",
    "__match_args__", "__dataclass_fields__", "__dataclass_params__", "__abstractmethods__",
})  # fmt: skip


class Mentions(NamedTuple):
    """What compiled code refers to: global names, each with the chain of attributes that is looked
    up on it; the names of all attributes of any object; and imports."""

    chains: frozenset[tuple[str, ...]]
    attributes: frozenset[str]
    imports: frozenset[sources.Import]


class Reached(NamedTuple):
    """An object that a step can reach: its name in the fingerprint, the object, and the module in
    which it was found, whose source is hashed if the object itself cannot be."""

    name: str
    value: Any
    module: str


class Known(NamedTuple):
    """The analysis of a reached object: its digest, the objects that it reaches, and the names of
    the attributes that its code looks up."""

    digest: str
    leads: list[Reached]
    attributes: frozenset[str] = frozenset()


class _Module(NamedTuple):
    """A loaded module with all its attributes."""

    name: str


class _ModuleSource(NamedTuple):
    """The source of a module, loaded or not. `raw`: including comments and docstrings."""

    name: str
    raw: bool = False


class _Body(NamedTuple):
    """The statements with side effects that a module executes when it is imported."""

    name: str


class _Library(NamedTuple):
    """An installed package."""

    name: str


class _Folder(NamedTuple):
    """All code in the folder of the flow's file, and below."""


class _Unknown(NamedTuple):
    """A module that is not found in this process. It is in the step's separate environment, if it
    has one; else it may come from a folder that the step adds to sys.path."""

    name: str


class _Anything(NamedTuple):
    """All methods of the flow and all user classes, because attribute names are computed at run
    time."""


def fingerprints(
    definition: FlowDefinition, packaged: Collection[str] = ()
) -> dict[str, Fingerprint]:
    """Return the fingerprint of every step.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        packaged: The names of steps whose environment has a lock.
    """
    reader = _Reader(definition)
    found: dict[str, Fingerprint] = {}
    for _ in range(2):  # again, to know the modules that any of the steps imports inside of code
        for name, step in definition.steps.items():
            try:
                found[name] = reader.read(step, has_packages=name in packaged)
            except _ASKED_IN_VAIN:
                found[name] = {name: NOT_TELLABLE}
        if not reader.imported_inside:
            break
    return found


def untellable(fingerprint: Fingerprint) -> list[str]:
    """Return the names of what cannot be hashed; if there are any, the step cannot be cached.

    Args:
        fingerprint: The digests of a step's code, by name.
    """
    return sorted(name for name, digest in fingerprint.items() if digest == NOT_TELLABLE)


# What user code may raise when the attributes of an object are read.
_ASKED_IN_VAIN = (Exception, SystemExit)


class _Reader:
    """Computes the fingerprints of steps; objects that several steps reach are hashed once."""

    def __init__(self, definition: FlowDefinition) -> None:
        self._cls = definition.cls
        self._definition = definition
        self._file = os.path.abspath(definition.file)
        self._folder = os.path.dirname(self._file)
        self._reads_nothing = "" if _have_objects(definition) else definition.graph.start
        self._known: dict[object, Known] = {}
        self._kept: list[Any] = []  # keeps objects alive: `_known` has their ids as keys
        self._sources: dict[str, sources.ModuleText | None] = {}
        self.imported_inside: set[str] = set()  # modules whose source some step has reached
        self._noted: list[Reached] = []  # what the value that is being hashed reaches
        self._where = ""  # the module in which that value was found

    def read(self, step: StepDefinition, *, has_packages: bool = False) -> Fingerprint:
        """Return the fingerprint of a step. `has_packages` excludes installed packages, because the
        step runs in a separate environment."""
        found: Fingerprint = {}
        digests: dict[str, list[str]] = {}
        seen: set[object] = set()
        attributes: set[str] = set()
        modules: dict[str, None] = {}
        todo = self._beginnings(step)
        while todo:
            each = todo.pop()
            if each.module not in modules:
                todo += self._bodies(each.module, modules)
            kind = type(each.value)  # isinstance could call user code, in a __class__ property
            if has_packages and kind in (_Unknown, _Library):
                continue  # the lock of the step's environment covers it
            if kind is _Unknown:
                each = each._replace(value=_Folder())
            key = _key(each.value)
            if key in seen:
                continue
            seen.add(key)
            if kind is _ModuleSource:
                self.imported_inside.add(each.value.name)
            known = self._look(each)
            if known.digest != _NOTHING:
                digests.setdefault(each.name, []).append(known.digest)
            todo += known.leads
            attributes |= known.attributes
            if not todo and step.name != self._reads_nothing:
                anything = _key(_Anything()) in seen
                todo += self._of_artifacts(modules, attributes, anything=anything)
        for name, several in digests.items():  # objects may share a name (lambdas)
            if len(several) == 1:
                found[name] = several[0]
            elif NOT_TELLABLE in several:
                found[name] = NOT_TELLABLE
            else:
                found[name] = _short("".join(sorted(several)).encode())
        return found

    def _beginnings(self, step: StepDefinition) -> list[Reached]:
        module = self._cls.__module__
        found = [Reached(f"{self._cls.__name__}.{step.name}", step.function, module)]
        for cls in self._own_classes():  # __init__, __getattr__ and so on are called implicitly
            for name, value in vars(cls).items():
                if name.startswith("__") and isinstance(value, FunctionType):
                    found.append(Reached(f"{cls.__name__}.{name}", value, _module_of(cls)))
        found += [
            Reached(f"@{each.decorator_name}", each, _module_of(type(each)))
            for each in step.decorators
            if self._is_ours(type(each))
        ]
        return found

    def _bodies(self, module: str, modules: dict[str, None]) -> Iterator[Reached]:
        """Yield the body of a module and of all user modules that it imports, except those in
        `modules`, to which the new ones are added."""
        todo = [module]
        while todo:
            name = todo.pop()
            loaded = sys.modules.get(name)
            if name in modules or loaded is None:
                continue
            if name != self._cls.__module__ and not sources.is_theirs(loaded):
                continue
            modules[name] = None
            called = f"{_called(name)} (when it is imported)".strip()
            yield Reached(called, _Body(name), name)
            source = self._source(name)
            if source is not None:
                todo += source.imported_at_once

    def _own_classes(self) -> list[type]:
        """Return the user's classes among the flow's class and its bases."""
        return [each for each in self._cls.__mro__ if self._is_ours(each)]

    # ------------------------------------------------------------ what is reached

    def _look(self, each: Reached) -> Known:
        key = _key(each.value)
        known = self._known.get(key)
        if known is None:
            try:
                known = self._looked_at(each)
            except _ASKED_IN_VAIN:
                known = Known(NOT_TELLABLE, [])
            self._known[key] = known
            self._kept.append(each.value)
        return known

    def _looked_at(self, each: Reached) -> Known:
        value = each.value
        match value:
            case _Module():
                return self._of_module(value.name)
            case _ModuleSource():
                return self._of_source(value)
            case _Body():
                return self._of_body(value.name)
            case _Library():
                version = sources.library_version(value.name)
                digest = _NOTHING if version is None else _short(version.encode())
                return Known(digest, [])
            case _Folder():
                whole = sources.folder_digest(self._folder)
                return Known(whole[:_DIGITS] if whole else NOT_TELLABLE, [])
            case _Anything():
                return Known(_NOTHING, list(self._methods()))
            case FunctionType():
                return self._of_function(value)
            case type():
                return self._of_class(value)
        return Known(*self._content(value, each.module))

    def _of_function(self, function: FunctionType) -> Known:
        if not self._is_ours(function):
            leads = [*self._library(_module_of(function))]
            wrapped = getattr(function, "__wrapped__", None)
            for cell in (wrapped, function.__closure__, function.__dict__):
                leads += self._search(cell, _module_of(function))
            return Known(_NOTHING, leads)
        module = _module_of(function) or self._cls.__module__
        mentions = mentions_of(function.__code__)
        leads = [*self._of_mentions(mentions, function.__globals__, module)]
        own = {
            name: value
            for name, value in vars(function).items()
            if not name.startswith(("_aflow", "__wrapped__"))
        }
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        wrapped = getattr(function, "__wrapped__", None)
        try:
            notes = function.__annotations__
        except Exception:  # noqa: BLE001 -- lazy annotations may refer to undefined names
            notes = {}
        beside = (function.__defaults__, function.__kwdefaults__, own, cells, wrapped, notes)
        digest, more = self._content(beside, module)
        if digest == NOT_TELLABLE:
            return Known(digest, leads + more, mentions.attributes)
        parts = [*_parts_of_code(function.__code__), digest.encode()]
        return Known(_short(b"".join(parts)), leads + more, mentions.attributes)

    def _of_class(self, cls: type) -> Known:
        if not self._is_ours(cls):
            return Known(_NOTHING, [*self._library(_module_of(cls))])
        leads = [Reached(_name(base), base, _module_of(base)) for base in cls.__bases__]
        leads.append(Reached(_name(type(cls)), type(cls), _module_of(type(cls))))
        members: dict[str, Any] = {}
        if issubclass(cls, enum.Enum):
            members = {name: each._value_ for name, each in cls.__members__.items()}
        values: list[tuple[str, Any]] = []
        for name, value in sorted(vars(cls).items()):
            if name in _OF_CLASSES or (name in members and isinstance(value, cls)):
                continue
            is_slot = isinstance(value, types.MemberDescriptorType | types.GetSetDescriptorType)
            values.append((name, None if is_slot else value))
        digest, more = self._content((values, [*members.items()]), _module_of(cls))
        return Known(digest, leads + more)

    def _of_module(self, name: str) -> Known:
        """Return the analysis of a module that is used as an object: its source and attributes."""
        leads = [_text_of(name)]
        for each, value in vars(sys.modules[name]).items():
            if each not in _OF_MODULES:
                leads += self._lead(f"{_called(name)}.{each}", value, name)
        return Known(_NOTHING, leads)

    def _of_source(self, which: _ModuleSource) -> Known:
        source = self._source(which.name)
        if source is None:
            return Known(NOT_TELLABLE, [])
        digest = (source.raw_digest if which.raw else source.digest)[:_DIGITS]
        leads = list(self._of_imports(source.imports(anywhere=True)))
        attributes: frozenset[str] = frozenset()
        module = sys.modules.get(which.name)
        if source.code is not None:
            mentions = mentions_of(source.code)
            attributes = mentions.attributes
            namespace = {} if module is None else vars(module)
            leads += self._of_mentions(mentions, namespace, which.name)
        return Known(digest, leads, attributes)

    def _of_body(self, name: str) -> Known:
        source, module = self._source(name), sys.modules.get(name)
        body = None if source is None or module is None else source.body(vars(module))
        if body is None or module is None:
            return Known(_NOTHING, [])
        mentions = mentions_of(body.code)
        leads = [*self._of_mentions(mentions, vars(module), name)]
        return Known(body.digest[:_DIGITS], leads)

    # ------------------------------------------------------------ what code reaches

    def _of_mentions(
        self, mentions: Mentions, namespace: dict[str, Any], module: str
    ) -> Iterator[Reached]:
        for chain in sorted(mentions.chains):
            yield from self._of_chain(chain, namespace, module)
        for what in sorted(mentions.imports):
            package = namespace.get("__package__") or ""
            if not package and what[1]:
                package = module.rpartition(".")[0]
            names = [*sources.names_of(what, package)]
            yield from self._of_imports(names)
            for name in names:  # `import os` inside a function, and an attribute `system`
                library, _, used = name.partition(".")
                for each in sorted({used, *mentions.attributes} - {""}):
                    yield from self._by_text(library, each, module)
        if "__doc__" in mentions.attributes and self._source(module) is not None:
            yield _text_of(module, raw=True)
        if mentions.attributes & _REFLECTIVE_ATTRIBUTES:
            yield Reached("", _Anything(), module)
        for name in sorted(mentions.attributes):
            yield from self._of_flow(name)

    def _of_chain(
        self, chain: tuple[str, ...], namespace: dict[str, Any], module: str
    ) -> Iterator[Reached]:
        name, *rest = chain
        if name not in namespace:
            yield from self._by_text("builtins", name, module)
            return
        if name in _OF_MODULES:
            return
        value = namespace[name]
        called = f"{_called(module)}.{name}".removeprefix(".")
        while isinstance(value, ModuleType):
            if not self._is_ours(value):
                yield from self._library(value.__name__)
                yield from self._by_text(value.__name__, rest[0] if rest else "", module)
                return
            module = value.__name__
            if not rest or rest[0] not in vars(value):
                yield Reached(_called(module), _Module(module), module)
                return
            name = rest.pop(0)
            if name in _OF_MODULES:
                return
            value, called = vars(value)[name], f"{_called(module)}.{name}"
        if rest and isinstance(value, type) and issubclass(value, FlowSpec):
            value, called = inspect.getattr_static(value, rest[0], None), f"{called}.{rest[0]}"
        yield from self._lead(called, value, module)

    def _by_text(self, library: str, name: str, module: str) -> Iterator[Reached]:
        """Yield what code in `module` may find by strings with `name` of a library; `name` is "" if
        the code uses the library's module as an object."""
        top = library.partition(".")[0]
        if top == "builtins":
            if name in _REFLECTION:
                yield Reached("", _Anything(), module)
            if name in _WHOLE_MODULE and sys.modules.get(module) is not None:
                yield Reached(_called(module), _Module(module), module)
            if name in _ANY_CODE:
                yield _code_of_folder(module)
        elif top in _PROGRAMS:
            if not name or name.startswith(_PROGRAMS[top]):
                yield _code_of_folder(module)
        elif top in _ANY_CODE_MODULES:
            yield _code_of_folder(module)
        elif top == "sys" and name in _OF_SYS:
            for each in self._own_modules():
                yield Reached(_called(each), _Module(each), each)
        elif top == "operator" and name in _OF_OPERATOR:
            yield Reached("", _Anything(), module)
        elif top == "inspect":
            yield Reached("", _Anything(), module)
            yield _text_of(module, raw=True)

    def _of_imports(self, names: Iterable[str]) -> Iterator[Reached]:
        """Yield what imports inside functions reach: sources, since they may not be loaded yet."""
        for name in names:
            top = name.partition(".")[0]
            if top in sys.stdlib_module_names:
                if top in _ANY_CODE_MODULES:
                    yield _code_of_folder(name)
                continue
            file = sources.file_of(name, self._folder)
            if file is None:
                if "." not in name:
                    yield Reached("the code in the flow's folder", _Unknown(name), name)
            elif file and sources.is_of_the_user(file):
                yield _text_of(name)
            elif file:
                yield from self._library(name)

    def _of_flow(self, name: str) -> Iterator[Reached]:
        """Yield what `self.name` refers to if it is not an artifact, and the methods that it
        overrides, which `super().name` calls. A step itself has a separate fingerprint."""
        own = [cls for cls in self._own_classes() if name in vars(cls)]
        for place, cls in enumerate(own):
            value = vars(cls)[name]
            if isinstance(value, FunctionType):
                if place or name not in self._definition.steps:
                    yield Reached(f"{cls.__name__}.{name}", value, _module_of(cls))
            elif not place and not isinstance(value, Parameter):
                yield from self._lead(f"{cls.__name__}.{name}", value, _module_of(cls))

    def _methods(self) -> Iterator[Reached]:
        for name in sorted({name for cls in self._own_classes() for name in vars(cls)}):
            if not name.startswith(("__", "_aflow")):
                yield from self._of_flow(name)

    def _of_artifacts(
        self, modules: Collection[str], attributes: set[str], *, anything: bool
    ) -> Iterator[Reached]:
        """Yield the classes of which artifacts from other steps may be instances; for modules that
        may not be loaded here, the source."""
        for name in sorted(self.imported_inside.difference(modules)):
            source = self._source(name)
            for members in () if source is None else source.members_of_classes():
                used = members - _OF_CLASSES - _OF_MAKING
                if anything or used & attributes or any(map(_is_operator, used)):
                    yield _text_of(name)
                    break
        for name in modules:
            for cls in _classes_of(sys.modules.get(name)):
                if issubclass(cls, FlowSpec):
                    continue
                members = {
                    each for base in cls.__mro__ if self._is_ours(base) for each in _used(base)
                }
                if anything or members & attributes or any(map(_is_operator, members)):
                    yield Reached(_name(cls), cls, name)

    def _lead(self, called: str, value: Any, module: str) -> Iterator[Reached]:
        """Yield an object that code refers to, unless it is excluded from the fingerprint."""
        if isinstance(value, type) and issubclass(value, FlowSpec):
            return  # each step has a separate fingerprint
        if isinstance(value, ModuleType):
            if self._is_ours(value):
                yield Reached(_called(value.__name__), _Module(value.__name__), value.__name__)
            else:
                yield from self._library(value.__name__)
        elif isinstance(value, FunctionType | type):
            if not self._is_ours(value):
                yield from self._by_text(_module_of(value), value.__name__, module)
            yield Reached(_name(value), value, _module_of(value) or module)
        elif value is sys.modules:
            yield from self._by_text("sys", "modules", module)
        else:
            yield Reached(called, value, module)

    def _library(self, name: str | None) -> Iterator[Reached]:
        top = (name or "").partition(".")[0]
        if top and sources.library_version(top) is not None:
            yield Reached(f"{top} (its version)", _Library(top), top)

    def _search(self, value: Any, module: str, depth: int = 5) -> Iterator[Reached]:
        """Yield user objects inside an object of a library. The library's own objects are covered
        by its version."""
        if depth == 0 or value is None:
            return
        if isinstance(value, FunctionType | type):
            if self._is_ours(value):
                yield Reached(_name(value), value, _module_of(value))
            elif isinstance(value, FunctionType) and depth > 1:
                for each in (value.__closure__, value.__defaults__):
                    yield from self._search(each, module, depth - 1)
            return
        inner: Iterable[Any] = ()
        if isinstance(value, types.CellType):
            with suppress(ValueError):  # an empty cell
                inner = [value.cell_contents]
        elif isinstance(value, dict | types.MappingProxyType) and len(value) < 1000:
            inner = [*value.values()]
        elif isinstance(value, list | tuple | set | frozenset) and len(value) < 1000:
            inner = [*value]
        elif isinstance(value, CACHING):
            inner = [value.__wrapped__]
        elif self._is_ours(type(value)):
            yield Reached(_name(type(value)), value, _module_of(type(value)))
        for each in inner:
            yield from self._search(each, module, depth - 1)

    # ------------------------------------------------------------ values

    def _content(self, value: Any, module: str) -> tuple[str, list[Reached]]:
        """Return the digest of a value's content, and what the value reaches."""
        outer = self._noted, self._where
        self._noted, self._where = [], module
        # A new object for each value: a shared memo would hide what a value reaches again.
        contents = Contents(self._named, self._opaque)
        try:
            digest = contents.digest(value)[:_DIGITS]
        except _ASKED_IN_VAIN:  # includes NotTellable
            digest = NOT_TELLABLE
        noted = self._noted
        self._noted, self._where = outer
        return digest, noted

    def _named(self, value: Any) -> bytes | None:
        if isinstance(value, ModuleType):
            self._noted += self._lead(value.__name__, value, value.__name__)
            return _called(value.__name__).encode()
        if isinstance(value, FunctionType | type):
            self._noted += self._lead("", value, self._where)
            return _name(value).encode()
        if isinstance(value, CodeType):
            return b"".join(_parts_of_code(value))
        if isinstance(value, enum.Enum):
            self._noted += self._lead("", type(value), self._where)
            return f"{_name(type(value))}.{value._name_}".encode()
        if isinstance(value, types.BuiltinFunctionType) and isinstance(value.__self__, ModuleType):
            self._noted += self._lead("", value.__self__, self._where)
            self._noted += self._by_text(_module_of(value), value.__name__, self._where)
            return f"{_module_of(value)}.{value.__qualname__}".encode()
        if not isinstance(value, types.CellType | types.MethodType):
            self._noted += self._lead("", type(value), self._where)
        return None

    def _opaque(self, value: Any) -> bytes:
        """Reach the source of the module for a value without hashable content, because code of that
        module created it."""
        name = self._where
        if sys.modules.get(name) is None or self._source(name) is None:
            raise NotTellable(f"holds a {type(value).__qualname__}")
        self._noted.append(_text_of(name))
        return f"opaque {_name(type(value))}".encode()

    # ------------------------------------------------------------ modules

    def _is_ours(self, value: Any) -> bool:
        """Return whether a module, function or class was written by the user."""
        if isinstance(value, ModuleType):
            return sources.is_theirs(value)
        if isinstance(value, FunctionType):
            file = value.__code__.co_filename
            if not file.startswith("<"):
                return sources.is_of_the_user(file)
        name = _module_of(value)
        if name in ("", self._cls.__module__):
            return True
        module = sys.modules.get(name)
        return name.partition(".")[0] != "aflow" if module is None else sources.is_theirs(module)

    def _source(self, name: str) -> sources.ModuleText | None:
        """Return the source of a module; None if it has no readable one."""
        if name not in self._sources:
            module = sys.modules.get(name)
            own = name == self._cls.__module__
            file = self._file if own else file_of(module)
            if module is None:
                file = sources.file_of(name, self._folder)
            try:
                self._sources[name] = sources.ModuleText(name, file) if file else None
            except OSError:
                self._sources[name] = None
        return self._sources[name]

    def _own_modules(self) -> list[str]:
        """Return the names of the user's modules that the flow has imported."""
        found: dict[str, None] = {}
        for each in self._own_classes():
            _ = [*self._bodies(each.__module__, found)]
        return [*found]


def _have_objects(definition: FlowDefinition) -> bool:
    """Return whether values of parameters or configs may be instances of the user's classes."""
    plain = (str, int, float, bool, JSONType)
    if any(each._parser for each in definition.configs.values()):
        return True
    parameters = definition.parameters.values()
    return any(each.type not in plain or getattr(each, "parser", None) for each in parameters)


_NOTHING = "-"  # the digest of an object that only contributes what it reaches


# ------------------------------------------------------------------ names and digests


def _key(value: Any) -> object:
    # Named tuples of different classes are equal if their fields are, so the type is included.
    return (type(value), value) if type(value) in _KINDS else id(value)


_KINDS = (_Module, _ModuleSource, _Body, _Library, _Folder, _Unknown, _Anything)


def _code_of_folder(module: str) -> Reached:
    return Reached("the code in the flow's folder", _Folder(), module)


def _text_of(module: str, *, raw: bool = False) -> Reached:
    return Reached(f"{_called(module)} (its source)", _ModuleSource(module, raw), module)


def _called(module: str | None) -> str:
    return "" if module in (None, "__main__") else str(module)


def _name(value: Any) -> str:
    return f"{_module_of(value)}.{value.__qualname__}".removeprefix("__main__.").lstrip(".")


def _module_of(value: Any) -> str:
    """Return the name of the module of a function or class; "" for some written in C."""
    name = value.__module__
    return name if isinstance(name, str) else ""


def _classes_of(module: ModuleType | None) -> Iterator[type]:
    """Yield the classes that are defined in a module, including nested ones."""
    if module is None:
        return
    todo = [*vars(module).values()]
    seen: set[type] = set()
    while todo:
        each = todo.pop()
        # isinstance could call user code, in a __class__ property of the value.
        is_class = issubclass(type(each), type)
        if is_class and each not in seen and each.__module__ == module.__name__:
            seen.add(each)
            yield each
            todo += vars(each).values()


def _used(cls: type) -> Iterator[str]:
    for name, value in vars(cls).items():
        if name in _OF_CLASSES or name in _OF_MAKING:
            continue
        # Methods that @dataclass has generated are determined by the fields.
        if isinstance(value, FunctionType) and value.__code__.co_filename == "<string>":
            continue
        if name == "__hash__" and value is None:
            continue
        yield name


def _is_operator(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _short(data: bytes) -> str:
    return str(digest_of([data]))[:_DIGITS]


# ------------------------------------------------------------------ compiled code


def mentions_of(code: CodeType) -> Mentions:
    """Return what code refers to, including nested functions and classes.

    Args:
        code: The code of a function, method or class body.
    """
    chains: set[tuple[str, ...]] = set()
    attributes: set[str] = set()
    imports: set[sources.Import] = set()
    for each in _codes(code):
        chain: list[str] = []
        constants: list[Any] = [0, None]
        for instruction in dis.get_instructions(each):
            name = instruction.argval
            if instruction.opname in _ATTRIBUTES and chain:
                chain.append(name)
                attributes.add(name)
                continue
            if chain and instruction.opname != "PUSH_NULL":
                chains.add(tuple(chain))
                chain = []
            if instruction.opname in _GLOBALS:
                chain = [name]
            elif instruction.opname == "IMPORT_NAME":
                level, names = constants[-2:]
                imports.add((name, level or 0, tuple(names or ())))
            elif instruction.opname.startswith(("LOAD_CONST", "LOAD_SMALL_INT")):
                constants.append(name)
                if isinstance(name, str):
                    for field in _FIELD.findall(name):
                        attributes.update(_ATTRIBUTE.findall(field))
            elif isinstance(name, str) and name in each.co_names:
                attributes.add(name)
        if chain:
            chains.add(tuple(chain))
    return Mentions(frozenset(chains), frozenset(attributes), frozenset(imports))


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _parts_of_code(code: CodeType) -> Iterator[bytes]:
    yield code.co_code
    yield code.co_exceptiontable
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    names = (code.co_name, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    yield repr((counts, names)).encode("utf-8", "surrogatepass")
    document = _document(code)
    for place, constant in enumerate(code.co_consts):
        if isinstance(constant, CodeType):
            yield from _parts_of_code(constant)
        elif place or not document:
            yield Contents(_no_name, _no_content).of(constant)


def _document(code: CodeType) -> bool:
    """Return whether the first constant of the code is used only as the docstring."""
    if not code.co_consts or not isinstance(code.co_consts[0], str) or code.co_name.startswith("<"):
        return False
    flag = getattr(inspect, "CO_HAS_DOCSTRING", None)
    if flag is not None and not code.co_flags & flag:
        return False
    if not code.co_flags & inspect.CO_OPTIMIZED:  # a class: its docstring is assigned
        return False
    # Python without that flag: the first constant is a docstring if no instruction loads it.
    return all(
        each.arg != 0
        for each in dis.get_instructions(code)
        if each.opname in ("LOAD_CONST", "RETURN_CONST")
    )


def _no_name(value: Any) -> bytes | None:
    return None


def _no_content(value: Any) -> bytes:
    return repr(value).encode("utf-8", "surrogatepass")
