"""Reserved names, suggestions for misspelled names, and values as text for messages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

# Attributes of FlowSpec. A step, parameter, constant or artifact of such a name would hide it.
RESERVED_NAMES = frozenset({
    "cmd", "foreach_stack", "index", "input", "merge_artifacts", "name", "next", "script_name",
})  # fmt: skip

STEP_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")


def is_artifact_name(value: object) -> bool:
    """Return whether an artifact may have this name.

    Args:
        value: The name; the result is False if it is not a str.
    """
    return (
        isinstance(value, str)
        and value.isidentifier()
        and not value.startswith(("__", "_aflow"))
        and value not in RESERVED_NAMES
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` with the most similar known name; empty if none is similar.

    Args:
        name: The name that does not exist.
        known: The valid names.
    """
    import difflib  # only imported for errors, to keep the start fast

    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def shown(value: object) -> str:
    """Return the repr of a value, truncated to 80 characters for messages.

    Args:
        value: Any object; exceptions of its `__repr__` are raised.
    """
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def plain(value: Any) -> Any:
    """Return a value that JSON can represent: functions and classes by name, others as text.

    Args:
        value: Any object; mappings, lists and tuples are converted recursively.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return getattr(value, "__qualname__", None) or shown(value)


def place(error: BaseException) -> str:
    """Return the file and line of the called code that raised: " (file, line 3)".

    Empty if the call itself failed.

    Args:
        error: An exception that was just caught; the first frame of its traceback is the caller.
    """
    trace = error.__traceback__
    trace = trace.tb_next if trace else None
    if trace is None:
        return ""
    file = trace.tb_frame.f_code.co_filename
    line = trace.tb_lineno
    while trace is not None:  # the last line in that file, not a line in a library that it called
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" ({file}, line {line})"
