"""Files of settings: one JSON object each, for one user and profile."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aflow.errors import InvalidSetting
from aflow.own_folders import make_private

_OWN = "~/.aflowconfig"


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A JSON file of settings: an object whose keys carry a prefix (AFLOW_USER)."""

    path: Path

    def read(self) -> dict[str, Any] | None:
        """What it sets; None where there is no such file. Raises InvalidSetting."""
        try:
            text = self.path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise InvalidSetting(
                f"The settings in {self.path} cannot be read: {error.strerror}."
            ) from error
        import json  # most programs have no such file, and need not pay for it

        try:
            values = json.loads(text)
        except ValueError as error:
            raise InvalidSetting(
                f"The settings in {self.path} are no valid JSON: {error}."
            ) from error
        if not isinstance(values, dict):
            raise InvalidSetting(
                f"The settings in {self.path} must be one JSON object of keys and values."
            )
        return values

    def write(self, values: Mapping[str, Any]) -> None:
        """Replace the file as a whole; nobody else may read it. Raises InvalidSetting."""
        import json
        import tempfile

        text = json.dumps(dict(sorted(values.items())), indent=2) + "\n"
        try:
            make_private(self.path.parent)
            descriptor, made = tempfile.mkstemp(dir=self.path.parent)  # with mode 600
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(made, self.path)
        except OSError as error:
            raise InvalidSetting(
                f"The settings cannot be written to {self.path}: {error.strerror}."
            ) from error


def files_of_profile(profile: str | None, env: Mapping[str, str]) -> list[ConfigFile]:
    """The files of the profile, else of the one that the environment names; the first counts before
    the others, and they may be absent. Raises InvalidSetting for a name that is none."""
    profile = profile or env.get("AFLOW_PROFILE") or env.get("METAFLOW_PROFILE")
    if profile and not profile.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise InvalidSetting(
            f"{profile!r} cannot be the name of a profile: letters, digits and - _ . are allowed."
        )
    name = f"config_{profile}.json" if profile else "config.json"
    homes = [
        expanded(given) if given else _below_home(usual)
        for given, usual in (
            (env.get("AFLOW_HOME"), _OWN),
            (env.get("METAFLOW_HOME"), "~/.metaflowconfig"),
        )
    ]
    # A user without a home has no settings there.
    return [ConfigFile(home / name) for home in homes if home is not None]


def home_of_settings(env: Mapping[str, str]) -> Path:
    """The folder of the user's own settings: AFLOW_HOME, else `~/.aflowconfig`. Raises
    InvalidSetting where the user has no home."""
    return expanded(env.get("AFLOW_HOME") or _OWN)


def expanded(path: str) -> Path:
    """The path, with the home of the user for `~`. Raises InvalidSetting where that is not
    known."""
    found = os.path.expanduser(path)
    if found.startswith("~"):
        raise InvalidSetting(
            f"{path}: the home of this user is not known. Set HOME, or write the whole path."
        )
    return Path(found)


def path_in(text: str) -> str:
    """The path in a URL. Names of files are bytes, which need not be UTF-8."""
    from urllib.parse import unquote_to_bytes  # not for all who have settings

    return os.fsdecode(unquote_to_bytes(os.fsencode(text)))


def _below_home(path: str) -> Path | None:
    try:
        return expanded(path)
    except InvalidSetting:
        return None
