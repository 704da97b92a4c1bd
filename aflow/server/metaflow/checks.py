"""Validation of all names, numbers and bodies of requests.

Each function returns the valid value, or raises RegistrationRefused with status 400 and a sentence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from aflow.errors import MissingExtra, RegistrationRefused

# Regular expressions are sent by clients. With most engines, an expression can take exponential
# time or exhaust the memory; RE2 takes linear time (and has no backreferences or lookaround).


try:
    import re2
except ImportError as error:
    raise MissingExtra(
        "The metadata service needs google-re2: install aflow-runtime[server]."
    ) from error

LONGEST = 1000  # characters of a regular expression


def is_found(pattern: str, value: str) -> bool:
    """Return whether a value contains a match of a regular expression.

    Args:
        pattern: The regular expression in RE2 syntax.
        value: The text to search.
    """
    return _compiled(pattern).search(value) is not None


@lru_cache(100)
def _compiled(pattern: str) -> Any:
    options = re2.Options()
    options.log_errors = False  # RE2 would write to stderr
    return re2.compile(pattern, options)


MAX_ITEMS = 10_000  # items in one body
_LONGEST = 1 << 20  # characters of a text
NAMES = {  # the syntax of names, by placeholder
    "flow_id": re.compile(r"[A-Za-z_]\w{0,254}\Z", re.ASCII),
    "run_number": re.compile(r"[A-Za-z0-9_.:\-]{1,255}\Z"),
    "step_name": re.compile(r"[A-Za-z_]\w{0,254}\Z", re.ASCII),
    "task_id": re.compile(r"[A-Za-z0-9_.:\-]{1,255}\Z"),
    "artifact_name": re.compile(r"[^\W\d]\w{0,254}\Z"),
    "attempt_id": re.compile(r"[0-9]{1,4}\Z"),
}


def path_name(kind: str, value: str) -> str:
    """Return a valid name from a path.

    Args:
        kind: The placeholder in the path, such as `flow_id`.
        value: The text sent by the client.

    Raises:
        RegistrationRefused: If the name is too long or has invalid characters (400).
    """
    if not NAMES[kind].match(value):
        raise _refused(f"{value[:80]!r} cannot be a {kind}")
    return value


def number(value: str) -> int | None:
    """Return the number in a name; None if it is not a number, -1 if no row can have it.

    Args:
        value: A part of a path: a number of the service, or a name chosen by a client.
    """
    if not value.isdigit():
        return None
    return int(value) if len(value) <= 18 else -1


def given_name(kind: str, value: object) -> str | None:
    """Return the name that a client chose for a run or task; numbers are assigned by the service.

    Args:
        kind: The field of the body, such as `run_id`.
        value: The value of the field; None if the client chose no name.

    Raises:
        RegistrationRefused: If the name is a number or invalid (400).
    """
    if value is None:
        return None
    name = path_name(kind, value) if isinstance(value, str) else None
    if name is None or name.isdigit():
        raise _refused(f"provided {kind} may not be a numeric")
    return name


def parsed(body: bytes, kind: type) -> Any:
    """Return the decoded JSON of a body; an empty value of the type for an empty body.

    Args:
        body: The bytes sent by the client.
        kind: The required type, `dict` or `list`.

    Raises:
        RegistrationRefused: If the body is not JSON of that type (400).
    """
    try:
        value = json.loads(body) if body else kind()
    except (ValueError, RecursionError):
        raise _refused("the body is not JSON") from None
    if not isinstance(value, kind):
        raise _refused(f"the body has to be {'an object' if kind is dict else 'a list'}")
    return value


def items(body: bytes) -> list[dict[str, Any]]:
    """Return the objects in a body, which must be a list of objects.

    Args:
        body: The bytes sent by the client.

    Raises:
        RegistrationRefused: If an item is not an object, or there are too many (400).
    """
    values = parsed(body, list)
    if len(values) > MAX_ITEMS:
        raise _refused(f"one request may have {MAX_ITEMS} items, not {len(values)}")
    if not all(isinstance(value, dict) for value in values):
        raise _refused("each item has to be an object")
    return list(values)


def text(values: Mapping[str, Any], key: str, default: str | None = None) -> str | None:
    """Return a field as text. Other values, which some clients send, are encoded as JSON.

    Args:
        values: The fields of the body.
        key: The name of the field.
        default: The result if the field is missing.

    Raises:
        RegistrationRefused: If the text is too long, or cannot be stored in a database (400).
    """
    value: object = values.get(key, default)
    if value is None:
        return None
    if not isinstance(value, str):
        value = json.dumps(value)
    if len(value) > _LONGEST:
        raise _refused(f"{key} has to be a text of at most {_LONGEST} characters")
    storable(key, value)
    return value


def name_of(values: Mapping[str, Any], key: str, kind: str | None = None) -> str:
    """Return a field with a name; a space if it is missing.

    Args:
        values: The fields of the body.
        key: The name of the field.
        kind: The key of the syntax in NAMES; None for any text.

    Raises:
        RegistrationRefused: If the name is invalid (400).
    """
    value = text(values, key)
    if not value:
        return " "
    return value if kind is None else path_name(kind, value)


def attempt(values: Mapping[str, Any]) -> int:
    """Return the number of an attempt.

    Args:
        values: The fields of the body; a missing `attempt_id` is 0.

    Raises:
        RegistrationRefused: If it is not a number from 0 to 9999 (400).
    """
    value = values.get("attempt_id", 0)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 10_000:
        raise _refused("attempt_id has to be a number from 0 to 9999")
    return value


def tags(values: Mapping[str, Any], key: str) -> str:
    """Return tags as JSON: a list of strings, or an object of strings from old clients.

    Args:
        values: The fields of the body.
        key: The name of the field.

    Raises:
        RegistrationRefused: If the field has another type (400).
    """
    value = values.get(key)
    each = list(value.values()) + list(value) if isinstance(value, dict) else value or []
    if not isinstance(each, list) or not all(isinstance(tag, str) for tag in each):
        raise _refused(f"{key} has to be a list of texts")
    for tag in each:
        storable(key, tag)
    return json.dumps(value)


def tag_list(values: Mapping[str, Any], key: str) -> list[str]:
    """Return the tags of a request to add or remove tags; empty if the field is missing.

    Args:
        values: The fields of the body.
        key: The name of the field, `tags_to_add` or the like.

    Raises:
        RegistrationRefused: If the field is not a list of strings of valid length (400).
    """
    value = values.get(key, [])
    if not isinstance(value, list) or not all(isinstance(tag, str) and tag for tag in value):
        raise _refused(f"{key} has to be a list of texts")
    for tag in value:
        if len(tag) > 500:
            raise _refused("a tag has at most 500 characters")
        storable(key, tag)
    return value


def pattern(value: str | None) -> str | None:
    """Return the validated regular expression of a filter; None if there is none.

    Args:
        value: The value of the parameter; None if it is missing.

    Raises:
        RegistrationRefused: If the expression is malformed or too long (400).
    """
    if value is None:
        return None
    storable("pattern", value)
    try:
        _compiled(value if len(value) <= LONGEST else "(")
    except re2.error as error:
        raise _refused(
            f"pattern has to be a regular expression (RE2) of {LONGEST} characters"
        ) from error
    return value


def storable(key: str, value: str) -> None:
    """Reject NUL characters and surrogates, which databases cannot store.

    Args:
        key: The name of the field or parameter, for the error.
        value: The text sent by the client.

    Raises:
        RegistrationRefused: If the value has such characters (400).
    """
    if "\0" in value or (not value.isascii() and re.search(r"[\ud800-\udfff]", value)):
        raise _refused(f"{key} has characters that are not allowed in texts")


def _refused(sentence: str) -> RegistrationRefused:
    return RegistrationRefused.of(400, sentence)
