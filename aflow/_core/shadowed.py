"""Flow files that are named like a module that aflow needs: `queue.py`, `json.py`, `click.py`.

Python puts the folder of a program first on sys.path, so that the program's file would be imported
in place of a module of its name. aflow imports some modules late, when they are needed: by then
they could not be found any more.
"""

from __future__ import annotations

import os
import sys

# What aflow itself asks for, by the names under which it is imported.
_OURS = frozenset(
    {"blake3", "click", "cloudpickle", "msgpack", "packaging", "rich", "uvloop", "zstandard"}
)
_EFFECTS = frozenset({"antigravity", "this"})  # importing them does something, and nobody needs it


def keep_importable(name: str, folder: str) -> None:
    """Import the module that the program called `name` in this folder ("" for the working folder)
    would hide, if aflow or the standard library may ask for it later."""
    if name in sys.modules or name in _EFFECTS:
        return
    if name not in sys.stdlib_module_names and name not in _OURS:
        return
    path = sys.path[:]
    hiding = os.path.realpath(folder or os.curdir)
    sys.path[:] = [each for each in path if os.path.realpath(each or os.curdir) != hiding]
    try:
        __import__(name)
    except ImportError:  # it is not there, and so nobody can need it
        return
    finally:
        sys.path[:] = path


def keep_hidden_by_main() -> None:
    """The same for the file that Python runs as `__main__`, if it is one."""
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    if file:
        folder, base = os.path.split(file)
        keep_importable(base.removesuffix(".py"), folder)
