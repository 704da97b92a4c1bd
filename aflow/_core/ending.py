"""How a process ends: as Python's own end would have it, without the time that this takes.

At its end the interpreter takes every module apart, which costs 10 ms with nothing loaded and some
hundred with the libraries of this field. `os._exit` costs nothing and loses what Python would still
have done: files are flushed, `__del__` is called, generators run their `finally`. So an end is
*judged*: threads are joined and exit functions run, as always; then the types of all objects that
the process has made are looked at. Where plain files are all that is left to close, they are
flushed here and the process ends at once. Where more could happen, the interpreter does it.

What is not known to be harmless counts as harmful: that costs time, and loses nothing. No method of
the user's classes is called here.

Objects in the collector's permanent generation (`gc.freeze`) are not looked at: only what was made
before the user's code ran may be in it, or what was looked at while there was time (`look_ahead`).
"""

from __future__ import annotations

import atexit
import gc
import io
import os
import sys
import types
import weakref
from collections.abc import Callable, Iterable
from itertools import compress, islice, pairwise
from typing import Any, NoReturn

from aflow._core.modules import file_of

# What the end of an object of a type can do outside of the process. A function looks at the object
# itself: it does here what Python would do, or says that it cannot (True: Python has to).
_NOTHING = None
_UNKNOWN = "unknown"
Judgement = Callable[[Any], bool] | str | None

_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE
_NO_HANDLERS = 0 if sys.version_info < (3, 12) else 1  # 3.12 puts one around each generator

# `__del__` methods that do nothing that is seen outside of the process: they free memory, close
# what the kernel closes as well, or only warn where warnings are asked for.
_HARMLESS_DEL = frozenset({
    ("aflow.executors.local.child_worker", "AttemptBytes"),
    ("aflow.executors.local.child_worker", "AttemptStream"),
    ("_asyncio", "TaskStepMethWrapper"),
    ("_io", "BytesIO"),
    ("_io", "StringIO"),
    ("_io", "_BytesIOBuffer"),
    ("_socket", "socket"),
    ("asyncio.base_events", "BaseEventLoop"),
    ("click._compat", "_NonClosingTextIOWrapper"),
    ("http.client", "HTTPResponse"),
    ("joblib.externals.loky.backend.resource_tracker", "ResourceTracker"),
    ("lightgbm.basic", "Booster"),
    ("lightgbm.basic", "Dataset"),
    ("lightgbm.basic", "_InnerPredictor"),
    ("multiprocessing.connection", "_ConnectionBase"),
    ("multiprocessing.pool", "Pool"),
    ("multiprocessing.resource_tracker", "ResourceTracker"),
    ("multiprocessing.shared_memory", "SharedMemory"),
    ("posix", "ScandirIterator"),
    ("socket", "SocketIO"),
    ("subprocess", "Popen"),
    ("torch._subclasses.fake_tensor", "FakeTensorMode"),
    ("torch.multiprocessing.reductions", "StorageWeakRef"),
    ("torch.utils.data.dataloader", "_MultiProcessingDataLoaderIter"),
    ("urllib3.response", "BaseHTTPResponse"),
    ("urllib3.response", "HTTPResponse"),
    ("xgboost.core", "Booster"),
    ("xgboost.core", "DMatrix"),
    ("xgboost.core", "QuantileDMatrix"),
})  # fmt: skip

# Libraries whose extension types hold memory, or what the kernel closes with the process.
_HARMLESS_LIBRARIES = frozenset({
    "_blake3", "_brotli", "_cffi_backend", "_polars_runtime", "_polars_runtime_32",
    "_polars_runtime_64", "_polars_runtime_compat", "aflow", "aiohttp", "asyncpg", "bcrypt",
    "blake3", "bs4", "charset_normalizer", "contourpy", "cryptography", "cymem", "cytoolz",
    "frozenlist", "google", "greenlet", "grpc", "hiredis", "jaxlib", "joblib", "kiwisolver",
    "lightgbm", "llvmlite", "lxml", "lz4", "markupsafe", "matplotlib", "ml_dtypes", "msgpack",
    "multidict", "murmurhash", "numba", "numexpr", "numpy", "orjson", "pandas", "PIL", "pillow",
    "polars", "propcache", "psutil", "psycopg", "psycopg_binary", "psycopg_c", "pyarrow",
    "pydantic_core", "rapidfuzz", "regex", "rpds", "ruamel", "safetensors", "scipy", "shapely",
    "simplejson", "sklearn", "sqlalchemy", "statsmodels", "tiktoken", "tokenizers", "torch",
    "ujson", "uvloop", "wrapt", "xgboost", "xxhash", "yaml", "yarl", "zstandard",
})  # fmt: skip
_HARMLESS = sys.stdlib_module_names | _HARMLESS_LIBRARIES
# Types of theirs, and of the standard library, which do more than that when they end.
_HARMFUL_BASES = frozenset({
    ("_dbm", "dbm"),
    ("_gdbm", "gdbm"),
    ("pyarrow.lib", "NativeFile"),
    ("pyarrow.lib", "_CRecordBatchWriter"),
    ("pyarrow._parquet", "ParquetWriter"),
    ("pyarrow._csv", "CSVWriter"),
    ("pyarrow._orc", "ORCWriter"),
    ("sqlite3", "Blob"),
})  # fmt: skip
# Libraries that do things when the C library's exit functions run, or whose objects cannot be seen.
_HARMFUL_LIBRARIES = ("h5py", "mpi4py", "netCDF4", "tables")


class Leave(SystemExit):
    """The end of the program with an exit code, as `MyFlow()` raises it: whatever stands around the
    call (`finally`, `with`, pytest, a debugger) goes on as with any SystemExit.

    Where nobody catches it the interpreter asks for the code when all frames have gone, and the
    process ends by a judged end.
    """

    @property
    def code(self) -> int:  # type: ignore[override]
        """The exit code."""
        code: int = self.args[0]
        try:
            sys._getframe(1)
        except ValueError:  # no code of Python is above us: it is the interpreter that asks
            _end_or_thaw(code)
        return code


def leave(code: int = 0, release: Callable[[], None] | None = None) -> NoReturn:
    """End this process with this exit code, as Python's own end would, wherever we are. `release`
    drops what the caller holds of the user's objects; it is called only where the interpreter takes
    the process apart: in a forked process it costs copies of the pages that it touches.

    What is on the stack stays as it is: `finally` blocks of the callers do not run, and what they
    hold lives on. Where the stack can be left, `raise Leave(code)` is better.

    Args:
        code: The exit code.
        release: Drops the references that the caller holds to the user's objects. It is called only
            where the interpreter is taken apart: in a forked process it costs copies of memory
            pages.
    """
    _end_or_thaw(code, release)
    import ctypes  # slow to import, and rarely needed

    ctypes.pythonapi.Py_Exit(code)
    raise AssertionError("Py_Exit does not return")


def _end_or_thaw(code: int, release: Callable[[], None] | None = None) -> None:
    """End the process, if Python has nothing to do for it; else let Python's end reach all objects:
    it would leave out those that are frozen, whose files would be empty."""
    if not _needs_interpreter():
        os._exit(code & 0xFF)
    if release is not None:
        release()
    gc.unfreeze()


_is_judging = False  # exit functions run because an end is judged


def thaw() -> None:
    """As an exit function of a program that has frozen objects: where Python itself ends it, let it
    reach all of them."""
    if not _is_judging:
        gc.unfreeze()


def exit_code(error: SystemExit) -> int:
    """Return the exit code of a program that ends with this exception. Where it is a text, the text
    is printed on stderr, as Python does.

    Args:
        error: The exception that ends the program.
    """
    code = error.code
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    try:
        sys.stderr.write(f"{code}\n")
        sys.stderr.flush()
    except (AttributeError, OSError, ValueError):  # there is no stderr
        return 1
    return 1


def prepare() -> None:
    """Judge the types that are there now, before processes are forked which would each do so."""
    for kind in set(map(type, gc.get_objects())):
        _judged[kind] = _judge(kind)
    _has_unknown_extensions()
    _skip_finalizers_in_memory()
    _flush_c()  # finds the function, which each process would do for itself


def look_ahead() -> None:
    """Look at the objects that are there now, in a process that waits for others. Where their end
    can do nothing outside of the process, the end has to look at those that come later alone."""
    made = gc.get_objects()
    types_made = [*map(type, made)]
    judgements = {kind: _judge(kind) for kind in set(types_made)}
    if _UNKNOWN in judgements.values() or _has_unknown_extensions():
        return
    looked_at = {kind for kind, each in judgements.items() if callable(each)}
    again = []  # files and all that goes on: how they end depends on how they are then
    for each in compress(made, map(looked_at.__contains__, types_made)):
        if type(each) is not weakref.ReferenceType:
            try:
                again.append(weakref.ref(each))
            except TypeError:  # there is none to an object of this type
                return
        elif _has_callback(each):
            return
    _again.extend(again)
    atexit.register(thaw)
    gc.freeze()


_again: list[weakref.ReferenceType[Any]] = []


# ------------------------------------------------------------------ the end


def _needs_interpreter() -> bool:
    """Do what Python does before it takes modules apart, and what is left to do where that is
    little; whether it is more than that."""
    global _is_judging
    _join_threads()
    _skip_finalizers_in_memory()
    _is_judging = True
    atexit._run_exitfuncs()
    _is_judging = False
    if sys.flags.dev_mode or sys.flags.verbose or not all(map(_silences, sys.warnoptions)):
        return True  # it may have something to say
    if not _flush_streams() or any(name in sys.modules for name in _HARMFUL_LIBRARIES):
        return True
    made = gc.get_objects()
    made += [each for reference in _again if (each := reference()) is not None]
    try:
        if _need_more_than_a_look(made):
            return True
        _flush_c()
        return False
    except Exception:  # noqa: BLE001 -- an object in a state that we have not thought of
        return True


def _silences(option: str) -> bool:
    """Whether this option of Python's `-W` or PYTHONWARNINGS shows no warning that is not shown
    without it."""
    action = option.partition(":")[0].strip()
    return action != "" and "ignore".startswith(action)  # Python takes abbreviations


def _join_threads() -> None:
    """Wait for the threads that are not daemons, as Python does."""
    threading = sys.modules.get("threading")
    if threading is None:
        return
    try:
        threading._shutdown()
    except BaseException:  # noqa: BLE001 -- Ctrl-C while it waits: Python says so, and goes on
        kind, error, traceback = sys.exc_info()
        unraisable: Any = types.SimpleNamespace(
            exc_type=kind, exc_value=error, exc_traceback=traceback, err_msg=None, object=threading
        )
        sys.unraisablehook(unraisable)


def _skip_finalizers_in_memory() -> None:
    """Leave out finalizers of libraries that only tidy up memory: torch has 134, which take 50 ms
    in a forked process."""
    if "torch.library" in sys.modules:
        for each in weakref.finalize._registry.values():  # type: ignore[attr-defined]
            if each.atexit and each.func.__module__ == "torch.library":
                each.atexit = False


def _flush_streams() -> bool:
    """Flush sys.stdout and sys.stderr, whatever they are now; whether that went well."""
    for name in ("stdout", "stderr"):
        try:
            stream = getattr(sys, name, None)  # a program may have deleted it
            if stream is not None and not getattr(stream, "closed", False):
                stream.flush()
        except Exception:  # noqa: BLE001 -- Python tries again, and says what it says
            return False
    return True


def _flush_c() -> None:
    """Flush the streams of the C library, where code that writes to them may have been loaded."""
    global _fflush
    if "ctypes" not in sys.modules:
        return
    if _fflush is None:
        _fflush = sys.modules["ctypes"].CDLL(None).fflush
    _fflush(None)


_fflush: Any = None  # of the C library, once it was looked up


def _need_more_than_a_look(made: list[Any]) -> bool:
    """Whether one of these objects has an end that only Python can give it. Files are flushed."""
    types_made = [*map(type, made)]  # each object is touched once: most are not in the cache
    kinds = set(types_made)
    judgements = {kind: _judge(kind) for kind in kinds}
    if _UNKNOWN in judgements.values():
        return True
    if _has_unknown_extensions() and _refer_to_unknown(made):
        return True
    looked_at = {kind: each for kind, each in judgements.items() if callable(each)}
    # All of this in C: there may be half a million objects.
    for each in compress(made, map(looked_at.__contains__, types_made)):
        if looked_at[type(each)](each):
            return True
    return False


def _refer_to_unknown(made: Iterable[Any]) -> bool:
    """Whether they refer to an object of a type that is unknown: the collector does not know all
    objects itself."""
    seen = gc.get_referents(*made)
    for _ in range(3):  # tuples and dictionaries of what it does not know are unknown to it as well
        if any(_judge(kind) == _UNKNOWN for kind in set(map(type, seen))):
            return True
        seen = gc.get_referents(
            *(each for each in seen if type(each) in (tuple, dict) and not gc.is_tracked(each))
        )
    return False


# ------------------------------------------------------------------ types

_judged: dict[type, Judgement] = {}  # by `prepare`
_modules = 0  # how many were there when they were looked at
_unknown_extensions = False  # whether one of them belongs to a library that we do not know


def _judge(kind: type) -> Judgement:
    """What the end of an object of this type can do. Not kept: what we hold would end later."""
    if kind in _judged:
        return _judged[kind]
    for base in kind.__mro__:
        if base in _LOOKED_AT and (base is kind or base in _MAY_BE_DERIVED):
            return _LOOKED_AT[base]
        name = (_home(base), base.__name__)
        if name == ("sqlite3", "Connection"):
            return _close_database if base is kind or _top(_home(kind)) == "aflow" else _UNKNOWN
        if name in _HARMLESS_DEL and (base is kind or name[0] != "_io"):
            return _NOTHING
        if name[0] == "_asyncio" and name[1] in ("Future", "Task"):
            return _has_unretrieved_error if name[1] == "Future" else _is_pending
        if name in _HARMFUL_BASES or "__del__" in vars(base) or _is_unknown_extension(base):
            return _UNKNOWN
    return _NOTHING


def _is_unknown_extension(kind: type) -> bool:
    """Whether the type is written in C, by a library that we do not know."""
    home = _home(kind)
    top = _top(home)
    if top == "builtins":
        # Types of Rust libraries say that they are of this module.
        return bool(kind.__flags__ & _HEAP_TYPE) and not _is_of_harmless_library(kind)
    if top in _HARMLESS or type(kind).__module__ == "enum":
        return False
    return _is_unknown(sys.modules.get(home))


def _is_of_harmless_library(kind: type) -> bool:
    return any(
        _top(name) in _HARMLESS_LIBRARIES and getattr(module, kind.__name__, None) is kind
        for name, module in [*sys.modules.items()]
        if _is_extension(module)
    )


def _home(kind: type) -> str:
    home: object = kind.__module__
    return home if isinstance(home, str) else ""  # some metaclasses have a descriptor there


def _top(name: str) -> str:
    return name.partition(".")[0]


def _is_unknown(module: object) -> bool:
    """Whether an extension module is of none of the harmless libraries, by its file: some call
    themselves by another name."""
    if not _is_extension(module):
        return False
    parts = (file_of(module) or "").split(os.sep)
    return not any(
        folder in ("site-packages", "dist-packages") and _top(name) in _HARMLESS
        for folder, name in pairwise(parts)
    )


def _is_extension(module: object) -> bool:
    return (file_of(module) or "").endswith((".so", ".pyd"))


def _has_unknown_extensions() -> bool:
    """Whether a library that we do not know has brought extension modules."""
    global _modules, _unknown_extensions
    # The newest are the last; a look at all of them would copy pages that forked processes share.
    new = [*islice(reversed(sys.modules), len(sys.modules) - _modules)]
    _modules = len(sys.modules)
    _unknown_extensions = _unknown_extensions or any(
        _top(name) not in _HARMLESS and _is_unknown(sys.modules.get(name)) for name in new
    )
    return _unknown_extensions


# ------------------------------------------------------------------ objects


def _flush(file: Any) -> bool:
    # A failure is not reported: Python does not report one either when it closes a forgotten file.
    if not file.closed:
        try:
            file.flush()
        except (OSError, ValueError):
            return False
    return False


def _close_database(connection: Any) -> bool:
    """Close it, which is what its end does: an open transaction is rolled back."""
    try:
        connection.close()
    except Exception:  # noqa: BLE001 -- it belongs to another thread
        return True
    return False


def _would_handle_its_end(generator: types.GeneratorType[Any, Any, Any]) -> bool:
    """Whether it stands where a `finally`, `except` or `with` would run."""
    return generator.gi_suspended and len(_handlers(generator.gi_code)) > _NO_HANDLERS


def _handlers(code: types.CodeType) -> set[int]:
    """Where the handlers of exceptions begin: the third number of each entry of the table, which
    holds numbers in groups of six bits, the highest first."""
    numbers: list[int] = []
    value = 0
    for byte in code.co_exceptiontable:
        value = value << 6 | byte & 0x3F
        if not byte & 0x40:
            numbers.append(value)
            value = 0
    return set(numbers[2::4])


def _is_unfinished(coroutine: Any) -> bool:
    """Python closes it, or says that it was never awaited."""
    frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "ag_frame", None)
    return frame is not None


def _has_unretrieved_error(future: Any) -> bool:
    """It has an exception that nobody has asked for."""
    return bool(future._log_traceback)


def _is_pending(task: Any) -> bool:
    return bool(task._log_traceback) or not task.done()


def _has_callback(reference: weakref.ReferenceType[Any]) -> bool:
    """Whether code of the user's runs when what it refers to goes away."""
    callback: Any = reference.__callback__
    if callback is None:
        return False
    home = getattr(getattr(callback, "func", callback), "__module__", None)
    if not isinstance(home, str):
        return False  # a function of C, as the method of a set
    return _top(home) not in _HARMLESS


_LOOKED_AT: dict[type, Judgement] = {
    io.FileIO: _flush,
    io.BufferedReader: _flush,
    io.BufferedWriter: _flush,
    io.BufferedRandom: _flush,
    io.BufferedRWPair: _flush,
    io.TextIOWrapper: _flush,
    types.GeneratorType: _would_handle_its_end,
    types.CoroutineType: _is_unfinished,
    types.AsyncGeneratorType: _is_unfinished,
    weakref.ReferenceType: _has_callback,
}
_MAY_BE_DERIVED = frozenset({weakref.ReferenceType})
