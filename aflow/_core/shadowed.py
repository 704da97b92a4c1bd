"""Files of the user that shadow a module that aflow needs: `queue.py`, `signal.py`.

Python puts the folder of a program first on sys.path, so that a file there shadows a module of the
same name. aflow imports some modules late, and would import the user's file instead. So it imports
shadowed modules before it runs the program. If the program itself imports the file of that name,
aflow rejects the program, because only one of them can be the module of that name.
"""

# No `from __future__ import annotations` here and in the modules that `import aflow` imports first:
# a file of the program may also shadow `__future__`.
import os
import sys

# The import names of aflow's dependencies.
_OURS = frozenset(
    {"blake3", "click", "cloudpickle", "msgpack", "packaging", "rich", "uvloop", "zstandard"}
)
# Modules that libraries do not import, and whose import is slow or has side effects.
_NEVER = frozenset(
    {"antigravity", "idlelib", "lib2to3", "test", "this", "tkinter", "turtle", "turtledemo"}
)
# The modules of the standard library that some process of every run imports. A program may shadow
# all others, with the same consequences as without aflow.
NEEDED = frozenset(
    """
    __future__ array ast asyncio base64 binascii bisect bz2 collections concurrent contextlib
    contextvars copy copyreg ctypes dataclasses datetime dis encodings enum fcntl fnmatch
    functools gettext glob grp hashlib heapq importlib inspect ipaddress json keyword linecache
    locale logging lzma math mmap ntpath opcode operator pathlib pickle platform queue random re
    reprlib resource select selectors shlex shutil signal socket sqlite3 ssl stat string struct
    subprocess sysconfig tarfile tempfile textwrap threading token tokenize traceback types
    typing urllib uuid warnings weakref zlib
    """.split()  # noqa: SIM905 -- a list has a line for each
)


def keep_importable(name: str, folder: str) -> None:
    """Import the module that a program shadows by its own name, if it may be imported later.

    Args:
        name: The name of the program's module.
        folder: The folder of the program; "" for the working directory.
    """
    if name in sys.modules or name in _NEVER:
        return
    if name not in sys.stdlib_module_names and name not in _OURS:
        return
    _import_from_elsewhere([name], folder)


def keep_hidden_by_main() -> None:
    """Import the modules that are shadowed by the file of `__main__`, or by files next to it.

    Prints an error and raises SystemExit if that is not possible.
    """
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    if not file or not sys.path or not sys.path[0]:
        return
    folder, base = os.path.split(os.path.abspath(file))
    keep_importable(base.removesuffix(".py"), folder)
    first = os.path.realpath(sys.path[0])
    inside = os.path.realpath(file).removeprefix(os.path.join(first, ""))
    # A program in another folder, or an installed one, does not import its modules from there.
    if not os.path.isabs(inside) and "site-packages" not in inside:
        refusal = keep_hidden_beside(file, first) or _hides_from_python(first)
        if refusal is not None:
            sys.stderr.write(f"{file}: {refusal}\n")
            raise SystemExit(2)


# aflow starts processes for tasks with `python -c`, which has the working directory on its path.
# Since 3.13 Python imports linecache before it runs the code. linecache imports its own
# dependencies later, when aflow has already removed the folder from the path.
BEFORE_PROGRAMS = frozenset({"linecache"} if sys.version_info >= (3, 13) else ())


def _hides_from_python(folder: str) -> str | None:
    """Return an error message if files in the folder prevent starting processes there."""
    name = next((each for each in _hidden_in(folder) if each in BEFORE_PROGRAMS), None)
    return None if name is None else _refusal(name, folder)


def _refusal(name: str, folder: str) -> str:
    place = os.path.join(folder, name)
    file = place if os.path.isdir(place) else f"{place}.py"
    return (
        f"The module {name} is imported from {file}, which hides the one of Python's that aflow "
        "needs. Give it another name."
    )


def keep_hidden_beside(file: str | None, folder: str) -> str | None:
    """Import the modules that are shadowed by files next to a program.

    Args:
        file: The program, which imports modules from `folder`; None if there is no file.
        folder: The folder whose files shadow modules; "" for the working directory.

    Returns:
        An error message if the program itself imports a file that shadows a module that aflow
        needs; otherwise None.
    """
    own = "" if file is None else os.path.basename(file).removesuffix(".py")
    hidden = [name for name in _hidden_in(folder) if name != own]
    if not hidden:
        return None
    found: set[str] = set()
    if file is not None:
        _import_from_elsewhere(["ast"], folder)
        found = _imported_by(file, folder)
    _import_from_elsewhere(
        [each for each in hidden if each not in found and (file is not None or each in NEEDED)],
        folder,
    )
    for name in hidden:
        if name in found and name in NEEDED:
            return _refusal(name, folder)
    return None


def _hidden_in(folder: str) -> list[str]:
    """Return the names of known modules that files in this folder shadow."""
    try:
        entries = os.listdir(folder or os.curdir)
    except OSError:
        return []
    found = set()
    for entry in entries:
        name, _, suffix = entry.partition(".")
        if name in _NEVER or not (name in sys.stdlib_module_names or name in _OURS):
            continue
        if suffix.endswith(("py", "pyc", "so")) or (
            name == entry and os.path.isfile(os.path.join(folder, name, "__init__.py"))
        ):
            found.add(name)
    return sorted(each for each in found if not _comes_first(each))


def _comes_first(name: str) -> bool:
    """Return whether the module is built-in or frozen, so that no file can shadow it."""
    import _imp

    return name in sys.builtin_module_names or bool(_imp.is_frozen(name))


def _import_from_elsewhere(names: list[str], folder: str) -> None:
    """Import modules with this folder removed from sys.path."""
    path = sys.path[:]
    hiding = os.path.realpath(folder or os.curdir)
    sys.path[:] = [each for each in path if os.path.realpath(each or os.curdir) != hiding]
    try:
        for name in names:
            if name not in sys.modules:
                try:
                    __import__(name)
                except (ImportError, Warning):  # not installed, or deprecated
                    continue
    finally:
        sys.path[:] = path


def _imported_by(file: str, folder: str) -> set[str]:
    """Return the names of modules that a file imports, also through other files in `folder`."""
    import ast

    found: set[str] = set()
    todo, seen = [file], set()
    while todo:
        each = todo.pop()
        seen.add(each)
        try:
            with open(each, "rb") as opened:
                tree = ast.parse(opened.read())
        except (OSError, SyntaxError, ValueError):  # reported when the program runs
            continue
        names = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names.add(node.module.partition(".")[0])
        found |= names
        for name in names:
            for place in (f"{name}.py", os.path.join(name, "__init__.py")):
                beside = os.path.join(folder, place)
                if beside not in seen and os.path.isfile(beside):
                    todo.append(beside)
    return found
