"""Utilities that modules of Metaflow offer to user code, under their names there: checks of tags,
lines of logs, records of metadata, markers of unbounded foreachs, and monitors."""

from __future__ import annotations

import heapq
import logging
import re
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple

from aflow._core import ids
from aflow._core.clock import SystemClock
from aflow.errors import InvalidName

# ------------------------------------------------------------------ tagging_util


def is_utf8_encodable(text: str) -> bool:
    """Return whether the text can be encoded in UTF-8.

    Args:
        text: Any text; surrogates cannot be encoded.
    """
    try:
        text.encode()
    except UnicodeError:
        return False
    return True


def is_utf8_decodable(data: bytes) -> bool:
    """Return whether the bytes are valid UTF-8.

    Args:
        data: Any bytes.
    """
    try:
        data.decode()
    except UnicodeError:
        return False
    return True


def validate_tag(tag: object) -> None:
    """Check a tag of a run.

    Args:
        tag: A string, or its bytes in UTF-8.

    Raises:
        InvalidName: If the tag is not a string, or not allowed.
    """
    if isinstance(tag, bytes):
        if not is_utf8_decodable(tag):
            raise InvalidName("A tag has to be UTF-8.")
        tag = tag.decode()
    if not isinstance(tag, str):
        raise InvalidName(f"A tag has to be a text, not {type(tag).__name__}.")
    ids.tag(tag)


def validate_tags(tags: Iterable[object], existing_tags: Iterable[object] | None = None) -> None:
    """Check the tags of a run, and their number.

    Args:
        tags: All tags that the run would have.
        existing_tags: The current tags; if there are too many already, that number is allowed.

    Raises:
        InvalidName: If a tag is not allowed, or there are too many.
    """
    wanted = frozenset(tags)
    there = None if existing_tags is None else len(frozenset(existing_tags))
    if len(wanted) > ids.MAX_TAGS and (there is None or there < len(wanted)):
        raise InvalidName(f"A run can have at most {ids.MAX_TAGS} tags; these are {len(wanted)}.")
    for tag in wanted:
        validate_tag(tag)


# ------------------------------------------------------------------ metadata_provider


class MetaDatum(NamedTuple):
    """A fact about a task."""

    field: str
    value: str
    type: str
    tags: list[str]


class DataArtifact(NamedTuple):
    """The location of an artifact."""

    name: str
    ds_type: str
    ds_root: str
    url: str
    type: str
    sha: str


# ------------------------------------------------------------------ unbounded_foreach

CONTROL_TASK_TAG = "control_task"
UBF_CONTROL = "ubf_control"
UBF_TASK = "ubf_task"


class UnboundedForeachInput:
    """An iterable for a foreach whose length is not known in advance. A subclass implements
    `__iter__`; each item gets a task, as with any iterable."""


class InternalTestUnboundedForeachInput(UnboundedForeachInput):
    """An unbounded input over a sequence."""

    NAME = "InternalTestUnboundedForeachInput"

    def __init__(self, iterable: Any) -> None:
        self.iterable = iterable

    def __iter__(self) -> Iterator[Any]:
        return iter(self.iterable)

    def __getitem__(self, key: Any) -> Any:
        return self if key is None else self.iterable[key]

    def __len__(self) -> int:
        return len(self.iterable)

    def __str__(self) -> str:
        return str(self.iterable)

    def __repr__(self) -> str:
        return f"{self.NAME}({self.iterable})"


def unbounded_test_foreach(step: Any = None) -> Any:
    """Return the step unchanged: a step in an unbounded foreach needs no decorator in aflow.

    Args:
        step: The decorated step; None if the decorator is called with arguments.

    Returns:
        The step, or the decorator.
    """
    return unbounded_test_foreach if step is None else step


# ------------------------------------------------------------------ mflog

RUNTIME_LOG_SOURCE = "runtime"
TASK_LOG_SOURCE = "task"
LOG_SOURCES = [RUNTIME_LOG_SOURCE, TASK_LOG_SOURCE]
VERSION = b"0"
ISOFORMAT = "%Y-%m-%dT%H:%M:%S.%f"
MISSING_TIMESTAMP = datetime(3000, 1, 1, tzinfo=UTC)
MISSING_TIMESTAMP_STR = MISSING_TIMESTAMP.strftime(ISOFORMAT)
_MARK, _TO_KEEP = b"[MFLOG|", b"[!"
_LINE = re.compile(rb"(\[!)?\[MFLOG\|(0)\|(.+?)Z\|(.+?)\|(.+?)\](.*)")


class MFLogline(NamedTuple):
    """A parsed line of a log, with its source and time."""

    should_persist: bytes | bool | None
    version: bytes | None
    utc_tstamp_str: bytes
    logsource: bytes | None
    id: bytes | None
    msg: bytes
    utc_tstamp: datetime


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()


def decorate(
    source: str | bytes,
    line: str | bytes,
    version: bytes = VERSION,
    now: datetime | None = None,
    lineid: str | bytes | None = None,
) -> bytes:
    """Return a line with the header that it has in a log file.

    Args:
        source: The process that writes it: `task` or `runtime`.
        line: The line without a header; a newline at the end is kept.
        version: The version of the header's format.
        now: The time of the line, in UTC; None for the current time.
        lineid: The id of the line; None for a new random one.
    """
    at = (now or datetime.fromtimestamp(SystemClock.now(), UTC)).strftime(ISOFORMAT).encode()
    number = _bytes(lineid or str(uuid.uuid4()))
    head = b"|".join((b"[MFLOG", version, at + b"Z", _bytes(source), number))
    return head + b"]" + _bytes(line)


def is_structured(line: str | bytes) -> bool:
    """Return whether the line has the header of a log file.

    Args:
        line: A line of a log file.
    """
    return _bytes(line).startswith((_MARK, _TO_KEEP + _MARK))


def parse(line: str | bytes) -> MFLogline | None:
    """Return the parts of a line, or None if it has no valid header.

    Args:
        line: A line of a log file.
    """
    found = _LINE.match(_bytes(line))
    if found is None:
        return None
    keep, version, at, source, number, text = found.groups()
    try:
        when = datetime.strptime(at.decode(), ISOFORMAT).replace(tzinfo=UTC)
    except ValueError:
        return None
    return MFLogline(
        should_persist=keep,
        version=version,
        utc_tstamp_str=at,
        logsource=source,
        id=number,
        msg=text,
        utc_tstamp=when,
    )


def set_should_persist(line: str | bytes) -> bytes:
    """Return the line with the mark of a line that has not been persisted yet.

    Args:
        line: A line of a log file; without a header it is returned unchanged.
    """
    data = _bytes(line)
    return _TO_KEEP + data if data.startswith(_MARK) else data


def unset_should_persist(line: str | bytes) -> bytes:
    """Return the line without the mark of a line that has not been persisted yet.

    Args:
        line: A line of a log file.
    """
    data = _bytes(line)
    return data[2:] if data.startswith(_TO_KEEP + _MARK) else data


def refine(
    line: str | bytes, prefix: str | bytes | None = None, suffix: str | bytes | None = None
) -> bytes:
    """Return the line with a prefix and a suffix added to its text.

    Args:
        line: A line of a log file; without a header it is returned unchanged.
        prefix: Inserted between header and text.
        suffix: Appended to the text.
    """
    head, mark, text = _bytes(line).partition(b"]")
    if not mark:
        return _bytes(line)
    return b"".join((head, mark, _bytes(prefix or b""), text, _bytes(suffix or b"")))


def merge_logs(logs: Iterable[str | bytes]) -> Iterator[MFLogline]:
    """Yield the lines of several logs ordered by time; lines without a time come last.

    Args:
        logs: The contents of the log files.
    """
    missing = MISSING_TIMESTAMP_STR.encode()

    def lines(log: str | bytes) -> list[MFLogline]:
        found = []
        for line in _bytes(log).splitlines(keepends=True):
            unknown = MFLogline(
                should_persist=False,
                version=None,
                utc_tstamp_str=missing,
                logsource=None,
                id=None,
                msg=line,
                utc_tstamp=MISSING_TIMESTAMP,
            )
            found.append(parse(line) or unknown)
        return sorted(found, key=_at)

    return heapq.merge(*map(lines, logs), key=_at)


def _at(line: MFLogline) -> bytes:
    return line.utc_tstamp_str


def utc_to_local(at: datetime) -> datetime:
    """Return a time in the time zone of this machine.

    Args:
        at: The time in UTC; its time zone is ignored.
    """
    return at.replace(tzinfo=UTC).astimezone()


# ------------------------------------------------------------------ system

_log = logging.getLogger("aflow.flow")


class SystemMonitor:
    """Measures nothing, like Metaflow's monitor without a plug-in."""

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Enclose a block whose duration a monitor would measure. Does nothing.

        Args:
            name: The name of the measurement.
        """
        yield

    @contextmanager
    def count(self, name: str) -> Iterator[None]:
        """Enclose a block whose executions a monitor would count. Does nothing.

        Args:
            name: The name of the counter.
        """
        yield

    def gauge(self, gauge: object) -> None:
        """Accept the current value of a gauge. Does nothing.

        Args:
            gauge: A gauge of Metaflow's, with its value.
        """


class SystemLogger:
    """Forwards events to `logging`, at the level DEBUG."""

    def log_event(
        self, level: str, module: str, name: str, payload: dict[str, Any] | None = None
    ) -> None:
        """Log an event at the level DEBUG.

        Args:
            level: Metaflow's level of the event; part of the logged text.
            module: The module of Metaflow's that the event comes from.
            name: The event within the module.
            payload: Details of the event, by name; None for none.
        """
        _log.debug("%s %s.%s %s", level, module, name, payload)


system_monitor = SystemMonitor()
system_logger = SystemLogger()
