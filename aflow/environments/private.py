"""Packages that aflow needs in another version than a step does: each imports its own.

An interpreter of a step's environment finds the packages of the step. Where one of these is of a
version that aflow, or what aflow depends on, cannot use, modules of aflow import a copy from the
folder of the runtime, which stands under its name in `sys.modules` only while they import it. Both
are loaded then, and neither sees the other.

The source of this module is run before aflow is there: it needs the standard library alone.
"""

from __future__ import annotations

import builtins
import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

_OURS = "aflow"


def keep(names: Collection[str], folder: str) -> None:
    """From now on have modules of aflow, and those of these names that they import, import these
    names from the folder; all others import them as before. aflow must not be imported yet.

    Args:
        names: Top names of modules, as they are imported.
        folder: The folder of the runtime, which has the packages of these names.
    """
    sys.meta_path.insert(0, _Finder(_Private(names, folder)))


class _Private:
    """The modules that only aflow sees, and the `import` by which it gets them."""

    def __init__(self, names: Collection[str], folder: str) -> None:
        self.names = frozenset(names)
        self.folder = folder
        self._modules: dict[str, ModuleType] = {}
        self._lock = threading.RLock()
        self._inside: int | None = None  # the thread for which they are in sys.modules
        self.builtins: dict[str, Any] = {**vars(builtins), "__import__": self._import}

    def is_inside(self) -> bool:
        """Whether this thread is importing for aflow."""
        return self._inside == threading.get_ident()

    def _import(
        self,
        name: str,
        globals: dict[str, Any] | None = None,
        locals: dict[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        whole = name if level == 0 else str((globals or {}).get("__package__") or name)
        # Only C code gives a list: pickle, say, which looks for a class of the user's.
        is_private = whole.partition(".")[0] in self.names and type(fromlist) is not list
        with self._exchanged(is_private, whole):
            return __import__(name, globals, locals, fromlist or (), level)

    @contextmanager
    def _exchanged(self, is_private: bool, name: str) -> Iterator[None]:
        """With the private modules in `sys.modules`, or without them."""
        is_inside = self.is_inside()
        if is_private == is_inside or (not is_private and self._is_common(name)):
            yield
        elif is_private:
            with self._lock:
                self._exchange(threading.get_ident())
                try:
                    yield
                finally:
                    self._exchange(None)
        else:  # a package of the user's, which a private one may use: it gets what is the user's
            inside = self._inside
            self._exchange(None)
            try:
                yield
            finally:
                self._exchange(inside)

    def _is_common(self, name: str) -> bool:
        """Whether this imports none of the names that there are two of."""
        return name in sys.modules or name.partition(".")[0] in sys.stdlib_module_names

    def _exchange(self, inside: int | None) -> None:
        if inside == self._inside:
            return
        there = {each: sys.modules[each] for each in [*sys.modules]
                 if each.partition(".")[0] in self.names}  # fmt: skip
        for each in there:
            del sys.modules[each]
        sys.modules.update(self._modules)
        self._modules, self._inside = there, inside


class _Finder:
    """Finds what is private in its folder, and gives modules of aflow the `import` of theirs."""

    def __init__(self, private: _Private) -> None:
        self._private = private

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a module of aflow, or of a private one; None for all others."""
        top = name.partition(".")[0]
        private = self._private
        if top == _OURS:
            spec = PathFinder.find_spec(name, path, target)
        elif top in private.names and private.is_inside():
            spec = PathFinder.find_spec(name, [private.folder] if path is None else path, target)
        else:
            return None
        if spec is not None and spec.origin and type(spec.loader) is SourceFileLoader:
            spec.loader = _Source(name, spec.origin, private)
        return spec


class _Source(SourceFileLoader):
    """Runs a module with the `import` of aflow."""

    def __init__(self, name: str, path: str, private: _Private) -> None:
        super().__init__(name, path)
        self._private = private

    def exec_module(self, module: ModuleType) -> None:
        """Run the module."""
        vars(module)["__builtins__"] = self._private.builtins
        super().exec_module(module)
