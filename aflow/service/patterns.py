"""Regular expressions that clients send. Most engines can be sent one that takes them ages, or all
memory; RE2 takes time by the length of the text. (It has neither backreferences nor lookaround.)"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from aflow.errors import MissingExtra, RegistrationRefused

try:
    import re2
except ImportError as error:
    raise MissingExtra(
        "The metadata service needs google-re2: install aflow-runtime[server]."
    ) from error

LONGEST = 1000  # characters


def check(pattern: str) -> None:
    """Raises RegistrationRefused for what is no expression of a decent length."""
    try:
        _compiled(pattern if len(pattern) <= LONGEST else "(")
    except re2.error as error:
        raise RegistrationRefused.of(
            400, f"pattern has to be a regular expression (RE2) of {LONGEST} characters"
        ) from error


def is_found(pattern: str, value: str) -> bool:
    """Whether the expression is found in the value."""
    return _compiled(pattern).search(value) is not None


@lru_cache(100)
def _compiled(pattern: str) -> Any:
    options = re2.Options()
    options.log_errors = False  # it would write to stderr itself
    return re2.compile(pattern, options)
