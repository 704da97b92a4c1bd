"""Private copies of packages that aflow needs in another version than a step.

The interpreter of a step's environment imports the packages of the step. If the version of one of
these does not meet the requirements of aflow or its dependencies, the modules of aflow import a
private copy from the folder of the runtime. The copy is in `sys.modules` only during such an
import. Both versions are loaded then, without seeing each other.

The source of this module is executed before aflow is importable: it uses only the standard library.
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
    """Install an import hook: modules of aflow, and the private modules themselves, import these
    names from the folder; all other modules import them as before. Must be called before aflow is
    imported.

    Args:
        names: The top-level names of the private modules.
        folder: The folder of the runtime that has these modules.
    """
    sys.meta_path.insert(0, _Finder(_Private(names, folder)))


class _Private:
    """The private modules, and the `__import__` function that modules of aflow use."""

    def __init__(self, names: Collection[str], folder: str) -> None:
        self.names = frozenset(names)
        self.folder = folder
        self._modules: dict[str, ModuleType] = {}
        self._lock = threading.RLock()
        self._inside: int | None = None  # the thread for which sys.modules has the private modules
        self.builtins: dict[str, Any] = {**vars(builtins), "__import__": self._import}

    def is_inside(self) -> bool:
        """Return whether this thread is importing a private module."""
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
        # Only C code passes a list; for example pickle, to find a class of the user's.
        is_private = whole.partition(".")[0] in self.names and type(fromlist) is not list
        with self._exchanged(is_private, whole):
            return __import__(name, globals, locals, fromlist or (), level)

    @contextmanager
    def _exchanged(self, is_private: bool, name: str) -> Iterator[None]:
        """Put the private modules into `sys.modules` for the block, or remove them for it."""
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
        else:  # a private module imports another package, which must see the user's versions
            inside = self._inside
            self._exchange(None)
            try:
                yield
            finally:
                self._exchange(inside)

    def _is_common(self, name: str) -> bool:
        """Return whether this import cannot import a name that exists twice."""
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
    """Finds private modules in their folder, and makes modules of aflow use `_Private._import`."""

    def __init__(self, private: _Private) -> None:
        self._private = private

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a module of aflow or of a private one; None for all others."""
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
    """Executes a module with builtins whose `__import__` is `_Private._import`."""

    def __init__(self, name: str, path: str, private: _Private) -> None:
        super().__init__(name, path)
        self._private = private

    def exec_module(self, module: ModuleType) -> None:
        """Execute the module."""
        vars(module)["__builtins__"] = self._private.builtins
        super().exec_module(module)
