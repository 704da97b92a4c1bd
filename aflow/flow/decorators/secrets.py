"""@secrets: environment variables for one step, from a secrets backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from aflow._core.records import dataclass, field
from aflow.flow.decorators.base import StepDecorator, written


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrets(StepDecorator):
    """Set environment variables from `sources`.

    A source is `"backend.id"`, `"id"` (of the default backend), or a mapping with `type`, `id`,
    `options` and `role`. It is an error if a variable is already set, unless `allow_override` is
    True. `role` is the role to assume for sources that do not have one.
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
            # The message must not contain the sources, which may contain secrets.
            self._set("sources", f"<{type(self.sources).__name__}>")
            raise self._fault("sources", "a list of texts and mappings")

    def shapes_result(self) -> None:
        """Return None: the result does not depend on secrets."""


secrets = written(Secrets)
"""Set environment variables from stores of secrets; see Secrets."""
