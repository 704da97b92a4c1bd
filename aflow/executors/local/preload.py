"""Import what the user's file imports, before the file runs, in warm zygotes.

Importing a library rarely makes a process unfit for forks; using it does. So a warm zygote imports
the installed modules that the first run of the file has imported, and runs no user code. Tasks that
are forked from it run the whole file, and find its imports done.
"""

from __future__ import annotations

import builtins
import gc
import importlib
import os
import sys
import warnings
import weakref
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from aflow._core.modules import file_of, stated
from aflow.executors.local.messages import packed
from aflow.task.program import is_library, started

if TYPE_CHECKING:
    from random import Random

# Modules that start runs, which no task needs.
_OF_COMMANDS = (
    "aflow.cli",
    "aflow.__main__",
    "aflow._core.process",
    "aflow.executors.local.zygote_start",
)
_FRESH_SEED = 1 << 96  # NumPy draws 128 bits if no seed is given
_REPLACED = "gevent"  # replaces parts of the standard library, so imports would find other modules


def imported_since(before: Collection[str], environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the imports of a program as plain values.

    These are the names of installed modules in their order of import, and the state that imports
    could have read and that differs from the start of the program.

    Args:
        before: The names of the modules that were imported before.
        environment: The variables that the program was started with: imports may have read changes
            to them.
    """
    return _imported([each for each in [*sys.modules] if each not in before], environment)


def imported_here() -> dict[str, Any] | None:
    """Return the imports of the user's program that is the `__main__` of this process, or None."""
    start = started()
    return None if start is None else _imported(start.modules, start.environment)


def _imported(names: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any]:
    modules = [each for each in names if _is_installed(each, sys.modules.get(each))]
    return {"modules": modules, "state": state(environment)}


def _is_installed(name: str, module: Any) -> bool:
    """Return whether a module belongs to Python, aflow or an installed package, not to the user."""
    top = name.partition(".")[0]
    if top == "aflow":
        return not name.startswith(_OF_COMMANDS)
    if top in ("metaflow", "__main__", "__mp_main__"):
        return False
    file = file_of(module)
    if file is None:
        return getattr(stated(module, "__spec__"), "origin", None) in ("built-in", "frozen")
    return is_library(file)


def state(environment: Mapping[str, str]) -> list[Any]:
    """Return the state of a process that imports can read and earlier code can have changed.

    These are variables that differ from `environment`, import finders, warning filters, and the
    import function.

    Args:
        environment: The variables that the program was started with.
    """
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
    "the environment",
    "the environment",
    "the finders of modules (sys.meta_path)",
    "the filters of warnings",
    "the import itself (builtins.__import__)",
    "the standard library (gevent)",
)


def import_all(imported: Mapping[str, Any], environment: Mapping[str, str]) -> str | None:
    """Import the modules that the program has imported. Modules that fail to import are skipped.

    Args:
        imported: The result of `imported_since` in the program.
        environment: The variables that this process was started with, to find changes.

    Returns:
        The reason why the imports of the program could have had other results, so that the imports
        of this process must not be used; None if they are the same.
    """
    if not imported["state"][4] or imported["state"][5]:
        return f"the flow's file changes {_WHAT[4 if not imported['state'][4] else 5]}"
    for name in imported["modules"]:
        if name not in sys.modules:
            try:
                importlib.import_module(name)
            except Exception:  # noqa: BLE001, S112 -- the program imports it itself if it needs it
                continue
    for what, theirs, ours in zip(_WHAT, imported["state"], state(environment), strict=True):
        # Lists have become tuples in transit; both are packed in the same way.
        if packed(theirs) != packed(ours):
            names = _names(theirs, ours) if what == _WHAT[0] else ""
            return f"the flow's file changes {what}{names}, which its imports may read"
    return None


class Generators:
    """Records the random generators that imports in this context create without a seed.

    All tasks would draw the same numbers from them, so they are reseeded in each task. Generators
    with a seed are left alone, as in a fresh process.
    """

    def __init__(self) -> None:
        self._unseeded: weakref.WeakSet[Random] = weakref.WeakSet()
        self._of_numpy: list[Any] = []

    def __enter__(self) -> Self:
        from random import Random  # only warm zygotes need it

        self._seed = seed = Random.seed
        unseeded = self._unseeded

        def noted(generator: Random, a: Any = None, version: int = 2) -> None:
            (unseeded.add if a is None else unseeded.discard)(generator)
            seed(generator, a, version)

        Random.seed = noted  # type: ignore[assignment]
        return self

    def __exit__(self, *exc: object) -> None:
        from random import Random

        Random.seed = self._seed  # type: ignore[method-assign]
        numpy_random = sys.modules.get("numpy.random")
        if numpy_random is not None:
            kinds = (numpy_random.Generator, numpy_random.RandomState)
            found = [each for each in gc.get_objects() if type(each) in kinds]
            self._of_numpy = [each for each in found if is_unseeded(each)]

    def seed(self) -> None:
        """Reseed the generators, in a process that was forked after the imports."""
        for each in self._unseeded:
            each.seed()
        for each in self._of_numpy:
            bits = bits_of(each)
            bits.state = type(bits)().state


def bits_of(generator: Any) -> Any:
    """Return the bit generator of a NumPy generator, of the new or the legacy API.

    Args:
        generator: A `Generator`, or a `RandomState` of the legacy API.
    """
    found = getattr(generator, "bit_generator", None)
    return generator._bit_generator if found is None else found


def is_unseeded(generator: Any) -> bool:
    """Return whether NumPy has chosen the seed of a generator.

    False for NumPy's global generator, which is reseeded in each process of a task.

    Args:
        generator: A `Generator` or `RandomState` that was found in an imported module.
    """
    if generator is sys.modules["numpy.random"].mtrand._rand:
        return False
    entropy = getattr(getattr(bits_of(generator), "seed_seq", None), "entropy", None)
    return isinstance(entropy, int) and entropy >= _FRESH_SEED


def _names(theirs: Sequence[Any], ours: Sequence[Any]) -> str:
    """Return the names of variables that differ; their values may be secret."""
    # Changed variables are pairs of name and value, removed ones are names.
    one, other = (
        {each if isinstance(each, str) else tuple(each) for each in every}
        for every in (theirs, ours)
    )
    names = sorted({each if isinstance(each, str) else each[0] for each in one ^ other})
    return f" ({', '.join(names)})"
