"""What a request may say: every name, number and body is checked here before it gets anywhere.

Each function answers with the value, or raises RegistrationRefused: 400, and a sentence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from aflow.errors import MissingExtra, RegistrationRefused

# Regular expressions that clients send. Most engines can be sent one that takes them ages, or all
# memory; RE2 takes time by the length of the text. (It has neither backreferences nor lookaround.)


try:
    import re2
except ImportError as error:
    raise MissingExtra(
        "The metadata service needs google-re2: install aflow-runtime[server]."
    ) from error

LONGEST = 1000  # characters


def is_found(pattern: str, value: str) -> bool:
    """Return whether the expression is found in the value.

    Args:
        pattern: The regular expression of RE2.
        value: The text that is searched.
    """
    return _compiled(pattern).search(value) is not None


@lru_cache(100)
def _compiled(pattern: str) -> Any:
    options = re2.Options()
    options.log_errors = False  # it would write to stderr itself
    return re2.compile(pattern, options)


MAX_ITEMS = 10_000  # in one body
_LONGEST = 1 << 20  # characters of a text
NAMES = {  # of which characters they are, by what they name
    "flow_id": re.compile(r"[A-Za-z_]\w{0,254}\Z", re.ASCII),
    "run_number": re.compile(r"[A-Za-z0-9_.:\-]{1,255}\Z"),
    "step_name": re.compile(r"[A-Za-z_]\w{0,254}\Z", re.ASCII),
    "task_id": re.compile(r"[A-Za-z0-9_.:\-]{1,255}\Z"),
    "artifact_name": re.compile(r"[^\W\d]\w{0,254}\Z"),
    "attempt_id": re.compile(r"[0-9]{1,4}\Z"),
}


def path_name(kind: str, value: str) -> str:
    """Return a name in a path, if it is one that the kind allows.

    Args:
        kind: The placeholder in the path, such as `flow_id`.
        value: The text that the client has sent.

    Raises:
        RegistrationRefused: The name has characters that are not allowed, or is too long (400).
    """
    if not NAMES[kind].match(value):
        raise _refused(f"{value[:80]!r} cannot be a {kind}")
    return value


def number(value: str) -> int | None:
    """Return the number that a name is, None where it is none. One that no row can have is -1.

    Args:
        value: The last part of a path: a number of the service, or a name that a client has given.
    """
    if not value.isdigit():
        return None
    return int(value) if len(value) <= 18 else -1


def given_name(kind: str, value: object) -> str | None:
    """Return a name that a client gives to its run or task; numbers are the service's own.

    Args:
        kind: The field of the body, such as `run_id`.
        value: The value of the field; None where the client gives no name.

    Raises:
        RegistrationRefused: The name is a number, or not allowed (400).
    """
    if value is None:
        return None
    name = path_name(kind, value) if isinstance(value, str) else None
    if name is None or name.isdigit():
        raise _refused(f"provided {kind} may not be a numeric")
    return name


def parsed(body: bytes, kind: type) -> Any:
    """Return the JSON of a body, which has to be an object or a list. No body is an empty one.

    Args:
        body: The bytes that the client has sent.
        kind: `dict` or `list`: what the JSON has to be.

    Raises:
        RegistrationRefused: The body is not such JSON (400).
    """
    try:
        value = json.loads(body) if body else kind()
    except (ValueError, RecursionError):
        raise _refused("the body is not JSON") from None
    if not isinstance(value, kind):
        raise _refused(f"the body has to be {'an object' if kind is dict else 'a list'}")
    return value


def items(body: bytes) -> list[dict[str, Any]]:
    """Return the objects in a body that is a list of them.

    Args:
        body: The bytes that the client has sent.

    Raises:
        RegistrationRefused: An item is not an object, or there are too many (400).
    """
    values = parsed(body, list)
    if len(values) > MAX_ITEMS:
        raise _refused(f"one request may have {MAX_ITEMS} items, not {len(values)}")
    if not all(isinstance(value, dict) for value in values):
        raise _refused("each item has to be an object")
    return list(values)


def text(values: Mapping[str, Any], key: str, default: str | None = None) -> str | None:
    """Return a field as a text; a value that is not a text, as clients do send it, becomes its
    JSON.

    Args:
        values: The fields of the body.
        key: The name of the field.
        default: What is returned where the field is missing; None for None.

    Raises:
        RegistrationRefused: The text is too long, or has characters that no database keeps (400).
    """
    value: object = values.get(key, default)
    if value is None:
        return None
    if not isinstance(value, str):
        value = json.dumps(value)
    if len(value) > _LONGEST:
        raise _refused(f"{key} has to be a text of at most {_LONGEST} characters")
    _storable(key, value)
    return value


def name_of(values: Mapping[str, Any], key: str, kind: str | None = None) -> str:
    """Return a field that is a name; a blank where the client leaves it out.

    Args:
        values: The fields of the body.
        key: The name of the field.
        kind: The rule that the name has to follow; None for any text.

    Raises:
        RegistrationRefused: The name is not allowed (400).
    """
    value = text(values, key)
    if not value:
        return " "
    return value if kind is None else path_name(kind, value)


def attempt(values: Mapping[str, Any]) -> int:
    """Return the number of an attempt.

    Args:
        values: The fields of the body; `attempt_id` is 0 where it is missing.

    Raises:
        RegistrationRefused: It is not a number from 0 to 9999 (400).
    """
    value = values.get("attempt_id", 0)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 10_000:
        raise _refused("attempt_id has to be a number from 0 to 9999")
    return value


def tags(values: Mapping[str, Any], key: str) -> str:
    """Return tags as JSON: a list of texts, or what old clients send, an object of them.

    Args:
        values: The fields of the body.
        key: The name of the field.

    Raises:
        RegistrationRefused: The field is something else (400).
    """
    value = values.get(key)
    each = list(value.values()) + list(value) if isinstance(value, dict) else value or []
    if not isinstance(each, list) or not all(isinstance(tag, str) for tag in each):
        raise _refused(f"{key} has to be a list of texts")
    for tag in each:
        _storable(key, tag)
    return json.dumps(value)


def tag_list(values: Mapping[str, Any], key: str) -> list[str]:
    """Return the tags of a request to add or remove some; empty where the field is missing.

    Args:
        values: The fields of the body.
        key: The name of the field, `tags_to_add` or the like.

    Raises:
        RegistrationRefused: The field is not a list of texts of allowed length (400).
    """
    value = values.get(key, [])
    if not isinstance(value, list) or not all(isinstance(tag, str) and tag for tag in value):
        raise _refused(f"{key} has to be a list of texts")
    for tag in value:
        if len(tag) > 500:
            raise _refused("a tag has at most 500 characters")
        _storable(key, tag)
    return value


def pattern(value: str | None) -> str | None:
    """Return the regular expression of a filter, checked; None where there is none.

    Args:
        value: The value of the parameter; None where it is missing.

    Raises:
        RegistrationRefused: It is malformed, or too long (400).
    """
    if value is None:
        return None
    _storable("pattern", value)
    try:
        _compiled(value if len(value) <= LONGEST else "(")
    except re2.error as error:
        raise _refused(
            f"pattern has to be a regular expression (RE2) of {LONGEST} characters"
        ) from error
    return value


def word(key: str, value: str | None) -> str | None:
    """Return the value of a parameter of the URL, checked.

    Args:
        key: The name of the parameter, for the error.
        value: Its value; None where it is missing.

    Raises:
        RegistrationRefused: It has characters that no database keeps (400).
    """
    if value is not None:
        _storable(key, value)
    return value


def _storable(key: str, value: str) -> None:
    """No database has a place for these."""
    if "\0" in value or (not value.isascii() and re.search(r"[\ud800-\udfff]", value)):
        raise _refused(f"{key} has characters that are not allowed in texts")


def _refused(sentence: str) -> RegistrationRefused:
    return RegistrationRefused.of(400, sentence)
