"""Where secrets come from, and how a step sees them.

Backends are found by name: `inline` is here, others are entry points of the group `aflow.secrets`:
classes whose `get(id, options, role)` gives variables by name, all texts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, Protocol

from aflow.around import Around
from aflow.config import Settings
from aflow.errors import SecretsError
from aflow.variables import Variables

GROUP = "aflow.secrets"
SECRETS = Variables("secrets")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


class SecretsBackend(Protocol):
    """Somewhere that secrets are kept."""

    def get(
        self, id: str | None, options: Mapping[str, Any], role: str | None
    ) -> Mapping[str, Any]:
        """The variables of one secret. What it raises fails the step; its text must not hold
        the secret."""


class Inline:
    """Secrets that stand in the source, for tests: `options={"env_vars": {...}}`."""

    def get(
        self, id: str | None, options: Mapping[str, Any], role: str | None
    ) -> Mapping[str, Any]:
        """The variables in `env_vars`."""
        return dict(options.get("env_vars", {}))


class AroundSecrets(Around):
    """Sets the variables before the step, and puts back what was there after it."""

    def before(self) -> None:
        """Ask all backends, then set the variables."""
        self._held: dict[str, str] = {}
        decorator: Any = self.decorator
        found: dict[str, str] = {}
        for source in decorator.sources:
            for name, value in _variables(source, decorator.role).items():
                if name in found:
                    raise SecretsError(f"@secrets: two sources have the variable {name}.")
                found[name] = value
        taken = [] if decorator.allow_override else [name for name in found if _is_set(name)]
        if taken:
            raise SecretsError(
                f"@secrets: the variable {taken[0]} is set already: say allow_override=True, or "
                "unset it."
            )
        SECRETS.take(found)
        self._held = found

    def after(self, error: BaseException | None) -> None:
        """Put back what was there."""
        SECRETS.release(self._held)


def _is_set(name: str) -> bool:
    """Whether the variable is there, and not from a step that runs beside this one."""
    return name in os.environ and not SECRETS.holds(name)


def _variables(source: str | Mapping[str, Any], role: str | None) -> dict[str, str]:
    """The variables of one source."""
    kind, id, options, own_role = _taken_apart(source)
    try:
        found = dict(_backend(kind).get(id, options, own_role or role))
    except SecretsError:
        raise
    except Exception as error:
        raise SecretsError(
            f"@secrets: backend {kind!r} gave no {id or 'secret'}: {type(error).__name__}: {error}"
        ) from error
    for name, value in found.items():
        if not _NAME.match(str(name)) or type(value) is not str or "\0" in value:
            raise SecretsError(
                f"@secrets: backend {kind!r} gave {str(name)!r}, which is no variable with a text."
            )
    return found


def _taken_apart(
    source: str | Mapping[str, Any],
) -> tuple[str, str | None, Mapping[str, Any], str | None]:
    if isinstance(source, str):
        kind, dot, id = source.partition(".")
        known = _known()
        if dot and kind in known:
            return kind, id, {}, None
        default = Settings.load().default_secrets_backend
        if default is None:
            raise SecretsError(
                f"@secrets: {source!r} names no backend: write backend.id (there are: "
                f"{', '.join(known)}), or set AFLOW_DEFAULT_SECRETS_BACKEND_TYPE."
            )
        return default, source, {}, None
    options = source.get("options", {})
    if "type" not in source or not isinstance(options, Mapping):
        raise SecretsError("@secrets: a source that is a mapping needs type, and options={...}.")
    return source["type"], source.get("id"), options, source.get("role")


def _known() -> dict[str, Any]:
    from importlib.metadata import entry_points  # only for steps that have secrets

    return {"inline": None, **{each.name: each for each in entry_points(group=GROUP)}}


def _backend(kind: str) -> SecretsBackend:
    known = _known()
    if kind not in known:
        raise SecretsError(
            f"@secrets: there is no backend {kind!r}; there are: {', '.join(known)}. A package "
            f"adds one with an entry point of the group {GROUP}."
        )
    if known[kind] is None:
        return Inline()
    made: SecretsBackend = known[kind].load()()
    return made
