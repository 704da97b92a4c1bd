"""Restore what a step may change in its process, before the next step runs there.

A process of isolation `worker` runs the user's file once, and then many steps. Attributes of the
process and global state of the standard library are, for each step, as the file has left them.
Variables of other modules keep their changes (docs/design.md, "Local processes"): that is the
purpose of such a process, and restoring all of them is impossible.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import asyncio
import gc
import io
import locale
import logging
import os
import random
import resource
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import Any

from aflow._core import system
from aflow.executors.local.child import was_seeded

_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
_OF_TIMERS = (signal.SIGVTALRM, signal.SIGPROF)
_LIMITS = ("RLIMIT_AS", "RLIMIT_NOFILE")

_NONE = SimpleNamespace()
_locale = partial(locale.setlocale, locale.LC_ALL)  # reads it without an argument, or sets it
# From Python 3.14 on, the public function warns that it is deprecated.
_event_loop_policy: Callable[[], Any] = (
    getattr(asyncio.events, "_get_event_loop_policy", None) or asyncio.get_event_loop_policy
)
_REFUSED = (ValueError, OSError, RecursionError, locale.Error)

# Attributes by module, with their initial values for modules that a step imports first.
_ATTRIBUTES: dict[str, dict[str, Any]] = {
    "sys": {
        "stdin": None, "stdout": None, "stderr": None, "excepthook": None, "displayhook": None,
        "unraisablehook": None, "breakpointhook": None, "dont_write_bytecode": None,
    },
    "threading": {"excepthook": None},
    "tempfile": {"tempdir": None},
}  # fmt: skip


class Randomness:
    """The global generators of `random` and numpy.random.

    Must be created before the user's program runs; `begin` is called afterwards.
    """

    def __init__(self) -> None:
        self._before = random.getstate()
        self._numpy_before = _numpy_state()

    def begin(self) -> None:
        """Record the state that the program has left."""
        now, now_of_numpy = random.getstate(), _numpy_state()
        self._seeded = now if was_seeded(self._before[1], now[1]) else None
        self._twin = random.Random()
        self._twin.setstate(now)
        self._seeded_numpy: Any = None
        self._numpy_twin: Any = None
        if now_of_numpy is None:
            return
        before = self._numpy_before
        fresh = _numpy_bits().seed_seq is not None  # not seeded since its import
        if not fresh and (before is None or was_seeded(before, now_of_numpy)):
            self._seeded_numpy = sys.modules["numpy.random"].get_state()
        else:
            self._numpy_twin = _twin_of_numpy()

    def restore(self) -> None:
        """Restore the seed of the program, and discard a seed that the step has set."""
        if self._seeded is not None:
            random.setstate(self._seeded)
        elif random.getrandbits(32) != self._twin.getrandbits(32):  # used or seeded
            random.seed()
            self._twin.setstate(random.getstate())
        if "numpy.random" in sys.modules:
            self._restore_numpy()

    def _restore_numpy(self) -> None:
        numpy_random = sys.modules["numpy.random"]
        if self._seeded_numpy is not None:
            numpy_random.set_state(self._seeded_numpy)
        elif self._numpy_twin is None or (
            _numpy_bits().random_raw() != self._numpy_twin.random_raw()
        ):
            numpy_random.seed()
            self._numpy_twin = _twin_of_numpy()


def _numpy_bits() -> Any:
    return sys.modules["numpy.random"].mtrand._rand._bit_generator


def _numpy_state() -> tuple[Any, ...] | None:
    """Return the state of NumPy's global generator in the format of `random`.

    None if NumPy is not imported, or the generator is of another kind.
    """
    if "numpy.random" not in sys.modules:
        return None
    state = _numpy_bits().state
    if state["bit_generator"] != "MT19937":
        return None
    return (*map(int, state["state"]["key"]), int(state["state"]["pos"]))


def _twin_of_numpy() -> Any:
    bits = _numpy_bits()
    twin = type(bits)(0)
    twin.state = bits.state
    return twin


class Surroundings:
    """The state of the process after the user's program has called its flow.

    `stdout` and `stderr` are the descriptors for the output of attempts.
    """

    def __init__(self, stdout: int, stderr: int, randomness: Randomness) -> None:
        nothing = system.out_of_the_way(os.open(os.devnull, os.O_RDONLY))
        self._descriptors = [nothing, stdout, stderr]
        self._cwd = _cwd()
        self._folder = _folder()
        self._environ = dict(os.environ)
        # As bytes, as the interpreter stores it: comparing os.environ would decode all of it.
        self._raw_environ = dict(os.environb)
        self._umask = os.umask(0o022)
        os.umask(self._umask)
        self._signals = {int(each): _signal.getsignal(each) for each in signal.valid_signals()}
        self._blocked = _signal.pthread_sigmask(_signal.SIG_BLOCK, ())
        self._zone = _zone()
        self._argv = [*sys.argv]
        self._path = [*sys.path]
        self._attributes = [
            (vars(sys.modules[module]), name, vars(sys.modules[module])[name])
            for module, names in _ATTRIBUTES.items()
            if module in sys.modules
            for name in names
        ]
        self._later = [module for module in _ATTRIBUTES if module not in sys.modules]
        self._settings = [(read, write, read()) for read, write in _settings()]
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        randomness.begin()
        self._randomness = randomness

    def restore(self) -> None:
        """Restore everything."""
        self._restore_process()
        self._restore_interpreter()
        self._randomness.restore()

    def _restore_process(self) -> None:
        if _cwd() != self._cwd and self._folder is not None:
            os.fchdir(self._folder)
        if os.environb._data != self._raw_environ:  # type: ignore[attr-defined]
            os.environ.clear()
            os.environ.update(self._environ)
        if _zone() != self._zone:
            time.tzset()
        os.umask(self._umask)
        _signal.alarm(0)
        for number, handler in self._signals.items():
            if _signal.getsignal(number) is not handler:
                _signal.signal(number, handler)
                if number in _OF_TIMERS:  # an expiring timer would now kill the process
                    for timer in _TIMERS:
                        _signal.setitimer(timer, 0)
        if _signal.pthread_sigmask(_signal.SIG_BLOCK, ()) != self._blocked:
            _signal.pthread_sigmask(_signal.SIG_SETMASK, self._blocked)
        for target, descriptor in enumerate(self._descriptors):
            os.dup2(descriptor, target)

    def _restore_interpreter(self) -> None:
        for module in [each for each in self._later if each in sys.modules]:
            self._later.remove(module)
            names = _ATTRIBUTES[module]
            self._attributes += [(vars(sys.modules[module]), *each) for each in names.items()]
        for variables, name, value in self._attributes:
            if variables.get(name) is not value:
                variables[name] = value
        for read, write, value in self._settings:
            if read() != value:
                with suppress(*_REFUSED):  # the step has dropped the privilege to do so
                    write(value)
        # Restore the filters, and show warnings again that were shown once: the next step is
        # another task.
        self._warnings.__exit__(None, None, None)
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        if sys.argv != self._argv:
            sys.argv[:] = self._argv
        # Modules that a step has imported stay, and may need its additions.
        if sys.path != self._path:
            self._path = sys.path[:] = [*dict.fromkeys(sys.path)]
        faulthandler = sys.modules.get("faulthandler")
        if faulthandler is not None:
            faulthandler.cancel_dump_traceback_later()


def own_decimal_context() -> None:
    """Copy the decimal context for the step that runs in this context of context variables.

    Decimal contexts are changed in place.
    """
    decimal = sys.modules.get("decimal")
    if decimal is not None:
        decimal.setcontext(decimal.getcontext().copy())


def _settings() -> Iterator[tuple[Callable[[], Any], Callable[[Any], Any]]]:
    """Yield the getter and the setter of each setting that is accessed by calls."""
    yield sys.getrecursionlimit, sys.setrecursionlimit
    yield sys.getswitchinterval, sys.setswitchinterval
    yield sys.get_int_max_str_digits, sys.set_int_max_str_digits
    yield sys.gettrace, sys.settrace
    yield sys.getprofile, sys.setprofile
    yield threading.gettrace, threading.settrace
    yield threading.getprofile, threading.setprofile
    yield threading.stack_size, threading.stack_size
    yield gc.isenabled, lambda on: (gc.enable if on else gc.disable)()
    yield gc.get_threshold, lambda each: gc.set_threshold(*each)
    yield gc.get_debug, gc.set_debug
    yield socket.getdefaulttimeout, socket.setdefaulttimeout
    yield _locale, _locale
    yield _get_root_logger, _set_root_logger
    yield _get_start_method, _set_start_method
    yield _get_event_loop, _set_event_loop
    yield system.affinity, system.set_affinity
    for stream in (sys.__stdin__, sys.__stdout__, sys.__stderr__):
        if isinstance(stream, io.TextIOWrapper):
            yield partial(_get_encoding, stream), partial(_set_encoding, stream)
    for name in _LIMITS:
        if (number := getattr(resource, name, None)) is not None:
            yield partial(resource.getrlimit, number), partial(resource.setrlimit, number)


def _get_encoding(stream: io.TextIOWrapper) -> tuple[str, str | None]:
    return stream.encoding, stream.errors


def _set_encoding(stream: io.TextIOWrapper, value: tuple[str, str | None]) -> None:
    encoding, errors = value
    stream.reconfigure(encoding=encoding, errors=errors)


def _get_root_logger() -> tuple[Any, ...]:
    root = logging.root
    return root.manager.disable, root.level, [*root.handlers], [*root.filters]


def _set_root_logger(value: tuple[Any, ...]) -> None:
    root = logging.root
    disabled, level, root.handlers[:], root.filters[:] = value
    root.setLevel(level)
    logging.disable(disabled)


def _get_start_method() -> str | None:
    multiprocessing = sys.modules.get("multiprocessing")
    return None if multiprocessing is None else multiprocessing.get_start_method(allow_none=True)


def _set_start_method(value: str | None) -> None:
    sys.modules["multiprocessing"].set_start_method(value, force=True)


def _get_event_loop() -> tuple[Any, dict[str, Any]]:
    """Return the event loop policy, and the current loop of this thread."""
    policy = _event_loop_policy()
    return policy, {**vars(getattr(policy, "_local", _NONE))}


def _set_event_loop(value: tuple[Any, dict[str, Any]]) -> None:
    policy, local = value
    if _event_loop_policy() is not policy:
        asyncio.set_event_loop_policy(policy)
    variables = vars(getattr(policy, "_local", _NONE))
    variables.clear()
    variables.update(local)


def _zone() -> tuple[Any, ...]:
    return time.timezone, time.altzone, time.tzname


def _cwd() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:  # the folder was removed
        return None


def _folder() -> int | None:
    """Return a descriptor of the working folder, which stays valid if the folder is renamed."""
    try:
        flags = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
        return system.out_of_the_way(os.open(".", flags))
    except OSError:  # the folder may not be opened
        return None
