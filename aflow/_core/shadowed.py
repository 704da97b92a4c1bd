"""Files of the user's that are named like a module that aflow needs: `queue.py`, `signal.py`.

Python puts the folder of a program first on sys.path, so that a file there is imported in place of
a module of its name. aflow imports some modules late, when they are needed: by then they could not
be found any more. So they are imported before the program, which sees no difference unless it
imports the file of that name itself. Then it is refused: both cannot be the module of that name.
"""

# Without `from __future__ import annotations`, here and in all that `import aflow` imports first:
# a file of the program may hide that module, too.
import os
import sys

# What aflow itself asks for, by the names under which it is imported.
_OURS = frozenset(
    {"blake3", "click", "cloudpickle", "msgpack", "packaging", "rich", "uvloop", "zstandard"}
)
# Importing them does something, or takes long, and no library asks for them.
_NEVER = frozenset(
    {"antigravity", "idlelib", "lib2to3", "test", "this", "tkinter", "turtle", "turtledemo"}
)
# What every run imports of the standard library, in some of its processes. A program may have
# modules of all other names for itself: whether it then finds what it needs of Python's is as
# without aflow.
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
    """Import the module that a program would hide by its own name, if aflow or the standard library
    may import it later.

    Args:
        name: The name of the program's module.
        folder: The folder of the program; "" for the working folder.
    """
    if name in sys.modules or name in _NEVER:
        return
    if name not in sys.stdlib_module_names and name not in _OURS:
        return
    _import_from_elsewhere([name], folder)


def keep_hidden_by_main() -> None:
    """The same for the file that Python runs as `__main__`, if it is one, and for those beside it.

    Raises SystemExit, with one sentence on stderr, where the program cannot be run beside one of
    them."""
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    if not file or not sys.path or not sys.path[0]:
        return
    folder, base = os.path.split(os.path.abspath(file))
    keep_importable(base.removesuffix(".py"), folder)
    first = os.path.realpath(sys.path[0])
    inside = os.path.realpath(file).removeprefix(os.path.join(first, ""))
    # What lies elsewhere, or was installed, has not got its modules from there.
    if not os.path.isabs(inside) and "site-packages" not in inside:
        refusal = keep_hidden_beside(file, first) or _hides_from_python(first)
        if refusal is not None:
            sys.stderr.write(f"{file}: {refusal}\n")
            raise SystemExit(2)


# Since 3.13 Python imports this before it runs the program of `python -c`, which is how processes
# for tasks are started beside this one: with the folder on its path. What linecache itself needs it
# imports when a line is asked for: by then our program has taken the folder from the path.
BEFORE_PROGRAMS = frozenset({"linecache"} if sys.version_info >= (3, 13) else ())


def _hides_from_python(folder: str) -> str | None:
    """The sentence that says why no process for tasks can be started in this folder."""
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
    """Import the modules that files beside a program hide, before the program's folder is searched
    first.

    Args:
        file: The program, which has its modules in `folder`; None if there is no file.
        folder: The folder whose files hide modules; "" for the working folder.

    Returns:
        The sentence that says why that is not possible, where the program imports one of them
        itself; else None.
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
    """The names of modules that are imported from this folder in place of those of others."""
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
    """Whether Python has this module in itself, where no file can hide it."""
    import _imp

    return name in sys.builtin_module_names or bool(_imp.is_frozen(name))


def _import_from_elsewhere(names: list[str], folder: str) -> None:
    """Import modules as if nothing were in this folder."""
    path = sys.path[:]
    hiding = os.path.realpath(folder or os.curdir)
    sys.path[:] = [each for each in path if os.path.realpath(each or os.curdir) != hiding]
    try:
        for name in names:
            if name not in sys.modules:
                try:
                    __import__(name)
                except (ImportError, Warning):  # it is not there, or on its way out of Python
                    continue
    finally:
        sys.path[:] = path


def _imported_by(file: str, folder: str) -> set[str]:
    """The names of the modules that a file imports, and those that files beside it import that it
    imports itself."""
    import ast

    found: set[str] = set()
    todo, seen = [file], set()
    while todo:
        each = todo.pop()
        seen.add(each)
        try:
            with open(each, "rb") as opened:
                tree = ast.parse(opened.read())
        except (OSError, SyntaxError, ValueError):  # said where it is run
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
