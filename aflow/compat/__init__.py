"""Compatibility with Metaflow: its module names, and its small helpers.

After `aflow.compat.install()`, `import metaflow` imports aflow; see `metaflow.py`.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    from importlib import import_module  # lazy: imported only when a name is accessed

    if name.startswith("__"):
        raise AttributeError(f"module 'aflow.compat' has no attribute {name!r}")
    return getattr(import_module("aflow.compat.metaflow"), name)
