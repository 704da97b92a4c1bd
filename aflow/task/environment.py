"""Environment variables that steps set while they run.

Coroutine steps run concurrently in one process, which has one environment. Each variable counts its
holders, and is restored when the last one releases it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from aflow._core.records import dataclass
from aflow.errors import TaskError


@dataclass(slots=True)
class _Held:
    """One variable: its value, its previous value, and the number of its holders."""

    value: str
    before: str | None
    holders: int = 0


class Variables:
    """The variables that one kind of decorator sets in this process."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._held: dict[str, _Held] = {}

    def holds(self, name: str) -> bool:
        """Return whether a running step holds the variable.

        Args:
            name: The name of the variable.
        """
        return name in self._held

    def take(self, values: Mapping[str, str]) -> None:
        """Set variables for a step: all or none.

        Args:
            values: The values, by name.

        Raises:
            TaskError: If another running step holds one of them with another value, or a value
                cannot be encoded; the message does not contain the values.
        """
        for name, value in values.items():
            try:
                os.fsencode(value)
            except UnicodeEncodeError:
                raise TaskError(
                    f"@{self._kind}: the value of the variable {name} has a character that no "
                    "environment variable can have (half of a surrogate pair)."
                ) from None
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
        """Release variables that `take` has set; the last release restores the previous value.

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
