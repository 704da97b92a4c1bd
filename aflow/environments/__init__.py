"""The packages that steps name (`@pypi`, `@conda`): solved, locked, and built into environments."""

from __future__ import annotations

from aflow._core.lazy import modules_of

__all__ = ["prepare", "record", "shipping", "solve", "transport"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from aflow.environments import prepare, record, shipping, solve, transport
else:
    __getattr__ = modules_of(__name__, __all__)
