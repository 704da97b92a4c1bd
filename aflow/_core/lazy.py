"""Packages whose modules are imported when they are first used.

Of many packages a process uses one module or two: of the object stores the one that its settings
name. So a caller writes `from aflow import storage` at its top and `storage.s3.S3Store(...)` where
it opens one, and pays for nothing else.
"""

import sys

TYPE_CHECKING = False  # `import aflow` imports this, and typing would cost more than all the rest
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import ModuleType


def modules_of(package: str, names: "Iterable[str]") -> "Callable[[str], ModuleType]":
    """Return a `__getattr__` for a package, which imports its modules when they are first used.

    For type checkers the package imports them in `if TYPE_CHECKING`, and has no `__getattr__`, so
    that they find a name that is misspelt. An attribute of any other name raises AttributeError, as
    without it.

    Args:
        package: The full name of the package.
        names: The names of its modules.
    """
    known = frozenset(names)

    def module(name: str) -> "ModuleType":
        if name not in known:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        full = f"{package}.{name}"
        __import__(full)  # which binds it in the package: this function is not asked again
        return sys.modules[full]

    return module
