"""Cards: HTML pages created by steps, one self-contained file each.

Components, `Card` and `get_cards` can be imported from here; each is imported on first use.
"""

from __future__ import annotations

from typing import Any

_HOMES = {
    "aflow.cards.card": "BlankCard Card DefaultCard ErrorCard JSONCard TaskspecCard",
    "aflow.cards.components": (
        "Artifact Component Error Image JSONViewer Markdown ProgressBar PythonCode Table ValueBox "
        "VegaChart EventsTimeline Page YAMLViewer"
    ),
    "aflow.cards.get": "CardContainer FoundCard get_cards",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = [  # noqa: PLE0604 -- strings that __getattr__ resolves
    *sorted(_HOME_OF)
]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'aflow.cards' has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
