"""Lazy imports of modules of the standard library: they are loaded when they are first used.

The first task of a command starts after all of its imports. dataclasses imports inspect for a
docstring that aflow does not need; asyncio imports ssl, which local runs never use. Together with
their own imports they took a tenth of a whole run. `importlib.util.LazyLoader` is not sufficient: a
second import statement reads `__spec__` of the module, which makes that class load it; and before
Python 3.12 it is not thread-safe.
"""

from __future__ import annotations

import copyreg
import os
import sys
from _thread import RLock  # the class in threading, which is not imported yet
from collections.abc import Iterable
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec
from types import FunctionType, MethodType, ModuleType
from typing import Any

# The attributes that import statements, and code that iterates over sys.modules, read from modules.
_KNOWN_BEFORE = frozenset({
    "__class__", "__file__", "__loader__", "__name__", "__package__", "__path__", "__spec__",
})  # fmt: skip

# One lock for all modules. No module below uses another one of them while it is loaded, so two
# threads cannot deadlock.
_lock = RLock()
_loading: set[str] = set()


class _Deferred(ModuleType):
    """A module that is loaded when one of its attributes is first read."""

    def __getattribute__(self, name: str) -> Any:
        if name == "iscoroutinefunction":  # only inspect has it
            return _is_coroutine_function
        if name not in _KNOWN_BEFORE:
            _load(self)
        return ModuleType.__getattribute__(self, name)


def _is_coroutine_function(function: Any) -> bool:
    """Replace inspect.iscoroutinefunction; only load inspect if the result is not obvious.

    asyncio calls it for each signal handler.
    """
    asked = function.__func__ if type(function) is MethodType else function
    if type(asked) is FunctionType and not vars(asked):
        return bool(asked.__code__.co_flags & _CO_COROUTINE)
    load("inspect")
    found: bool = sys.modules["inspect"].iscoroutinefunction(function)
    return found


_CO_COROUTINE = 128  # inspect.CO_COROUTINE


def _by_name(module: ModuleType) -> tuple[Any, tuple[str]]:
    return import_module, (module.__name__,)


# cloudpickle only pickles modules whose type is exactly ModuleType.
copyreg.pickle(_Deferred, _by_name)


def _load(module: ModuleType) -> None:
    with _lock:
        spec = module.__spec__
        if type(module) is not _Deferred or spec is None or spec.name in _loading:
            return  # another thread has loaded it, or this thread is loading it
        assert spec.loader is not None, "it was found"
        _loading.add(spec.name)
        try:
            spec.loader.exec_module(module)
        finally:
            _loading.discard(spec.name)
        module.__class__ = ModuleType  # type: ignore[assignment]


def _renew_lock() -> None:
    """Replace the lock in a forked process, where no other thread exists that could release it."""
    global _lock
    _lock = RLock()
    _loading.clear()


os.register_at_fork(after_in_child=_renew_lock)


def defer(names: Iterable[str]) -> None:
    """Make modules of the standard library load when they are first used.

    Modules that are already imported are not changed.

    Args:
        names: The names of top-level modules.
    """
    for name in names:
        spec = None if name in sys.modules else PathFinder.find_spec(name)
        if spec is not None:
            _defer(spec)


def _defer(spec: ModuleSpec) -> None:
    module = module_from_spec(spec)
    module.__class__ = _Deferred
    sys.modules[spec.name] = module


# Modules that commands and zygotes import indirectly, but seldom use.
_NAMED = (
    "base64", "dis", "inspect", "ipaddress", "linecache", "locale", "shlex", "shutil", "tarfile",
    "textwrap",
)  # fmt: skip


def defer_all() -> None:
    """Make all modules in _NAMED load when they are first used.

    For processes that only run aflow's code, and after the user's program has called its flow.
    """
    defer(_NAMED)


def import_asyncio() -> None:
    """Import asyncio without loading ssl, which local runs do not need.

    No effect if asyncio is already imported.
    """
    if "asyncio" in sys.modules:
        return
    defer_all()
    defer(("ssl",))
    # Its module for TLS reads two exception classes from ssl when it is loaded.
    package = PathFinder.find_spec("asyncio")
    assert package is not None, "it is of the standard library"
    name = "asyncio.sslproto"
    spec = PathFinder.find_spec(name, package.submodule_search_locations)
    if spec is not None:
        _defer(spec)
    asyncio = import_module("asyncio")
    if spec is not None:  # as an import statement would have done
        vars(asyncio).setdefault("sslproto", sys.modules[name])


def loaded() -> list[str]:
    """Return the names of the modules that are loaded, in the order in which they were imported."""
    return [name for name, module in [*sys.modules.items()] if type(module) is not _Deferred]


def load(name: str) -> None:
    """Load a deferred module now.

    Args:
        name: The name of the module; no effect if it is not deferred.
    """
    module = sys.modules.get(name)
    if type(module) is _Deferred:
        _load(module)


def waiting() -> list[str]:
    """Return the names of the deferred modules that are not loaded yet."""
    return [name for name, module in [*sys.modules.items()] if type(module) is _Deferred]


def load_all() -> None:
    """Load all deferred modules, so that processes forked from this one need not do so."""
    for name in waiting():
        load(name)
