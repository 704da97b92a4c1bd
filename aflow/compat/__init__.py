"""What stands for Metaflow: its names, and the small helpers that its users know.

`aflow.compat.install()` makes `import metaflow` give aflow; see `metaflow.py`.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    from importlib import import_module  # lazy: nothing is imported before it is asked for

    if name.startswith("__"):
        raise AttributeError(f"module 'aflow.compat' has no attribute {name!r}")
    return getattr(import_module("aflow.compat.metaflow"), name)
