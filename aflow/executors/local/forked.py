"""`process="fork"`: the user's program as the process that tasks are forked from.

It has run up to `MyFlow()` once, and each task goes on from there: for files that work for seconds
at module level. What tasks would have in common then, and would not have in a fresh process, stands
in the way, besides what probe.py looks for. What can be put right in the child is put right there:
files that are open for reading, and the state of `random`.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import random
import stat
import sys
import weakref
from collections.abc import Callable, Collection, Iterator
from typing import Any

from aflow.executors.local.probe import obstacle, open_descriptors
from aflow.executors.local.program import is_library
from aflow.executors.local.warm import is_unseeded

_TWISTS = 200  # blocks of 624 numbers for which it is tried whether `random` was only used
_IN_MEMORY = ("torch",)  # libraries whose finalizers only tidy up memory


class UserProgram:
    """What a process has from before the user's program runs in it; made before that."""

    def __init__(self) -> None:
        self._descriptors = open_descriptors()
        self._finalizers = {*weakref.finalize._registry}  # type: ignore[attr-defined]
        self._exit_functions: list[Callable[..., Any]] = []
        self._random = random.getstate()
        self._register = atexit.register
        atexit.register = self._note_exit_function  # type: ignore[assignment]

    def _note_exit_function(self, function: Any, *args: Any, **options: Any) -> Any:
        self._exit_functions.append(function)
        return self._register(function, *args, **options)

    def reached(self) -> None:
        """The program has come to its flow."""
        atexit.register = self._register
        self._seeded = _was_seeded(self._random, random.getstate())
        self._random = random.getstate()

    def obstacle(self, ours: Collection[int]) -> str | None:
        """Why tasks cannot be forked from this process; None where they can be."""
        return (
            self._exit_function()
            or self._finalizer()
            or _generator()
            or obstacle({*self._descriptors, *ours})
        )

    def _exit_function(self) -> str | None:
        for each in self._exit_functions:
            code = getattr(each, "__code__", None)
            if code is None or not is_library(code.co_filename):
                name = getattr(each, "__qualname__", repr(each))
                return f"the exit function {name} would run in each task"
        return None

    def _finalizer(self) -> str | None:
        registry: dict[Any, Any] = weakref.finalize._registry  # type: ignore[attr-defined]
        for finalizer, info in [*registry.items()]:
            home = getattr(info.func, "__module__", None) or ""
            if finalizer in self._finalizers or not info.atexit:
                continue
            if home.partition(".")[0] not in _IN_MEMORY:
                name = getattr(info.func, "__qualname__", repr(info.func))
                return f"{home}.{name} (a finalizer) would run in each task"
        return None

    def begin_child(self) -> None:
        """Put right what a forked process is to have of its own."""
        if self._seeded:
            random.setstate(self._random)
        for number in _readable_files(self._descriptors):
            _reopen(number)


def _has_proc() -> bool:
    return os.path.isdir("/proc/self/fd")


def _was_seeded(before: tuple[Any, ...], after: tuple[Any, ...]) -> bool:
    """Whether somebody has seeded `random`, rather than only used it, between these states: it is
    tried whether drawing numbers leads from the one to the other."""
    if before[1] == after[1]:
        return False
    tried = random.Random()
    tried.setstate(before)
    wanted = after[1][:624]
    for _ in range(_TWISTS):
        state = tried.getstate()[1]
        if state[:624] == wanted:
            return False
        for _ in range(624 - state[624] + 1):
            tried.getrandbits(32)
    return True


def _generator() -> str | None:
    """A generator of random numbers in the user's modules that would give all tasks the same."""
    numpy_random = sys.modules.get("numpy.random")
    kinds = () if numpy_random is None else (numpy_random.Generator, numpy_random.RandomState)
    for name, module in [*sys.modules.items()]:
        file = getattr(module, "__file__", None)
        if name != "__main__" and (file is None or is_library(file) or name.startswith("aflow.")):
            continue
        for key, value in [*vars(module).items()]:
            if type(value) is random.Random:
                return f"{key} (random.Random) would give all tasks the same numbers"
            if type(value) in kinds and is_unseeded(value):
                return f"{key} (of numpy.random) would give all tasks the same numbers"
    return None


def _readable_files(but: Collection[int]) -> Iterator[int]:
    if not _has_proc():
        return
    for number in map(int, os.listdir("/proc/self/fd")):
        if number <= 2 or number in but:
            continue
        try:
            mode = os.fstat(number).st_mode
            flags = fcntl.fcntl(number, fcntl.F_GETFL)
        except OSError:  # that of the listing itself
            continue
        if stat.S_ISREG(mode) and flags & os.O_ACCMODE == os.O_RDONLY:
            yield number


def _reopen(number: int) -> None:
    """Give a file that is open for reading a position of its own, where it was."""
    try:
        at = os.lseek(number, 0, os.SEEK_CUR)
        again = os.open(f"/proc/self/fd/{number}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # it was removed, or may not be opened any more: it stays as it is
        return
    os.lseek(again, at, os.SEEK_SET)
    os.dup2(again, number, inheritable=os.get_inheritable(number))
    os.close(again)
