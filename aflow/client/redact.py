"""Redact the output of tasks: replace each stream by a single line that marks it as redacted."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, NamedTuple

from aflow.client import task as logs
from aflow.metadata.base import ReplacedLog
from aflow.scheduler.states import TERMINAL_ATTEMPT_STATES
from aflow.storage.logs import STREAMS, LogBuffer, LogRecord, chunk_name, read_chunks, read_log

if TYPE_CHECKING:
    from aflow.client.task import Task
    from aflow.metadata.base import AttemptRecord, MetadataStore, RunRecord, TaskRecord
    from aflow.storage.base import ObjectStore

_NO_LIMIT = 1 << 62


class PrintedAttempt(NamedTuple):
    """An attempt that may have written to its log."""

    task: TaskRecord
    attempt: AttemptRecord


def redact_stream(
    metadata: MetadataStore,
    store: ObjectStore,
    run: RunRecord,
    attempts: Iterable[PrintedAttempt],
    streams: Collection[str],
) -> int:
    """Replace these streams of the attempts by the line `[REDACTED task STREAM]`. An attempt that
    still runs keeps writing to its log.

    May be repeated after an interruption: streams that were not redacted are unchanged.

    Args:
        metadata: The metadata store of the run.
        store: The datastore of the run.
        run: The run of all attempts.
        attempts: The attempts to redact, each with its task.
        streams: `stdout`, `stderr` or both.

    Returns:
        The number of attempts that had output to redact.
    """
    replaced: list[ReplacedLog] = []
    old: list[str] = []
    count = 0
    for task, attempt in attempts:
        names = _names(run, task, attempt)
        lines = _lines(store, run, task, attempt)
        if not any(line.stream in streams for line in lines):
            continue
        count += 1
        buffer = _redacted(lines, streams)
        log = buffer.take_chunk()
        for number, name in enumerate(names):  # first: concurrent readers must find no secret
            store.put(name, [log if number == 0 else b""])
        if attempt.state in TERMINAL_ATTEMPT_STATES:
            old += names[1:]
            sizes = buffer.stdout_size, buffer.stderr_size
            inline, chunks = (None, 1) if names else (log, 0)
            replaced.append(ReplacedLog(task.task, attempt.attempt, inline, chunks, *sizes))
    metadata.replace_logs(run.key, replaced)
    for name in old:
        store.delete(name)
    return count


def _names(run: RunRecord, task: TaskRecord, attempt: AttemptRecord) -> list[str]:
    return [
        chunk_name(run.flow, run.run, task.step, task.task, attempt.attempt, number)
        for number in range(attempt.log_chunks)
    ]


def _lines(
    store: ObjectStore, run: RunRecord, task: TaskRecord, attempt: AttemptRecord
) -> list[LogRecord]:
    if attempt.log is not None:
        return [*read_log(attempt.log)]
    place = (run.flow, run.run, task.step, task.task, attempt.attempt)
    return [*read_log(read_chunks(store, *place, attempt.log_chunks))]


def _redacted(lines: Iterable[LogRecord], streams: Collection[str]) -> LogBuffer:
    """Return the lines of other streams, and one line for each redacted stream that had any."""
    buffer = LogBuffer(_NO_LIMIT)
    redacted: set[str] = set()
    for line in lines:
        stream = STREAMS.index(line.stream)
        if line.stream not in streams:
            buffer.add(line.at, stream, line.text, line.whole)
        elif line.stream not in redacted:
            redacted.add(line.stream)
            buffer.add(line.at, stream, b"[REDACTED task %b]" % line.stream.encode())
    return buffer


def redact_task(task: Task, streams: Collection[str], *, every_attempt: bool = False) -> list[str]:
    """Redact these streams of the task's attempt, or of all its attempts. If the task reuses the
    result of another one, the log of that task is redacted. May be called twice.

    Raises StorageError and MetadataError; output that was not redacted is unchanged then.

    Args:
        task: The task, read just now.
        streams: `stdout`, `stderr` or both.
        every_attempt: Whether to redact earlier attempts too.

    Returns:
        The attempts that had output to redact, as text to display.
    """
    source, view = logs.owner(task._source, task._now)
    metadata = source.metadata
    if every_attempt:
        attempts = metadata.attempts(source.key, view.task.task)
    else:
        attempts = [view.attempt] if view.attempt is not None else []
    done = []
    with source.place.writing() as store:
        for attempt in attempts:
            printed = [PrintedAttempt(view.task, attempt)]
            if redact_stream(store, source.blobs.store, source.record, printed, streams):
                path = f"{source.pathspec}/{view.task.step}/{view.task.task}"
                done.append(f"{path} - attempt {attempt.attempt}")
    task._settled = False  # the task's cached records are stale now
    return done
