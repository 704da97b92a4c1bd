"""Environment variables that steps hold for their time.

Coroutine steps run side by side in one process, which has one environment: a variable counts who
holds it, and is put back when the last of them lets go.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from aflow._core.records import dataclass
from aflow.errors import TaskError


@dataclass(slots=True)
class _Held:
    """One variable: its value, what it was before, and how many hold it."""

    value: str
    before: str | None
    holders: int = 0


class Variables:
    """The variables that one kind of decorator sets in this process."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._held: dict[str, _Held] = {}

    def holds(self, name: str) -> bool:
        """Return whether a step that runs holds the variable.

        Args:
            name: The name.
        """
        return name in self._held

    def take(self, values: Mapping[str, str]) -> None:
        """Set variables for a step, all or none.

        Args:
            values: The values, by name.

        Raises:
            TaskError: Another step that runs holds one of them with another value; the values are
                not shown.
        """
        for name, value in values.items():
            held = self._held.get(name)
            if held is not None and held.value != value:
                raise TaskError(
                    f"@{self._kind}: the variable {name} has another value for another coroutine "
                    "step that runs in this process: give both the same, or write one with def."
                )
        for name, value in values.items():
            held = self._held.setdefault(name, _Held(value, os.environ.get(name)))
            held.holders += 1
            os.environ[name] = value

    def release(self, values: Mapping[str, str]) -> None:
        """Release variables that `take` has set; the last release restores what was there.

        Args:
            values: The values, by name.
        """
        for name in values:
            held = self._held[name]
            held.holders -= 1
            if held.holders:
                continue
            del self._held[name]
            if held.before is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = held.before
