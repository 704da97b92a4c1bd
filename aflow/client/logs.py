"""What an attempt has printed: in its record where it is small, else in chunks in the store."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from aflow.scheduler.states import TERMINAL_ATTEMPT_STATES
from aflow.storage.logs import STREAMS, LogRecord, as_text, read_chunks, read_log

if TYPE_CHECKING:
    from aflow.client.source import RunSource
    from aflow.metadata.base import TaskView

__all__ = ["STREAMS", "lines", "size", "text"]


def text(source: RunSource, view: TaskView, stream: str) -> str:
    """All that the attempt wrote to the stream; bytes that are no UTF-8 are replaced."""
    return as_text(_records(source, view), stream)


def size(source: RunSource, view: TaskView, stream: str) -> int:
    """Bytes that the attempt wrote to the stream. While it runs they are counted."""
    attempt = view.attempt
    if attempt is None:
        return 0
    if view.task.origin:
        found = _origin(source, view.task.origin)
        return size(*found, stream) if found is not None else 0
    if attempt.state in TERMINAL_ATTEMPT_STATES:
        return attempt.stdout_size if stream == "stdout" else attempt.stderr_size
    return sum(
        len(record.text) + record.whole
        for record in _records(source, view)
        if record.stream == stream
    )


def lines(source: RunSource, view: TaskView, stream: str) -> Iterator[tuple[float, bytes]]:
    """Time and bytes of every line of the stream, in order. A line that was stored in pieces is
    whole again, with the time of its first piece."""
    pieces: list[LogRecord] = []
    for record in _records(source, view):
        if record.stream == stream:
            pieces.append(record)
            if record.whole:
                yield pieces[0].at, b"".join(piece.text for piece in pieces)
                pieces.clear()
    if pieces:  # of an attempt that goes on, or that was cut off
        yield pieces[0].at, b"".join(piece.text for piece in pieces)


def owner(source: RunSource, view: TaskView) -> tuple[RunSource, TaskView]:
    """The task that has printed what this one shows: itself, or the one whose result it took
    over, if that is still there."""
    found = _origin(source, view.task.origin) if view.task.origin else None
    return found or (source, view)


def _origin(source: RunSource, origin: str) -> tuple[RunSource, TaskView] | None:
    """The task whose result was taken over, which is the one that printed something; None if its
    run has been deleted."""
    run, _, task = origin.split("/")
    run_source = type(source).find(source.place, source.record.flow, run)
    view = None if run_source is None else source.metadata.task(run_source.key, int(task))
    return None if run_source is None or view is None else (run_source, view)


def _records(source: RunSource, view: TaskView) -> Iterator[LogRecord]:
    if view.task.origin:
        found = _origin(source, view.task.origin)
        return _records(*found) if found is not None else iter(())
    attempt = view.attempt
    if attempt is None:
        return iter(())
    if attempt.log is not None:
        return read_log(attempt.log)
    if not attempt.log_chunks:
        return iter(())
    record, task = source.record, view.task
    names = (record.flow, record.run, task.step, task.task, attempt.attempt)
    return read_log(read_chunks(source.blobs.store, *names, attempt.log_chunks))
