"""@cache: do not compute again what was computed before. Carried out before a task is launched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from aflow._core.records import dataclass
from aflow.flow.decorators.base import StepDecorator, written


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache(StepDecorator):
    """Do not run a task again whose code, inputs and declared environment are those of a task that
    has succeeded before: take its result.

    With `enabled=False` the step always runs, under `run --cache`, too. Another `version` means
    that what was computed before no longer counts.
    """

    decorator_name: ClassVar[str] = "cache"
    enabled: bool = True
    version: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.enabled, bool):
            raise self._fault("enabled", "True or False")
        self._set("version", str(self.version))

    def shapes_result(self) -> Mapping[str, object] | None:
        """The version, if there is one."""
        return {"version": self.version} if self.version else None


cache = written(Cache)
"""Take the result of an earlier task where nothing has changed; see Cache."""
