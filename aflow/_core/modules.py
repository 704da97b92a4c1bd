"""Read attributes of modules without running their code.

`sys.modules` may contain arbitrary objects: lazy modules, wrappers, modules whose `__getattr__`
raises exceptions. Code that iterates over them must not fail, and must not import anything.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

# This bypasses `__getattribute__` of subclasses, which may load the module.
_variables_of = vars(ModuleType)["__dict__"].__get__


def stated(module: object, name: str) -> Any:
    """Return an attribute of a module, such as `__version__`, or None.

    Args:
        module: A value of `sys.modules`, or None.
        name: The name of the attribute.
    """
    if issubclass(type(module), ModuleType):
        return (_variables_of(module) or {}).get(name)
    return found_at(module, name)


def file_of(module: object) -> str | None:
    """Return the `__file__` of a module; None if it has none.

    Args:
        module: A value of `sys.modules`, or None.
    """
    file = stated(module, "__file__")
    return file if isinstance(file, str) else None


def found_at(module: object, qualname: str, default: Any = None) -> Any:
    """Return the value of a dotted name in a module, or a default.

    Args:
        module: The module, or any other object.
        qualname: The names of attributes, separated by dots, outermost first.
        default: The result if an attribute does not exist, or reading it raises an exception.
    """
    found = module
    try:
        for part in qualname.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit):  # noqa: BLE001 -- the user's own `__getattr__`
        return default
    return found
