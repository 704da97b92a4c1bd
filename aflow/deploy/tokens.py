"""Production tokens that a user has deployed with, in a file beside the settings of that user."""

from __future__ import annotations

import logging

from aflow.config import config_file, looked_up
from aflow.config_files import ConfigFile, expanded
from aflow.errors import InvalidSetting

_log = logging.getLogger(__name__)


class Tokens:
    """The tokens of one user, by the ARNs of state machines."""

    def __init__(self, file: ConfigFile) -> None:
        self._file = file

    @classmethod
    def of_user(cls) -> Tokens:
        """Those of the user who runs this program."""
        home = looked_up("TOKEN_HOME")
        folder = expanded(home) if home else config_file().path.parent
        return cls(ConfigFile(folder / "production_tokens.json"))

    def remembered(self, machine: str) -> str | None:
        """The token that the user has last deployed this state machine with; None if none is
        known."""
        token = self._read().get(machine)
        return token if isinstance(token, str) else None

    def remember(self, machine: str, token: str) -> None:
        """Remember the token; where that cannot be written it is logged, since what it was for is
        done."""
        known = self._read()
        if known.get(machine) == token:
            return
        try:
            self._file.write({**known, machine: token})
        except InvalidSetting as error:
            _log.warning("The production token is not remembered: %s", error)

    def _read(self) -> dict[str, object]:
        try:
            return self._file.read() or {}
        except InvalidSetting as error:
            _log.warning("Production tokens are not remembered: %s", error)
            return {}
