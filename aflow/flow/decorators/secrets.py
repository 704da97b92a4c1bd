"""@secrets: environment variables for one step, from where secrets are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from aflow._core.records import dataclass, field
from aflow.flow.decorators.base import StepDecorator, written


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrets(StepDecorator):
    """Variables from `sources`: `"backend.id"`, `"id"` (of the default backend), or a mapping with
    `type`, `id`, `options` and `role`.

    A variable that is set already is an error, unless `allow_override`. `role` is whom to be for
    the backend, where a source names none.
    """

    decorator_name: ClassVar[str] = "secrets"
    hook_class: ClassVar[str] = "aflow.task.secrets:SecretsHook"
    sources: Sequence[str | Mapping[str, Any]] = field(default_factory=list, repr=False)
    role: str | None = None
    allow_override: bool = False

    def __post_init__(self) -> None:
        good = isinstance(self.sources, list | tuple) and all(
            isinstance(each, str | Mapping) for each in self.sources
        )
        if not good:
            # The sources may hold secrets: they are not shown.
            self._set("sources", f"<{type(self.sources).__name__}>")
            raise self._fault("sources", "a list of texts and mappings")

    def shapes_result(self) -> None:
        """None: another password gives the same result."""


secrets = written(Secrets)
"""Set environment variables from where secrets are kept; see Secrets."""
