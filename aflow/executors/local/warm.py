"""Warm grounds: what the user's file imports, imported before the file is run.

Importing a library hardly ever makes a process unfit for forks; using it does. So a ground imports
what the first run of the file has imported and is not the user's, and runs none of the user's code:
tasks that are forked from it run the whole file, and find its imports done.
"""

from __future__ import annotations

import builtins
import importlib
import os
import sys
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from aflow.executors.local.program import is_library, started

_REPLACED = "gevent"  # has replaced what imports would have seen


def imported_since(before: Collection[str], environment: Mapping[str, str]) -> dict[str, Any]:
    """What a program has imported since these modules were there, as plain values: the names of
    the modules that are not the user's, in order, and what modules could have read meanwhile and
    find otherwise than in this environment."""
    return _imported([each for each in [*sys.modules] if each not in before], environment)


def imported_here() -> dict[str, Any] | None:
    """What the user's program has imported that this process runs as `__main__`; None where it is
    another program."""
    start = started()
    return None if start is None else _imported(start.modules, start.environment)


def _imported(names: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any]:
    modules = [each for each in names if _is_installed(each, sys.modules.get(each))]
    return {"modules": modules, "state": state(environment)}


def _is_installed(name: str, module: Any) -> bool:
    """Whether a module is Python's, aflow's or of an installed package, and not the user's."""
    top = name.partition(".")[0]
    if top == "aflow":
        return not name.startswith(("aflow.cli", "aflow.__main__"))
    if top in ("metaflow", "__main__", "__mp_main__"):
        return False
    file = getattr(module, "__file__", None)
    if file is None:
        loader = getattr(getattr(module, "__spec__", None), "origin", None)
        return loader in ("built-in", "frozen")
    return is_library(file)


def state(environment: Mapping[str, str]) -> list[Any]:
    """What imports can read of a process, and what code before them can have changed: variables
    that are not those of `environment`, finders, filters of warnings, the import itself."""
    now = os.environ
    changed = {key: value for key, value in now.items() if environment.get(key) != value}
    gone = [key for key in environment if key not in now]
    return [
        sorted(changed.items()),
        sorted(gone),
        [getattr(each, "__qualname__", type(each).__qualname__) for each in sys.meta_path],
        sorted({repr((each[0], each[2])) for each in warnings.filters}),
        builtins.__import__ is _IMPORT,
        _REPLACED in sys.modules,
    ]


_IMPORT = builtins.__import__
_WHAT = (
    "environment variables",
    "environment variables",
    "the finders of modules (sys.meta_path)",
    "the filters of warnings",
    "the import itself (builtins.__import__)",
    "the standard library (gevent)",
)


def import_all(imported: Mapping[str, Any], environment: Mapping[str, str]) -> str | None:
    """Import what the program has imported. Gives why a program would not have found the same:
    None where it would. What cannot be imported by itself is left out."""
    if not imported["state"][4] or imported["state"][5]:
        return f"the flow's file changes {_WHAT[4 if not imported['state'][4] else 5]}"
    for name in imported["modules"]:
        if name not in sys.modules:
            try:
                importlib.import_module(name)
            except Exception:  # noqa: BLE001, S112 -- the program imports it itself, if it needs it
                continue
    for what, theirs, ours in zip(_WHAT, imported["state"], state(environment), strict=True):
        if _plain(theirs) != _plain(ours):
            return f"the flow's file changes {what}, which its imports may read"
    return None


def _plain(value: Any) -> Any:
    """Tuples and lists alike: what has travelled has become the other kind."""
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
