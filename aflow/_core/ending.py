"""Exit a process with the same effects as Python's finalization, but faster.

The finalization of the interpreter clears every module, which takes 10 ms without libraries and
some hundred with those for data science. `os._exit` is fast, but skips what the finalization does:
flushing files, calling `__del__`, running `finally` blocks of generators. So the exit is *judged*:
after joining threads and running exit functions as usual, the types of all objects are checked. If
finalizing them would only close plain files, these are flushed here and the process calls
`os._exit`. If it could have other effects, the interpreter finalizes the process.

A type that is not known to be harmless counts as harmful, which takes time but loses nothing. No
method of a user's class is called here.

Objects in the permanent generation of the garbage collector (`gc.freeze`) are not checked. Only
objects that were created before the user's code ran may be in it, or objects that were checked
before (`look_ahead`).
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

# The effects outside of the process that finalizing an object of a type can have. A function checks
# the object itself: it does what Python would do, or returns True if Python must do it.
_NOTHING = None
_UNKNOWN = "unknown"
Judgement = Callable[[Any], bool] | str | None

_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE
_NO_HANDLERS = 0 if sys.version_info < (3, 12) else 1  # 3.12 adds one to each generator

# `__del__` methods without effects outside of the process: they free memory, close descriptors,
# which the kernel also does, or emit warnings that are disabled by default.
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

# Libraries whose extension types only own memory, or resources that the kernel releases.
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
# Types of these libraries, and of the standard library, whose finalization has other effects.
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
# Libraries that register exit functions in C, or whose objects the garbage collector does not list.
_HARMFUL_LIBRARIES = ("h5py", "mpi4py", "netCDF4", "tables")


class Leave(SystemExit):
    """The SystemExit that `MyFlow()` raises, so that `finally`, `with`, pytest and debuggers work.

    If it is not caught, the interpreter reads `code` after all frames have ended, and the process
    exits by a judged exit.
    """

    @property
    def code(self) -> int:  # type: ignore[override]
        """The exit code."""
        code: int = self.args[0]
        try:
            sys._getframe(1)
        except ValueError:  # there is no Python frame above: the interpreter reads the code
            _end_or_thaw(code)
        return code


def leave(code: int = 0, release: Callable[[], None] | None = None) -> NoReturn:
    """Exit this process by a judged exit, from any stack depth.

    `finally` blocks of the callers do not run, and objects on the stack are not finalized. If the
    stack can be unwound, `raise Leave(code)` is better.

    Args:
        code: The exit code.
        release: Drops the references of the caller to the user's objects. It is only called if the
            interpreter finalizes the process, because in a forked process it copies memory pages.
    """
    _end_or_thaw(code, release)
    import ctypes  # slow to import, and rarely needed

    ctypes.pythonapi.Py_Exit(code)
    raise AssertionError("Py_Exit does not return")


def _end_or_thaw(code: int, release: Callable[[], None] | None = None) -> None:
    """Exit if Python need not finalize the process; otherwise unfreeze all objects.

    Python does not finalize frozen objects, so their files would not be flushed.
    """
    if not _needs_interpreter():
        os._exit(code & 0xFF)
    if release is not None:
        release()
    gc.unfreeze()


_is_judging = False  # whether exit functions run as part of a judged exit


def thaw() -> None:
    """Unfreeze all objects if Python finalizes the process; an exit function."""
    if not _is_judging:
        gc.unfreeze()


def exit_code(error: SystemExit) -> int:
    """Return the exit code for a SystemExit; print its text to stderr if it has one, like Python.

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
    """Judge all existing types, so that forked processes need not do so."""
    for kind in set(map(type, gc.get_objects())):
        _judged[kind] = _judge(kind)
    _has_unknown_extensions()
    _skip_finalizers_in_memory()
    _flush_c()  # looks up the function, so that forked processes need not do so


def look_ahead() -> None:
    """Check all existing objects in advance, in a process that is waiting, and freeze them.

    If all are harmless, the exit only needs to check objects that are created later.
    """
    made = gc.get_objects()
    types_made = [*map(type, made)]
    judgements = {kind: _judge(kind) for kind in set(types_made)}
    if _UNKNOWN in judgements.values() or _has_unknown_extensions():
        return
    looked_at = {kind for kind, each in judgements.items() if callable(each)}
    again = []  # files, generators etc., whose effects depend on their state at the exit
    for each in compress(made, map(looked_at.__contains__, types_made)):
        if type(each) is not weakref.ReferenceType:
            try:
                again.append(weakref.ref(each))
            except TypeError:  # the type does not support weak references
                return
        elif _has_callback(each):
            return
    _again.extend(again)
    atexit.register(thaw)
    gc.freeze()


_again: list[weakref.ReferenceType[Any]] = []


# ------------------------------------------------------------------ the end


def _needs_interpreter() -> bool:
    """Do what Python does before it clears modules; return whether it must finalize the process."""
    global _is_judging
    _join_threads()
    _skip_finalizers_in_memory()
    _is_judging = True
    atexit._run_exitfuncs()
    _is_judging = False
    if sys.flags.dev_mode or sys.flags.verbose or not all(map(_silences, sys.warnoptions)):
        return True  # Python may print warnings
    if not _flush_streams() or any(name in sys.modules for name in _HARMFUL_LIBRARIES):
        return True
    made = gc.get_objects()
    made += [each for reference in _again if (each := reference()) is not None]
    try:
        if _need_more_than_a_look(made):
            return True
        _flush_c()
        return False
    except Exception:  # noqa: BLE001 -- an object in an unexpected state
        return True


def _silences(option: str) -> bool:
    """Return whether an option of Python's `-W` or PYTHONWARNINGS does not enable any warning."""
    action = option.partition(":")[0].strip()
    return action != "" and "ignore".startswith(action)  # Python takes abbreviations


def _join_threads() -> None:
    """Wait for all non-daemon threads, like Python."""
    threading = sys.modules.get("threading")
    if threading is None:
        return
    try:
        threading._shutdown()
    except BaseException:  # noqa: BLE001 -- Python reports Ctrl-C during the wait, and continues
        kind, error, traceback = sys.exc_info()
        unraisable: Any = types.SimpleNamespace(
            exc_type=kind, exc_value=error, exc_traceback=traceback, err_msg=None, object=threading
        )
        sys.unraisablehook(unraisable)


def _skip_finalizers_in_memory() -> None:
    """Disable finalizers of torch that only free memory: all 134 take 50 ms in a forked process."""
    if "torch.library" in sys.modules:
        for each in weakref.finalize._registry.values():  # type: ignore[attr-defined]
            if each.atexit and each.func.__module__ == "torch.library":
                each.atexit = False


def _flush_streams() -> bool:
    """Flush the current sys.stdout and sys.stderr, and then the first ones, to which those may
    write; return whether that succeeded."""
    for name in ("stdout", "stderr", "__stdout__", "__stderr__"):
        try:
            stream = getattr(sys, name, None)  # a program may have deleted it
            if stream is not None and not getattr(stream, "closed", False):
                stream.flush()
        except Exception:  # noqa: BLE001 -- Python will retry and report the error
            return False
    return True


def _flush_c() -> None:
    """Flush the streams of the C library, if code that writes to them may have been loaded."""
    global _fflush
    if "ctypes" not in sys.modules:
        return
    if _fflush is None:
        _fflush = sys.modules["ctypes"].CDLL(None).fflush
    _fflush(None)


_fflush: Any = None  # the function of the C library, after the first call


def _need_more_than_a_look(made: list[Any]) -> bool:
    """Return whether Python must finalize one of these objects; flush those that are files."""
    types_made = [*map(type, made)]  # touch each object only once: most are not in the CPU cache
    kinds = set(types_made)
    judgements = {kind: _judge(kind) for kind in kinds}
    if _UNKNOWN in judgements.values():
        return True
    if _has_unknown_extensions() and _refer_to_unknown(made):
        return True
    looked_at = {kind: each for kind, each in judgements.items() if callable(each)}
    # The loop is mostly in C, because there may be half a million objects.
    for each in compress(made, map(looked_at.__contains__, types_made)):
        if looked_at[type(each)](each):
            return True
    return False


def _refer_to_unknown(made: Iterable[Any]) -> bool:
    """Return whether the objects refer to one of an unknown type.

    The garbage collector does not track all objects.
    """
    seen = gc.get_referents(*made)
    for _ in range(3):  # nor does it track tuples and dicts that only contain untracked objects
        if any(_judge(kind) == _UNKNOWN for kind in set(map(type, seen))):
            return True
        seen = gc.get_referents(
            *(each for each in seen if type(each) in (tuple, dict) and not gc.is_tracked(each))
        )
    return False


# ------------------------------------------------------------------ types

_judged: dict[type, Judgement] = {}  # filled by `prepare`
_modules = 0  # the number of modules that were already checked
_unknown_extensions = False  # whether one of them is an extension of an unknown library


def _judge(kind: type) -> Judgement:
    """Return the judgement of a type.

    It is not cached: a reference would keep the type alive, and delay its finalization.
    """
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
    """Return whether the type is defined in an extension module of an unknown library."""
    home = _home(kind)
    top = _top(home)
    if top == "builtins":
        # Types of Rust libraries have this `__module__`.
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
    """Return whether a module is an extension that does not belong to a harmless library.

    Checks its file, because the names of some extension modules do not contain the library.
    """
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
    """Return whether an extension module of an unknown library has been imported."""
    global _modules, _unknown_extensions
    # Only check new modules, which are last: reading all would copy shared pages after a fork.
    new = [*islice(reversed(sys.modules), len(sys.modules) - _modules)]
    _modules = len(sys.modules)
    _unknown_extensions = _unknown_extensions or any(
        _top(name) not in _HARMLESS and _is_unknown(sys.modules.get(name)) for name in new
    )
    return _unknown_extensions


# ------------------------------------------------------------------ objects


def _flush(file: Any) -> bool:
    # Ignore failures, as Python does when it finalizes an open file.
    if not file.closed:
        try:
            file.flush()
        except (OSError, ValueError):
            return False
    return False


def _close_database(connection: Any) -> bool:
    """Close a connection, as its finalization would; an open transaction is rolled back."""
    try:
        connection.close()
    except Exception:  # noqa: BLE001 -- it belongs to another thread
        return True
    return False


def _would_handle_its_end(generator: types.GeneratorType[Any, Any, Any]) -> bool:
    """Return whether a generator is suspended, and its code has a `finally`, `except` or `with`."""
    return generator.gi_suspended and len(_handlers(generator.gi_code)) > _NO_HANDLERS


def _handlers(code: types.CodeType) -> set[int]:
    """Return the offsets of the exception handlers of a code object.

    The offset is the third number of each entry in the exception table, which encodes numbers in
    groups of six bits, most significant first.
    """
    numbers: list[int] = []
    value = 0
    for byte in code.co_exceptiontable:
        value = value << 6 | byte & 0x3F
        if not byte & 0x40:
            numbers.append(value)
            value = 0
    return set(numbers[2::4])


def _is_unfinished(coroutine: Any) -> bool:
    """Return whether Python would close the coroutine, or warn that it was never awaited."""
    frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "ag_frame", None)
    return frame is not None


def _has_unretrieved_error(future: Any) -> bool:
    """Return whether the future has an exception that was never retrieved."""
    return bool(future._log_traceback)


def _is_pending(task: Any) -> bool:
    return bool(task._log_traceback) or not task.done()


def _has_callback(reference: weakref.ReferenceType[Any]) -> bool:
    """Return whether a weak reference has a callback that may be code of the user."""
    callback: Any = reference.__callback__
    if callback is None:
        return False
    home = getattr(getattr(callback, "func", callback), "__module__", None)
    if not isinstance(home, str):
        return False  # a C function, such as a method of a set
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
