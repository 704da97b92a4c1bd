"""@card: a page that a step leaves for people. Carried out by `aflow.cards.hooks`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from aflow._core.records import dataclass, field
from aflow.flow.decorators.base import StepDecorator, written

_ID = re.compile(r"[A-Za-z0-9_]+\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class CardDecorator(StepDecorator):
    """A card of kind `type`, with `id` if the step has several; `options` are for that kind.

    Making it may take `timeout` seconds; with `save_errors` a card that fails is replaced by one
    that says why. `refresh_interval` is the least time in seconds between two refreshes;
    `customize` lets `current.card` mean this card alone. `scope` is accepted for old code.
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
        """None: a card shows what a step leaves, and is not part of it."""


card = written(CardDecorator)
"""Leave a card; see CardDecorator."""
