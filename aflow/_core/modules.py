"""What modules state of themselves, read without running code of theirs.

`sys.modules` holds whatever programs put there: modules that load themselves when they are asked
for anything, wrappers, modules whose `__getattr__` raises any exception. To look at all of them
must neither fail nor import anything.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

# Also of classes whose own `__getattribute__` would load the module.
_variables_of = vars(ModuleType)["__dict__"].__get__


def stated(module: object, name: str) -> Any:
    """Return what a module states under a name such as `__version__`; None where it states nothing.

    Args:
        module: A value of `sys.modules`, or None.
        name: The name of the attribute.
    """
    if issubclass(type(module), ModuleType):
        return (_variables_of(module) or {}).get(name)
    return found_at(module, name)


def file_of(module: object) -> str | None:
    """Return the file that a module states; None where it states none.

    Args:
        module: A value of `sys.modules`, or None.
    """
    file = stated(module, "__file__")
    return file if isinstance(file, str) else None


def found_at(module: object, qualname: str, default: Any = None) -> Any:
    """Return what a dotted name leads to in a module; `default` where it leads nowhere, also where
    the code of the module or of a class raises.

    Args:
        module: The module, or None.
        qualname: The names of attributes, from the outermost on, with dots between.
        default: What stands for nothing.
    """
    found = module
    try:
        for part in qualname.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit):  # noqa: BLE001 -- the user's own `__getattr__`
        return default
    return found
