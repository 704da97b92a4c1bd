"""Names that a flow may not use for its own, and what may have been meant by a wrong one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

# What FlowSpec offers under its own names. A step, parameter, constant or artifact of such a name
# would hide it.
RESERVED_NAMES = frozenset({
    "cmd", "foreach_stack", "index", "input", "merge_artifacts", "name", "next", "script_name",
})  # fmt: skip

STEP_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")


def is_artifact_name(value: object) -> bool:
    """Return whether a step may give this name to an artifact.

    Args:
        value: The name; anything but a text is refused.
    """
    return (
        isinstance(value, str)
        and value.isidentifier()
        and not value.startswith(("__", "_aflow"))
        and value not in RESERVED_NAMES
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the known name that is nearest; empty if none is near.

    Args:
        name: The name that was given and does not exist.
        known: The names that would have been valid.
    """
    import difflib  # only where something is wrong: start-up does not pay for it

    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def shown(value: object) -> str:
    """Return the value's repr, cut to fit into a sentence.

    Args:
        value: Any object; its repr is cut to 80 characters. A repr that raises does so here, too.
    """
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def plain(value: Any) -> Any:
    """Return the value as JSON can hold it: functions and classes by their names, others as text.

    Args:
        value: Any object; mappings, lists and tuples are converted with all that they hold.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return getattr(value, "__qualname__", None) or shown(value)


def place(error: BaseException) -> str:
    """Return where in the code that we called it was raised, as an addition to a sentence: " (file,
    line 3)"; nothing if we could not even call it.

    Args:
        error: An exception that was just caught, with its traceback: the frame of the caller is the
            first of it.
    """
    trace = error.__traceback__
    trace = trace.tb_next if trace else None
    if trace is None:
        return ""
    file = trace.tb_frame.f_code.co_filename
    line = trace.tb_lineno
    while trace is not None:  # what it has called, in libraries maybe, says less than its own line
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" ({file}, line {line})"
