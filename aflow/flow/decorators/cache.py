"""@cache: reuse the result of an earlier task. The coordinator looks for it before the launch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from aflow._core.records import dataclass
from aflow.flow.decorators.base import StepDecorator, written


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache(StepDecorator):
    """Reuse the result of an earlier task with equal code, inputs and declared environment.

    With `enabled=False` the step always runs, even with `run --cache`. Changing `version`
    invalidates all earlier results.
    """

    decorator_name: ClassVar[str] = "cache"
    enabled: bool = True
    version: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.enabled, bool):
            raise self._fault("enabled", "True or False")
        self._set("version", str(self.version))

    def shapes_result(self) -> Mapping[str, object] | None:
        """Return the version, if one is set."""
        return {"version": self.version} if self.version else None


cache = written(Cache)
"""Reuse the result of an earlier task if nothing has changed; see Cache."""
