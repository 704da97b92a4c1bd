"""@environment: environment variables for one step. Implemented by the runner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from aflow._core.records import dataclass, field
from aflow.errors import InvalidDecorator
from aflow.flow.decorators.base import StepDecorator, written
from aflow.flow.names import shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment(StepDecorator):
    """Set environment variables for the step. Values are converted to text."""

    decorator_name: ClassVar[str] = "environment"
    vars: Mapping[str, Any] = field(default_factory=dict, repr=False)  # may hold secrets

    def __post_init__(self) -> None:
        if not isinstance(self.vars, Mapping):
            raise InvalidDecorator(
                '@environment: vars must be a mapping such as {"NAME": "value"}, not of type '
                f"{type(self.vars).__name__}."
            )
        checked = {key: str(value) for key, value in self.vars.items()}
        for key, value in checked.items():
            if not _can_be_variable(key):
                raise InvalidDecorator(
                    f"@environment: {shown(key)} cannot be the name of an environment variable."
                )
            if "\0" in value:
                # The message must not contain the value, which may be a secret.
                raise InvalidDecorator(f"@environment: the value of {key} has a NUL character.")
        self._set("vars", checked)

    def shapes_result(self) -> Mapping[str, object]:
        """Return the variables, by name."""
        return self.vars


environment = written(Environment)
"""Set environment variables for the step; see Environment."""


def _can_be_variable(key: object) -> bool:
    return isinstance(key, str) and bool(key) and "=" not in key and "\0" not in key
