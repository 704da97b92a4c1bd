"""@card: an HTML page that a step creates. Implemented by `aflow.cards.hooks`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from aflow._core.records import dataclass, field
from aflow.flow.decorators.base import StepDecorator, written

_ID = re.compile(r"[A-Za-z0-9_]+\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class CardDecorator(StepDecorator):
    """Create a card of the kind `type`.

    `id` distinguishes the cards of a step that has several; `options` are passed to the card.
    Rendering may take at most `timeout` seconds. With `save_errors` a card that fails is replaced
    by one with the error. `refresh_interval` is the minimum time in seconds between two refreshes.
    With `customize`, `current.card` is this card. `scope` is accepted for compatibility, and has no
    effect.
    """

    decorator_name: ClassVar[str] = "card"
    hook_class: ClassVar[str] = "aflow.cards.hooks:CardHook"
    repeatable: ClassVar[bool] = True
    type: str = "default"
    id: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    timeout: float = 45
    scope: str = "task"
    save_errors: bool = True
    customize: bool = False
    refresh_interval: float = 5

    def __post_init__(self) -> None:
        if self.id is not None:
            if not _ID.match(str(self.id)):
                raise self._fault("id", "letters, digits and _")
            self._set("id", str(self.id))  # --with card:id=5 gives a number
        if not isinstance(self.options, Mapping):
            raise self._fault("options", "a mapping")
        self._number("timeout", positive=True)
        self._number("refresh_interval")

    def shapes_result(self) -> None:
        """Return None: a card is not part of the result of a step."""


card = written(CardDecorator)
"""Create a card; see CardDecorator."""
