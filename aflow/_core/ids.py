"""Validation of names, and pathspecs.

A pathspec is `Flow/run/step/task/artifact`, or the beginning of one. Names are used in file names
and SQL values, so every name from outside must be checked by a function of this module.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, NewType

from aflow._core.records import NamedTuple
from aflow.errors import InvalidName

FlowName = NewType("FlowName", str)
RunId = NewType("RunId", str)
StepName = NewType("StepName", str)
TaskId = NewType("TaskId", int)
BlobKey = NewType("BlobKey", str)

PARAMETERS_STEP = StepName("_parameters")
PARAMETERS_TASK = TaskId(0)

_FLOW = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}\Z")
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,254}\Z")
_STEP = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}\Z")
_TASK = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,254}\Z")
_ARTIFACT = re.compile(r"[^\W\d]\w{0,254}\Z")
_BLOB = re.compile(r"[0-9a-f]{64}\Z")

MAX_TAG_LENGTH = 500
MAX_TAGS = 50


def _checked(pattern: re.Pattern[str], what: str, value: object) -> str:
    if not isinstance(value, str) or not pattern.match(value) or ".." in value:
        shown = repr(value) if len(repr(value)) <= 80 else repr(value)[:77] + "..."
        raise InvalidName(f"{shown} cannot be the name of a {what}.")
    return value


def flow_name(value: str) -> FlowName:
    """Return the value if it is a valid name of a flow.

    Args:
        value: The text to check.

    Raises:
        InvalidName: If the name is invalid.
    """
    return FlowName(_checked(_FLOW, "flow", value))


def run_id(value: str) -> RunId:
    """Return the value if it is a valid id of a run.

    Args:
        value: The text to check.

    Raises:
        InvalidName: If the id is invalid.
    """
    return RunId(_checked(_RUN, "run", value))


def step_name(value: str) -> StepName:
    """Return the value if it is a valid name of a step, or `_parameters`.

    Args:
        value: The text to check.

    Raises:
        InvalidName: If the name is invalid.
    """
    return StepName(_checked(_STEP, "step", value))


def worker_name(value: str) -> str:
    """Return the value if it is a valid name of a worker.

    Args:
        value: The text to check.

    Raises:
        InvalidName: If the name is invalid.
    """
    return _checked(_RUN, "worker", value)


def task_id(value: str) -> TaskId:
    """Return the number of a task from its text.

    Args:
        value: The text to check.

    Raises:
        InvalidName: If it is not a decimal number of at most 18 digits.
    """
    _checked(_TASK, "task", value)
    if not value.isascii() or not value.isdigit() or len(value) > 18:
        raise InvalidName(f"{value!r} cannot be the name of a task: tasks are numbered.")
    return TaskId(int(value))


def artifact_name(value: str) -> str:
    """Return the value if it is a valid name of an artifact.

    Args:
        value: The text to check.

    Raises:
        InvalidName: If the name is invalid.
    """
    return _checked(_ARTIFACT, "artifact", value)


def blob_key(value: str) -> BlobKey:
    """Return the value if it is the key of a blob: 64 hex digits of blake3.

    Args:
        value: The text to check.

    Raises:
        InvalidName: If the key is invalid.
    """
    return BlobKey(_checked(_BLOB, "blob", value))


def tag(value: object) -> str:
    """Return the value if it is a valid tag: 1 to 500 characters of valid UTF-8.

    Args:
        value: The tag to check.

    Raises:
        InvalidName: If it is not a str, empty, too long or not valid UTF-8.
    """
    if not isinstance(value, str) or not value:
        raise InvalidName(f"{value!r} cannot be a tag: a tag is a text that is not empty.")
    if len(value) > MAX_TAG_LENGTH:
        raise InvalidName(
            f"A tag of {len(value)} characters is too long: {value[:30]!r}...; "
            f"at most {MAX_TAG_LENGTH} are allowed."
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidName(f"{value!r} cannot be a tag: it is not valid UTF-8.") from error
    return value


def tags(values: Iterable[object]) -> tuple[str, ...]:
    """Return the tags of a run without duplicates, in the given order.

    Args:
        values: The tags to check.

    Raises:
        InvalidName: If a tag is invalid, there are too many, or `values` is a str.
    """
    if isinstance(values, str):  # iterating over it would create a tag for each character
        raise InvalidName(f"{values!r} is one tag: give a list of tags, as [{values!r}].")
    unique = tuple(dict.fromkeys(tag(each) for each in values))
    if len(unique) > MAX_TAGS:
        raise InvalidName(f"A run can have at most {MAX_TAGS} tags; {len(unique)} were given.")
    return unique


class Pathspec(NamedTuple):
    """`Flow/run/step/task/artifact`, or the beginning of one."""

    flow: FlowName
    run: RunId | None = None
    step: StepName | None = None
    task: TaskId | None = None
    artifact: str | None = None

    def __str__(self) -> str:
        return "/".join(str(part) for part in self if part is not None)

    @classmethod
    def parse(cls, text: str) -> Pathspec:
        """Parse a pathspec.

        Args:
            text: One to five parts, separated by slashes.

        Returns:
            The pathspec, with None for the parts that are absent.

        Raises:
            InvalidName: If a part is invalid, or there are more than five.
        """
        parts = text.split("/")
        checks: tuple[Callable[[str], Any], ...] = (
            flow_name, run_id, step_name, task_id, artifact_name
        )  # fmt: skip
        if len(parts) > len(checks):
            raise InvalidName(
                f"{text[:80]!r} has {len(parts)} parts; a pathspec has at most five: "
                "Flow/run/step/task/artifact."
            )
        return cls(*(check(part) for check, part in zip(checks, parts, strict=False)))
