"""Modules of the standard library that are imported when they are first used, not when they are
named.

A command's first task waits for all that the command imports. dataclasses names inspect for a text
that records have no use for; asyncio names ssl, which a run on this machine never uses. Together
with what these import they were a tenth of a whole run. `importlib.util.LazyLoader` is made for
this, and not enough: to import a module a second time asks for its `__spec__`, which makes that
class load it, and before Python 3.12 two threads that use it at once get half of it.
"""

from __future__ import annotations

import copyreg
import os
import sys
from _thread import RLock  # that of threading, which is not imported yet
from collections.abc import Iterable
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec
from types import FunctionType, MethodType, ModuleType
from typing import Any

# What import statements, and those who look through sys.modules, ask of every module.
_KNOWN_BEFORE = frozenset({
    "__class__", "__file__", "__loader__", "__name__", "__package__", "__path__", "__spec__",
})  # fmt: skip

# One lock for all of them. None of the modules below uses another one of them while it is loaded:
# so no two threads wait for each other.
_lock = RLock()
_loading: set[str] = set()


class _Deferred(ModuleType):
    """A module that is loaded by the first use of anything in it."""

    def __getattribute__(self, name: str) -> Any:
        if name == "iscoroutinefunction":  # of inspect
            return _is_coroutine_function
        if name not in _KNOWN_BEFORE:
            _load(self)
        return ModuleType.__getattribute__(self, name)


def _is_coroutine_function(function: Any) -> bool:
    """inspect.iscoroutinefunction, for which the module is loaded only where it is not clear at
    once: an event loop asks it for each signal that is handled."""
    asked = function.__func__ if type(function) is MethodType else function
    if type(asked) is FunctionType and not vars(asked):
        return bool(asked.__code__.co_flags & _CO_COROUTINE)
    load("inspect")
    found: bool = sys.modules["inspect"].iscoroutinefunction(function)
    return found


_CO_COROUTINE = 128  # inspect.CO_COROUTINE


def _by_name(module: ModuleType) -> tuple[Any, tuple[str]]:
    return import_module, (module.__name__,)


# cloudpickle, which knows how to write a module down, looks for exactly that type.
copyreg.pickle(_Deferred, _by_name)


def _load(module: ModuleType) -> None:
    with _lock:
        spec = module.__spec__
        if type(module) is not _Deferred or spec is None or spec.name in _loading:
            return  # another thread has loaded it, or it is this one that does
        assert spec.loader is not None, "it was found"
        _loading.add(spec.name)
        try:
            spec.loader.exec_module(module)
        finally:
            _loading.discard(spec.name)
        module.__class__ = ModuleType  # type: ignore[assignment]


def _renew_lock() -> None:
    """In a process that was just forked: no thread is left that could release the lock."""
    global _lock
    _lock = RLock()
    _loading.clear()


os.register_at_fork(after_in_child=_renew_lock)


def defer(names: Iterable[str]) -> None:
    """Have modules of the standard library loaded when they are first used. Modules that are loaded
    already stay as they are.

    Args:
        names: Their names; none of them may be in a package.
    """
    for name in names:
        spec = None if name in sys.modules else PathFinder.find_spec(name)
        if spec is not None:
            _defer(spec)


def _defer(spec: ModuleSpec) -> None:
    module = module_from_spec(spec)
    module.__class__ = _Deferred
    sys.modules[spec.name] = module


# What modules that commands and zygotes import name, and these seldom use.
_NAMED = (
    "base64", "dis", "inspect", "ipaddress", "linecache", "locale", "shlex", "shutil", "tarfile",
    "textwrap",
)  # fmt: skip


def defer_all() -> None:
    """Have all such modules loaded when they are first used: in processes that are ours alone, or
    once the user's program has called its flow."""
    defer(_NAMED)


def import_asyncio() -> None:
    """Import asyncio without ssl, which a run on this machine has no use for, unless the program
    has imported it already."""
    if "asyncio" in sys.modules:
        return
    defer_all()
    defer(("ssl",))
    # Its module for TLS asks ssl for the classes of two errors when it is loaded.
    package = PathFinder.find_spec("asyncio")
    assert package is not None, "it is of the standard library"
    name = "asyncio.sslproto"
    spec = PathFinder.find_spec(name, package.submodule_search_locations)
    if spec is not None:
        _defer(spec)
    asyncio = import_module("asyncio")
    if spec is not None:  # as an import of it would have done
        vars(asyncio).setdefault("sslproto", sys.modules[name])


def loaded() -> list[str]:
    """Return the names of the modules that are loaded, in the order in which they were imported."""
    return [name for name, module in [*sys.modules.items()] if type(module) is not _Deferred]


def load(name: str) -> None:
    """Load a module now, if it was deferred.

    Args:
        name: The name.
    """
    module = sys.modules.get(name)
    if type(module) is _Deferred:
        _load(module)


def waiting() -> list[str]:
    """Return the names of the modules that were deferred and are not loaded yet."""
    return [name for name, module in [*sys.modules.items()] if type(module) is _Deferred]


def load_all() -> None:
    """Load what was deferred: for a process that others are forked from, which would each do so."""
    for name in waiting():
        load(name)
