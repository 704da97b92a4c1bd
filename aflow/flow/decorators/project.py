"""@project: a group of flows, with branches that separate their runs."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from aflow._core.records import dataclass
from aflow.errors import InvalidInput
from aflow.flow.decorators.base import FlowDecorator, written
from aflow.flow.names import shown

LONGEST = 128
_NAME = re.compile(rf"[a-z0-9_]{{1,{LONGEST}}}\Z")
_EXPECTED = f"1 to {LONGEST} lowercase letters, digits or _"


@dataclass(frozen=True, slots=True, kw_only=True)
class Project(FlowDecorator):
    """Set the project that a flow belongs to, and its branch.

    `branch` and `production` are None if the command line sets them.
    """

    decorator_name: ClassVar[str] = "project"
    name: str = ""
    branch: str | None = None
    production: bool | None = None

    def __post_init__(self) -> None:
        if not _is_name(self.name):
            raise self._fault("name", _EXPECTED)
        if self.branch is not None and not _is_name(self.branch):
            raise self._fault("branch", _EXPECTED)
        if self.production not in (True, False, None):
            raise self._fault("production", "True or False")

    def place(
        self, flow: str, user: str, branch: str | None = None, production: bool | None = None
    ) -> dict[str, Any]:
        """Return the project and branch of a run, as attributes of `current`.

        The branch is `prod` or `prod.<branch>` in production, otherwise `test.<branch>`, or
        `user.<user>` without a branch.

        Args:
            flow: The name of the flow, the last part of the deployed name
                `<project>.<branch>.<flow>`.
            user: The user who runs or deploys the flow.
            branch: The value of `--branch`; None if it was not given.
            production: The value of `--production`; None if it was not given.

        Raises:
            InvalidInput: If the branch is not a valid name, or an option contradicts the source.
        """
        chosen = self._agreed("branch", self.branch, branch)
        if chosen is not None and not _is_name(chosen):
            raise InvalidInput(f"--branch must be {_EXPECTED}, not {shown(chosen)}.")
        in_production = bool(self._agreed("production", self.production, production or None))
        words = ["prod" if in_production else "test" if chosen else "user"]
        words += [chosen or user] if chosen or not in_production else []
        full = ".".join(words)
        return {
            "project_name": self.name,
            "branch_name": full,
            "is_user_branch": words[0] == "user",
            "is_production": in_production,
            "project_flow_name": f"{self.name}.{full}.{flow}",
        }

    def _agreed(self, option: str, written: Any, given: Any) -> Any:
        if written is not None and given is not None and written != given:
            raise InvalidInput(
                f"The {option} of this flow is set in its source, by @project({option}={written!r}"
                f"): --{option} cannot say something else."
            )
        return given if written is None else written


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(_NAME.match(value))


project = written(Project)
"""Set the project of the flow, and its branch; see Project."""
