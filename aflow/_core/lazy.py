"""Packages whose modules are imported when they are first used.

A process often uses one or two modules of a package, such as the one for the datastore in its
settings. So a module has `from aflow import storage` at its top and calls
`storage.s3.S3Store(...)`, and the other modules of the package are not imported.
"""

import sys

TYPE_CHECKING = False  # `import aflow` imports this module, and importing typing is slow
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import ModuleType


def modules_of(package: str, names: "Iterable[str]") -> "Callable[[str], ModuleType]":
    """Return a `__getattr__` for a package that imports its modules when they are first used.

    It raises AttributeError for other names. For type checkers the package imports the modules in
    `if TYPE_CHECKING`, and has no `__getattr__`, so that they report misspelled names.

    Args:
        package: The full name of the package.
        names: The names of its modules.
    """
    known = frozenset(names)

    def module(name: str) -> "ModuleType":
        if name not in known:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        full = f"{package}.{name}"
        __import__(full)  # also sets the attribute of the package
        return sys.modules[full]

    return module
