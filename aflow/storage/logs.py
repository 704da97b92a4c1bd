"""The storage format of the output of an attempt.

A record is one line: 16 digits, the microseconds since the epoch (UTC) at which the line was read;
one letter, `o` for stdout and `e` for stderr, in upper case for a piece of a line that continues in
the stream's next record; a space; the bytes as they were printed; a newline. Records are in the
order of arrival, and the times of one stream never decrease, even if the clock is set back.

A log is a sequence of records, stored as a whole or in numbered chunks, which are objects that
contain complete records.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator

from aflow._core.records import NamedTuple
from aflow.errors import StorageError
from aflow.storage.base import ObjectStore

STREAMS = ("stdout", "stderr")
MAX_LINE = 64 << 10
TRUNCATED = b"[TRUNCATED - MAXIMUM LOG FILE SIZE REACHED]"

_LETTERS = (b"O", b"o"), (b"E", b"e")  # by stream, then by whether the line is whole
_KINDS = {
    letter[0]: (stream, bool(whole))
    for stream, letters in enumerate(_LETTERS)
    for whole, letter in enumerate(letters)
}
_HEAD = 18


class LogRecord(NamedTuple):
    """A line of output without its newline, or a piece of a line. `at` is in seconds since the
    epoch."""

    at: float
    stream: str
    text: bytes
    whole: bool = True


class LineSplitter:
    """Splits the output of a pipe into lines, at newlines only.

    If a line is rewritten after carriage returns, as progress bars do, only its last state is kept.
    """

    def __init__(self, max_line: int = MAX_LINE) -> None:
        self._max_line = max_line
        self._rest = bytearray()
        self._rewritten = False  # whether the incomplete line has been rewritten

    @property
    def state(self) -> bytes | None:
        """The current state of the incomplete line if it is being rewritten; otherwise None."""
        return bytes(self._rest).strip(b"\r") if self._rewritten else None

    def feed(self, data: bytes) -> list[tuple[bytes, bool]]:
        """Return the lines that `data` completes, without newlines, each with True. Lines longer
        than `max_line` bytes are returned in pieces of that size, with False for all but the last.

        Args:
            data: Output of the pipe: a piece of a line, or several lines.
        """
        lines: list[tuple[bytes, bool]] = []
        first, *others = data.split(b"\n")
        self._rest += first
        self._keep_last_state()
        self._cut(lines)
        if others:
            lines.append((bytes(self._rest), True))
            self._rest[:] = others.pop()
            self._rewritten = False
            for line in others:
                self._add(lines, line)
            self._keep_last_state()
            self._cut(lines)
        return lines

    def finish(self) -> list[tuple[bytes, bool]]:
        """Return the last line if the stream ended without a newline."""
        if not self._rest:
            return []
        line = bytes(self._rest)
        self._rest.clear()
        return [(line, True)]

    def _keep_last_state(self) -> None:
        start = _last_state(self._rest)
        if start:
            del self._rest[:start]
            self._rewritten = True

    def _add(self, lines: list[tuple[bytes, bool]], line: bytes) -> None:
        line = line[_last_state(line) :]
        while len(line) > self._max_line:
            lines.append((line[: self._max_line], False))
            line = line[self._max_line :]
        lines.append((line, True))

    def _cut(self, lines: list[tuple[bytes, bool]]) -> None:
        while len(self._rest) > self._max_line:
            lines.append((bytes(self._rest[: self._max_line]), False))
            del self._rest[: self._max_line]


def _last_state(line: bytes | bytearray) -> int:
    """Return the offset of the last state of a line. A carriage return at its end belongs to the
    newline, or to a state that has not arrived yet."""
    if b"\r" not in line:
        return 0
    return line.rstrip(b"\r").rfind(b"\r") + 1


class LogBuffer:
    """Buffers the records of one attempt until they are taken.

    `max_size_per_stream` is in bytes of text, newlines included. If a stream exceeds it, the rest
    is dropped, and the last line of the stream says so.
    """

    def __init__(self, max_size_per_stream: int) -> None:
        self._max_size = max_size_per_stream
        self._records: list[bytes] = []
        self._last = [0, 0]
        self._full = [False, False]
        self._sizes = [0, 0]
        self.size = 0  # bytes of the records that have not been taken

    @property
    def stdout_size(self) -> int:
        """The number of bytes of text of stdout so far, newlines included."""
        return self._sizes[0]

    @property
    def stderr_size(self) -> int:
        """The number of bytes of text of stderr so far, newlines included."""
        return self._sizes[1]

    def add(self, at: float, stream: int, data: bytes, whole: bool = True) -> bool:
        """Add a line, or a piece of one.

        Args:
            at: The time of the line, in seconds since the epoch.
            stream: 0 for stdout, 1 for stderr.
            data: The bytes, without the newline at the end.
            whole: Whether the line ends here; False if the line continues in the next record.

        Returns:
            False if the line was dropped because the stream has reached its maximum size.
        """
        if self._full[stream]:
            return False
        size = len(data) + whole
        kept = self._sizes[stream] + size <= self._max_size
        if not kept:
            self._full[stream] = whole = True
            data, size = TRUNCATED, len(TRUNCATED) + 1
        micros = int(at * 1e6)
        if micros < self._last[stream]:
            micros = self._last[stream]
        self._last[stream] = micros
        record = b"%016d%b %b\n" % (micros, _LETTERS[stream][whole], data)
        self._records.append(record)
        self._sizes[stream] += size
        self.size += len(record)
        return kept

    def take_chunk(self) -> bytes:
        """Return all records since the last call, in order; empty if there are none."""
        chunk = b"".join(self._records)
        self._records.clear()
        self.size = 0
        return chunk


def chunk_name(flow: str, run: str, step: str, task: int, attempt: int, number: int) -> str:
    """Return the name of the object that holds chunk `number`, from 0, of an attempt's log.

    Args:
        flow: The name of the flow.
        run: The id of the run.
        step: The name of the step.
        task: The number of the task within its run.
        attempt: The number of the attempt, from 0.
        number: The number of the chunk, from 0.
    """
    return f"logs/{flow}/{run}/{step}/{task}/{attempt}/{number:08d}"


def read_chunks(
    store: ObjectStore, flow: str, run: str, step: str, task: int, attempt: int, count: int
) -> Iterator[bytes]:
    """Yield the first `count` chunks of an attempt's log.

    Args:
        store: The datastore.
        flow: The name of the flow.
        run: The id of the run.
        step: The name of the step.
        task: The number of the task within its run.
        attempt: The number of the attempt, from 0.
        count: The number of chunks to read.

    Raises:
        ObjectNotFound: If a chunk is missing.
    """
    for number in range(count):
        yield bytes(store.get(chunk_name(flow, run, step, task, attempt, number)))


def read_log(stored: bytes | Iterable[bytes]) -> Iterator[LogRecord]:
    """Return the records of a log, or of its chunks in order, both streams merged by time.

    The records of one stream are in the order of arrival.

    Args:
        stored: The bytes of the log, or its chunks in order.

    Raises:
        StorageError: If the bytes are not a log.
    """
    chunks = (stored,) if isinstance(stored, bytes) else stored
    records = [_record(line) for chunk in chunks for line in _lines(chunk)]
    return iter(sorted(records, key=lambda record: record.at))


def read_chunk(chunk: bytes) -> Iterator[LogRecord]:
    """Return the records of one chunk as `read_log` does, but lazily: not all records are in memory
    at the same time.

    Args:
        chunk: The bytes of the chunk.

    Raises:
        StorageError: During the iteration, if the bytes are not a log.
    """
    return heapq.merge(
        *(_of_stream(chunk, number) for number in range(len(STREAMS))), key=lambda record: record.at
    )


def _of_stream(chunk: bytes, wanted: int) -> Iterator[LogRecord]:
    for line in _lines(chunk):
        if len(line) < _HEAD or _KINDS.get(line[16], (wanted,))[0] == wanted:
            yield _record(line)


def _lines(chunk: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(chunk):
        end = chunk.find(b"\n", start)
        if end < 0:
            raise StorageError("A log is damaged: its last line is cut off.")
        yield chunk[start:end]
        start = end + 1


def as_text(records: Iterable[LogRecord], stream: str | None = None) -> str:
    """Return the output of a stream, or of both, as text. Bytes that are not UTF-8 are replaced.

    Args:
        records: The records of the log, in the order of the text.
        stream: The stream: `stdout`, `stderr`, or None for both.
    """
    wanted = (record for record in records if stream in (None, record.stream))
    lines = (record.text + b"\n" if record.whole else record.text for record in wanted)
    return b"".join(lines).decode("utf-8", "replace")


def _record(line: bytes) -> LogRecord:
    try:
        stream, whole = _KINDS[line[16]]
        at = int(line[:16]) / 1e6
    except (LookupError, ValueError):
        raise StorageError(f"A log is damaged: {line[:40]!r} is not a line of one.") from None
    return LogRecord(at, STREAMS[stream], line[_HEAD:], whole)
