"""Secrets: the backends that they come from, and the variables in which a step gets them.

Backends are found by name: `inline` is in this module, `aws-secrets-manager` in secrets_manager.py.
Others are entry points of the group `aflow.secrets`: classes whose `get(id, options, role)` returns
variables by name; all values are strings.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from aflow._core.settings import Settings
from aflow.errors import AflowError, SecretsError
from aflow.task.environment import Variables
from aflow.task.hooks import StepHook

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "aflow.secrets"
SECRETS = Variables("secrets")
AWS = "aws-secrets-manager"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_RESERVED = ("AFLOW_", "METAFLOW_")  # prefixes of aflow's own settings
_ARN = re.compile(r"arn:aws[a-z-]*:secretsmanager:")


class SecretsBackend(Protocol):
    """A store of secrets."""

    def get(
        self, id: str | None, options: Mapping[str, Any], role: str | None
    ) -> Mapping[str, Any]:
        """Return the variables of one secret.

        An exception fails the step; its message must not contain the secret.

        Args:
            id: The id of the secret.
            options: The options of the secret's backend.
            role: The AWS role to read it with; None for the program's credentials.
        """


class Inline:
    """Secrets in the source code, for tests: `options={"env_vars": {...}}`."""

    def get(
        self, id: str | None, options: Mapping[str, Any], role: str | None
    ) -> Mapping[str, Any]:
        """Return the variables in `env_vars`."""
        return dict(options.get("env_vars", {}))


class SecretsHook(StepHook):
    """Sets the variables before the step, and restores the previous values after it."""

    def before(self) -> None:
        """Query all backends, then set the variables."""
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
        """Restore the previous values."""
        SECRETS.release(self._held)


def _is_set(name: str) -> bool:
    """Return whether the variable is set, and not by a concurrent step."""
    return name in os.environ and not SECRETS.holds(name)


def _variables(source: str | Mapping[str, Any], role: str | None) -> dict[str, str]:
    """Return the variables of one source; `role` is that of the decorator."""
    reference = _reference(source)
    reader = reference.role or role or Settings.load().default_secrets_role
    try:
        found = dict(_backend(reference.kind).get(reference.id, reference.options, reader))
    except AflowError:
        raise
    except Exception as error:
        raise SecretsError(
            f"@secrets: backend {reference.kind!r} gave no {reference.id or 'secret'}: "
            f"{type(error).__name__}: {error}"
        ) from error
    for name, value in found.items():
        _check(reference, name, value)
    return found


class _SecretReference(NamedTuple):
    """A parsed source."""

    kind: str
    id: str | None
    options: Mapping[str, Any]
    role: str | None


def _check(reference: _SecretReference, name: object, value: object) -> None:
    prefix = f"@secrets: backend {reference.kind!r} gave" + (
        f" for {reference.id!r}" if reference.id else ""
    )
    if not _NAME.match(str(name)) or type(value) is not str or "\0" in value:
        raise SecretsError(
            f"{prefix} {str(name)!r}, which is not a variable with a text: a name has letters, "
            "digits "
            "and _ and begins with no digit."
        )
    if str(name).startswith(_RESERVED):
        raise SecretsError(f"{prefix} {str(name)!r}: names that begin so are settings of aflow.")


def _reference(source: str | Mapping[str, Any]) -> _SecretReference:
    if isinstance(source, str):
        kind, dot, id = source.partition(".")
        if dot and kind in known_backends():
            return _SecretReference(kind, id, {}, None)
        return _SecretReference(_default_backend(source), source, {}, None)
    named, options = source.get("id"), source.get("options", {})
    if not isinstance(options, Mapping) or not isinstance(named, str | None):
        raise SecretsError(
            "@secrets: a source that is a mapping has the keys type, id, options={...} and role."
        )
    kind = source.get("type") or _default_backend(named)
    return _SecretReference(kind, named, options, source.get("role"))


def _default_backend(id: str | None) -> str:
    """Return the backend of a secret whose source does not name one."""
    default = Settings.load().default_secrets_backend
    if default is not None:
        return default
    if id is not None and _ARN.match(id):
        return AWS
    raise SecretsError(
        f"@secrets: {'a source' if id is None else repr(id)} names no backend: write backend.id, "
        f"or type= in a mapping (there are: {', '.join(known_backends())}), or set "
        "AFLOW_DEFAULT_SECRETS_BACKEND_TYPE."
    )


def known_backends() -> dict[str, EntryPoint]:
    """Return the backends by name, including the entry points of other packages."""
    from importlib.metadata import EntryPoint, entry_points  # only needed for steps with secrets

    own = [
        EntryPoint("inline", f"{__name__}:Inline", GROUP),
        EntryPoint(AWS, "aflow.task.secrets_manager:SecretsManager", GROUP),
    ]
    return {each.name: each for each in [*own, *entry_points(group=GROUP)]}


def _backend(kind: str) -> SecretsBackend:
    known = known_backends()
    if kind not in known:
        raise SecretsError(
            f"@secrets: there is no backend {kind!r}; there are: {', '.join(known)}. A package "
            f"adds one with an entry point of the group {GROUP}."
        )
    made: SecretsBackend = known[kind].load()()
    return made
